"""Figures of the bridge: its gates, its changes of the Receiver's cache, its training."""

import math
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from .style import (
    BESIDE,
    SMALL,
    VERMILLION,
    WIDTH,
    Look,
    Theme,
    behind,
    inches,
    legend,
    on_map,
    page,
    plain_grid,
    printable,
    wrap,
)


LABELLED_TOKENS = 64  # a longer prompt gets numbers along its axis, not its tokens
GATE = "gate, sigmoid"
BOX = ("box", "whisker", "cap", "median")  # parts of a box plot
CHANGE = "|new - old| / |old|"


def kinds(theme: Theme) -> dict[str, Look]:
    return {"key": Look(theme.strong, "o"), "value": Look(VERMILLION, "s")}


def numbers(row: list[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in row], float)


def gates(report: dict, theme: Theme) -> Figure:
    """sigmoid(gate) by Receiver layer, keys and values; and their distribution."""
    figure = page("How far each block's gate is open", 3.5)
    by_layer, spread = figure.subplots(1, 2, width_ratios=(4, 1), sharey=True)
    values = {kind: numbers(report["gates"][kind]) for kind in ("key", "value")}
    for place, (kind, look) in enumerate(kinds(theme).items()):
        row = values[kind]
        by_layer.plot(range(len(row)), row, color=look.color, marker=look.marker, label=f"{kind} blocks")
        known = row[~np.isnan(row)]
        spread.boxplot(
            known,
            positions=[place],
            widths=0.62,
            showfliers=False,
            **{f"{part}props": {"color": theme.ink, "lw": 1} for part in BOX},
        )
        # Side by side in the order of the layers, so that equal gates do not hide one another.
        spread.plot(
            place + np.linspace(-0.22, 0.22, len(known)),
            known,
            look.marker,
            color=look.color,
            ms=4,
            alpha=0.85,
        )
    by_layer.set(ylim=gate_limits([*values["key"], *values["value"]]), xlabel="Receiver layer", ylabel=GATE)
    by_layer.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    by_layer.set_title("by layer")
    spread.set_xticks(range(2), ["key", "value"])
    spread.set(xlim=(-0.5, 1.5))
    spread.set_title("all layers")
    for axes in (by_layer, spread):
        plain_grid(axes, "y")
    spread.legend(*by_layer.get_legend_handles_labels(), **BESIDE)
    return figure


