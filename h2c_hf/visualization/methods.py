"""Figures of the methods: how right they are, how long they take."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from ..reports.page import CONTROLS
from .style import GREY, ORANGE, SMALL, Look, Theme, inches, legend, names, page, plain_grid, wrap


def accuracy(report: dict, theme: Theme) -> Figure:
    """Accuracy by method and control, with 95 % intervals, and chance."""
    methods = report["methods"]
    looks = theme.looks(methods)
    figure = page(
        f"Accuracy by method and control, {next(iter(methods.values()))['n']:,} questions",
        0.42 * len(methods) + 1.3,
    )
    axes = figure.subplots()
    for row, (name, values) in enumerate(methods.items()):
        value, low, high = (100 * values[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
        axes.barh(
            row,
            value,
            height=0.68,
            color=looks[name].color,
            hatch=looks[name].hatch,
            edgecolor=theme.paper,
            lw=0,
        )
        axes.errorbar(
            value,
            row,
            xerr=[[max(value - low, 0)], [max(high - value, 0)]],
            color=theme.ink,
            capsize=3,
            lw=1.3,
        )
        axes.annotate(
            f"{value:.1f}", (high, row), (6, 0), textcoords="offset points", va="center", fontsize=SMALL
        )
    share = chance(report)
    if share:
        axes.axvline(100 * share, color=theme.ink, lw=1, ls=":")
    drawn = "whiskers: 95 % Wilson intervals" + (f"; dotted: chance, {100 * share:.0f} %" if share else "")
    axes.set(xlim=(0, 114), xlabel=f"accuracy, %  ({drawn})", ylim=(len(methods) - 0.5, -0.5))
    axes.set_yticks(range(len(methods)), names(methods))
    axes.set_xticks(range(0, 101, 25))
    plain_grid(axes, "x")
    return figure


def chance(report: dict) -> float | None:
    """Return the accuracy of guessing, as the report tells it; else by the number of letters."""
    if "chance" in report:
        return report["chance"]
    if report.get("confusion"):
        return 1 / len(next(iter(report["confusion"].values())))
    return 1 / len(report["examples"][0]["choices"]) if report.get("examples") else None


def latency(report: dict, theme: Theme) -> Figure:
    """Accuracy against time to first token, methods only: a control takes as long as H2C."""
    methods = {
        n: row
        for n, row in report["methods"].items()
        if n not in CONTROLS and row.get("ttft_ms_median") is not None
    }
    looks = theme.looks(methods)
    figure = page("Accuracy against time to first token", 3.9)
    axes = figure.subplots()
    for label, (name, row) in zip(names(methods), methods.items(), strict=True):
        x, y, low, high = (
            row["ttft_ms_median"],
            *(100 * row[key] for key in ("accuracy", "accuracy_low", "accuracy_high")),
        )
        slow = max(row.get("ttft_ms_p90") or x, x)
        axes.errorbar(
            x, y, xerr=[[0], [slow - x]], yerr=[[max(y - low, 0)], [max(high - y, 0)]], label=label,
            color=looks[name].color, fmt=looks[name].marker, ms=9, capsize=3, lw=1.2, mec=theme.paper,
            mew=0.8,
        )  # fmt: skip
    times = [row["ttft_ms_median"] for row in methods.values()]
    axes.set(ylim=(-4, 104), ylabel="accuracy, %  (whiskers: 95 % intervals)")
    axes.set_yticks(range(0, 101, 25))
    if max(times) > 20 * min(times):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(times) < 1000 * min(times) else (1,)))
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, None)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("median time to first token, ms, batch 1  (whiskers: to the 90th percentile)")
    plain_grid(axes)
    legend(axes)
    return figure


def latency_parts(report: dict, theme: Theme) -> Figure:
    """The parts of the time to first token, method by method."""
    rows = {
        name: {part: ms for part, ms in parts.items() if ms}
        for name, parts in report["latency_parts"].items()
    }
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    figure = page("Time to first token, by part", 0.42 * len(rows) + 1.4)
    axes = figure.subplots()
    left = np.zeros(len(rows))
    looks = part_looks(theme, parts)
    for part in parts:
        look = looks[part]
        taken = np.array([row.get(part, 0.0) for row in rows.values()])
        label = wrap(part_title(part), 1.7, SMALL)
        axes.barh(
            range(len(rows)),
            taken,
            0.68,
            left,
            color=look.color,
            hatch=look.hatch,
            edgecolor=theme.paper,
            lw=0,
            label=label,
        )
        left += taken
    totals = [f"{total:,.1f}" for total in left]
    for row, (total, text) in enumerate(zip(left, totals, strict=True)):
        axes.annotate(text, (total, row), (5, 0), textcoords="offset points", va="center", fontsize=SMALL)
    # The axes are at least some three inches wide.
    room = 1 + (max(inches(text, SMALL) for text in totals) + 0.2) / 3
    axes.set(xlim=(0, left.max() * room), ylim=(len(rows) - 0.5, -0.5), xlabel="median time, ms, batch 1")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.set_yticks(range(len(rows)), names(rows))
    plain_grid(axes, "x")
    legend(axes)
    return figure


def part_looks(theme: Theme, parts: Iterable[str]) -> dict[str, Look]:
    """Return {part: its look}. A part of a model or the bridge has its method's colour in all figures."""
    of_method = {
        "receiver_prefill": "receiver",
        "sharer_prefill": "sharer",
        "sharer_writes": "text_to_text",
        "bridge": "h2c",
    }
    methods = theme.looks(of_method.values())
    rest = iter([Look(ORANGE, "v", "\\\\"), Look(GREY, "X", "--"), *theme.sequence])
    return {part: methods[of_method[part]] if part in of_method else next(rest) for part in parts}


def part_title(part: str) -> str:
    return part.replace("_", " ").replace("sharer", "Sharer").replace("receiver", "Receiver")


def output_lengths(report: dict, theme: Theme) -> Figure:
    """Time for a whole answer, by its length."""
    rows = report["output_lengths"]
    methods = list(dict.fromkeys(name for row in rows for name in row if name != "tokens"))
    looks = theme.looks(methods)
    figure = page("Time for an answer, by its length", 3.6)
    axes = figure.subplots()
    for name, label in zip(methods, names(methods), strict=True):
        points = [(row["tokens"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), color=looks[name].color, marker=looks[name].marker, label=label)
    axes.set(
        xlim=(0, None),
        ylim=(0, None),
        xlabel="length of the answer, tokens",
        ylabel="median time, ms, batch 1",
    )
    axes.locator_params(nbins=6)
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.yaxis.set_major_formatter("{x:,.10g}")
    plain_grid(axes)
    legend(axes)
    return figure