def gate_map(report: dict, theme: Theme) -> Figure:
    """How far each block's gate is open, by Receiver layer."""
    rows = np.ma.masked_invalid([numbers(report["gates"][kind]) for kind in ("key", "value")])
    norm = Normalize(*gate_limits(rows.compressed()))
    figure = page("How far each block's gate is open", 2.1)
    axes = figure.subplots()
    axes.set_facecolor(theme.grid)  # layers that are not bridged
    mesh = axes.pcolormesh(rows, norm=norm, edgecolors=theme.paper, lw=2)
    if rows.shape[1] <= 12:
        for row, layer in zip(*np.nonzero(~np.ma.getmaskarray(rows)), strict=True):
            value = rows[row, layer]
            axes.text(
                layer + 0.5,
                row + 0.5,
                f"{value:.2f}",
                ha="center",
                va="center",
                color=on_map(norm(value)),
                size=SMALL,
            )
    shown = range(0, rows.shape[1], -(-rows.shape[1] // 16))
    axes.set_xticks([layer + 0.5 for layer in shown], [str(layer) for layer in shown])
    axes.set_yticks([0.5, 1.5], ["keys", "values"])
    axes.set(xlabel="Receiver layer")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, label=GATE.replace(", ", ",\n"))
    bar.outline.set_visible(False)
    return figure


def gate_limits(values: list[float]) -> tuple[float, float]:
    """The part of 0 to 1 that holds the values, a twentieth of it at least."""
    low, high = np.nanmin(values), np.nanmax(values)
    pad = max(0.08 * (high - low), (0.05 - (high - low)) / 2)
    return max(low - pad, -0.02), min(high + pad, 1.02)


def gates_over_training(report: dict, theme: Theme) -> Figure:
    """Every gate by training step."""
    history = [
        entry for entry in report["training"]["history"] if any(key.startswith("gate/") for key in entry)
    ]
    layers = sorted({int(key.split("/")[2]) for entry in history for key in entry if key.startswith("gate/")})
    colors = Normalize(layers[0], max(layers[-1], layers[0] + 1))
    figure = page("The gates over training", 3.4)
    both = figure.subplots(1, 2, sharey=True)
    markers = dict(zip(layers, cycle("osD^vPX"), strict=False))
    for axes, kind in zip(both, ("key", "value"), strict=True):
        for layer in layers:
            points = [
                (entry["step"], entry[f"gate/{kind}/{layer}"])
                for entry in history
                if f"gate/{kind}/{layer}" in entry
            ]
            axes.plot(
                *zip(*points, strict=True), color=theme.lines(colors(layer)), lw=1.2,
                marker=markers[layer], ms=4, markevery=max(1, len(points) // 6),
            )  # fmt: skip
        axes.set(xlabel="training step")
        axes.set_title(f"{kind} blocks")
        axes.locator_params(axis="x", nbins=5)
        plain_grid(axes)
    both[0].set(
        ylabel=GATE,
        ylim=gate_limits(
            [value for entry in history for key, value in entry.items() if key.startswith("gate/")]
        ),
    )
    mapped = ScalarMappable(colors, theme.lines)
    bar = figure.colorbar(mapped, ax=both, label="Receiver layer", ticks=MaxNLocator(8, integer=True))
    bar.outline.set_visible(False)
    return figure


def injection(report: dict, theme: Theme) -> Figure:
    """How much of the cache the bridge changed for one prompt: by layer and position, keys and values."""
    heading = "What the bridge changed in the Receiver's cache, for one prompt"
    return token_map(report["injection"], heading, "the prompt", f"relative change, {CHANGE}", 100, theme)


def message(report: dict, theme: Theme) -> Figure:
    """How large the message in the cache is, for one prompt: by layer and Sharer token, keys and values."""
    heading = "What the bridge wrote into the Receiver's cache, for one prompt"
    return token_map(
        report["message"],
        heading,
        "the Sharer's prompt",
        "norm, over that of the Receiver's own prompt",
        3,
        theme,
    )


def token_map(data: dict, heading: str, prompt: str, label: str, ratio: float, theme: Theme) -> Figure:
    """Draw two heat maps, keys and values, with a row a Receiver layer and a column a token.

    Args:
        data: {"key", "value": a number for each token, for each layer, or None for a layer that is not
            bridged; "tokens"}.
        prompt: the name of the prompt that has these tokens.
        label: the name of the numbers.
        ratio: see `scale`.
    """
    tokens, layers = data["tokens"], len(data["key"])
    maps = {
        kind: np.array([np.full(len(tokens), math.nan) if row is None else row for row in data[kind]])
        for kind in ("key", "value")
    }
    norm = scale(np.concatenate([np.ravel(map_) for map_ in maps.values()]), ratio)
    labelled = len(tokens) <= LABELLED_TOKENS
    width = max(WIDTH, 0.165 * len(tokens) + 1.6) if labelled else 11
    words = [printable(token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")) for token in tokens]
    words = [wrap(word, 0.9, SMALL - 1, 1) for word in words]
    figure = page(
        heading,
        2 * max(1.8, 0.12 * layers)
        + 1.5
        + (max(inches(word, SMALL - 1) for word in words) if labelled else 0),
        width,
    )
    both = figure.subplots(2, 1, sharex=True)
    for axes, (kind, map_) in zip(both, maps.items(), strict=True):
        axes.set_facecolor(theme.grid)  # layers that are not bridged
        axes.pcolormesh(np.ma.masked_invalid(map_), norm=norm, rasterized=True)
        axes.set(ylabel="Receiver layer")
        axes.set_title(
            f"{kind}s" + ("" if np.isfinite(map_).all() else "  (plain rows: layers that are not bridged)")
        )
        shown = range(0, layers, -(-layers // 8))
        axes.set_yticks([layer + 0.5 for layer in shown], [str(layer) for layer in shown])
        axes.tick_params(length=0)
    if labelled:
        both[1].set_xticks(
            [position + 0.5 for position in range(len(tokens))], words, rotation=90, fontsize=SMALL - 1
        )
        both[1].set_xlabel(f"{prompt}, token by token")
    else:
        both[1].xaxis.set_major_locator(MaxNLocator(10, integer=True))
        both[1].set_xlabel(f"position in {prompt}, tokens")
    bar = figure.colorbar(ScalarMappable(norm), ax=both, label=label, format="{x:g}")
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    return figure


def scale(changes: np.ndarray, ratio: float) -> Normalize:
    """From nothing to the largest number; by powers of ten if they differ by more than `ratio` times."""
    found = changes[np.isfinite(changes) & (changes > 0)]
    if found.size and found.max() > ratio * found.min():
        return LogNorm(found.min(), found.max())
    return Normalize(0, found.max() if found.size else 1)


def layer_radar(report: dict, theme: Theme) -> Figure:
    """Around the layers: the gates, and the mean change of the cache for one prompt."""
    changed = {
        kind: [None if row is None else float(np.mean(row)) for row in report["injection"][kind]]
        for kind in ("key", "value")
    }
    figure = page("Layer by layer: gates, and change of the cache for one prompt", 4.6, 8.5)
    figure.get_layout_engine().set(h_pad=0.2)  # the numbers around a circle are not reckoned with
    both = figure.subplots(1, 2, subplot_kw={"projection": "polar"})
    for axes, what, rows in ((both[0], GATE, report["gates"]), (both[1], f"mean {CHANGE}", changed)):
        radar(axes, what, rows, theme)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def radar(axes: Axes, what: str, rows: dict[str, list[float | None]], theme: Theme) -> None:
    layers = len(rows["key"])
    angles = 2 * np.pi * np.arange(layers + 1) / layers
    for kind, look in kinds(theme).items():
        values = numbers(rows[kind])
        # Over the grid, under the numbers of the inner axis.
        axes.plot(
            angles,
            [*values, values[0]],
            color=look.color,
            marker=look.marker,
            ms=4,
            label=f"{kind} blocks",
            zorder=2.45,
        )
    step = -(-layers // 32)
    axes.set_xticks(angles[:-1:step], [str(layer) for layer in range(0, layers, step)])
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    # No number of the inner axis stands where the layers' numbers are.
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.set_rlabel_position(180 / layers if layers > 4 else 45)
    axes.set_xlabel(f"around: Receiver layer\noutwards: {what}", fontsize=SMALL, labelpad=8)
    axes.set_axisbelow(False)  # the numbers of the inner axis are legible where a line crosses them
    for label in axes.get_yticklabels():
        label.set_bbox(behind(theme))
    axes.grid(lw=0.6)
    axes.spines["polar"].set_color(theme.grid)


def training(report: dict, theme: Theme) -> Figure:
    """Loss, validation, gradient norms and learning rate by step. The training loss is pale, and smoothed
    over it: batches of like lengths have losses that go up and down."""
    panels = [
        (unit, scale, curves)
        for unit, scale, curves in training_panels(report["training"]["history"])
        if curves
    ]
    labels = [[wrap(name, 1.7, SMALL, 2) for name in curves] for _, _, curves in panels]
    heights = [max(1.25, 0.19 * sum(1 + label.count("\n") for label in panel)) for panel in labels]
    figure = page("Training of the bridge", sum(heights) + 0.35 * len(panels) + 0.8)
    sources = {}  # {curve: its number}: a source has one colour in all panels
    stacked = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (unit, scale, curves), panel in zip(stacked, panels, labels, strict=True):
        for label, (curve, points) in zip(panel, curves.items(), strict=True):
            number = sources.setdefault(curve, len(sources))
            look = theme.sequence[number % len(theme.sequence)]
            if curve == "training":
                axes.plot(*zip(*points, strict=True), color=look.color, lw=0.7, alpha=0.35)
                points = smoothed(points)
            axes.plot(
                *zip(*points, strict=True), color=look.color, marker=look.marker, ms=4,
                ls=("-", "--", ":")[number // len(theme.sequence) % 3], markevery=max(1, len(points) // 12),
                label=label,
            )  # fmt: skip
        axes.set_ylabel(unit, fontsize=SMALL)
        if scale == "log":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif scale == "percent":
            axes.set_ylim(0, 104)
            axes.set_yticks(range(0, 101, 25))
        else:
            axes.set_ylim(0, None)
            axes.locator_params(axis="y", nbins=4)
            axes.yaxis.set_major_formatter("{x:g}")
        plain_grid(axes)
        legend(axes)
    stacked[-1].set_xlabel("training step")
    figure.align_ylabels(stacked)
    return figure


def smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the mean over a window of a twentieth of the points, or of a part of it at the ends."""
    values = np.array([value for _, value in points])
    half = len(values) // 40
    return [
        (step, float(np.nanmean(values[max(0, i - half) : i + half + 1])))
        for i, (step, _) in enumerate(points)
    ]


def training_panels(history: list[dict]) -> list[tuple[str, str, dict[str, list[tuple[int, float]]]]]:
    """Return (label of the axis, its scale, {curve: [(step, value)]}) of each panel. Validation sets are
    known by their run times."""
    keys = dict.fromkeys(key for entry in history for key in entry)
    sets = [
        key.removeprefix("eval_").removesuffix("runtime").strip("_")
        for key in keys
        if key.startswith("eval_") and key.endswith("runtime")
    ]

    def curve(key: str, factor: float = 1.0) -> list[tuple[int, float]]:
        return [(entry["step"], factor * entry[key]) for entry in history if entry.get(key) is not None]

    def validation(metric: str, factor: float = 1.0) -> dict[str, list[tuple[int, float]]]:
        found = {name: curve(f"eval_{name}_{metric}" if name else f"eval_{metric}", factor) for name in sets}
        return {
            f"validation: {name.replace('_', ' ')}" if name else "validation": points
            for name, points in found.items()
            if points
        }

    parts = {
        key.removeprefix("grad_norm/").replace("_", " "): curve(key)
        for key in keys
        if key.startswith("grad_norm/")
    }
    loss = {"training": curve("loss")} if "loss" in keys else {}
    return [
        ("loss, nats a token", "linear", {**loss, **validation("loss")}),
        ("exact answers, %", "percent", validation("accuracy", 100)),
        ("gradient norm", "log", parts or ({"all": curve("grad_norm")} if "grad_norm" in keys else {})),
        (
            "learning rate",
            "linear",
            {"learning rate": curve("learning_rate")} if "learning_rate" in keys else {},
        ),
    ]
