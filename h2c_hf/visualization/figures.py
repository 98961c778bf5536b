"""Figures from a saved report. No model is needed to draw."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..evaluation.report import CONTROLS, TITLES


# Okabe and Ito's palette, told apart by colour-blind readers and in print.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#999999", "#222222"
STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.titlesize": 12, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK, "figure.dpi": 150,
}  # fmt: skip


def draw(report: dict, directory: str | Path) -> list[Path]:
    """Draw every figure that the report has data for, as PNG; returns the paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (key, figure) in FIGURES.items():
        if key in report:
            with matplotlib.rc_context(STYLE):
                drawn = figure(report)
                paths.append(directory / f"{name}.png")
                drawn.savefig(paths[-1])
    return paths


def accuracy(report: dict) -> Figure:
    """Accuracy by method and control, with 95 % intervals, and chance."""
    methods = report["methods"]
    figure = Figure(figsize=(7, 0.45 * len(methods) + 1.3), layout="constrained")
    axes = figure.subplots()
    for row, (name, values) in enumerate(methods.items()):
        value, low, high = (100 * values[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
        axes.barh(row, value, color=color(name), height=0.7)
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], color=INK, capsize=3, lw=1.2)
        axes.annotate(f"{value:.1f}", (high, row), (6, 0), textcoords="offset points", va="center")
    axes.axvline(25, color=INK, lw=1, ls=":")
    axes.annotate("chance", (25, -0.62), (3, 0), textcoords="offset points", fontsize=9, va="center")
    axes.set_yticks(range(len(methods)), [TITLES[name] for name in methods])
    axes.set(xlim=(0, 112), xlabel="accuracy, % (bars: 95 % Wilson intervals)", ylim=(len(methods) - 0.5, -0.85))
    axes.set_xticks(range(0, 101, 25))
    axes.set_title(f"{next(iter(methods.values()))['n']:,} test questions about entities never seen in training")
    return figure


def latency(report: dict) -> Figure:
    """Accuracy against median time to first token, methods only."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in report["methods"].items():
        if name in CONTROLS:
            continue
        x, y = values["ttft_ms_median"], 100 * values["accuracy"]
        axes.plot(x, y, "o", ms=9, color=color(name))
        # H2C ends near the Sharer in both: its name goes below the point, theirs above.
        axes.annotate(TITLES[name], (x, y), (8, -14 if name == "h2c" else 6), textcoords="offset points")
    slowest = max(values["ttft_ms_median"] for values in report["methods"].values())
    axes.set(xlim=(0, 1.25 * slowest), ylim=(0, 112), xlabel="median time to first token, ms (batch 1)", ylabel="accuracy, %")
    axes.set_yticks(range(0, 101, 25))
    axes.set_title("Accuracy against time to first token")
    return figure


def gates(report: dict) -> Figure:
    """sigmoid(gate) by Receiver layer, keys and values."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    values = report["gates"]
    for kind, shade, marker in (("key", BLUE, "o"), ("value", ORANGE, "s")):
        layers = [layer for layer, value in enumerate(values[kind]) if value is not None]
        axes.plot(layers, [values[kind][layer] for layer in layers], marker=marker, color=shade, label=f"{kind} blocks")
    axes.set(ylim=(0, 1), xlabel="Receiver layer", ylabel="gate, sigmoid (no unit)")
    axes.set_xticks(range(len(values["key"])))
    axes.set_title("How far each block's gate is open")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def training(report: dict) -> Figure:
    """Training loss, and validation accuracy, by step."""
    history = report["training"]["history"]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    upper.plot(*zip(*losses, strict=True), color=BLUE)
    upper.set(ylabel="training loss, nats", ylim=(0, None))
    upper.set_title("Training of the bridge")
    for key, shade, label in (("eval_choice_accuracy", BLUE, "choice form"), ("eval_open_accuracy", ORANGE, "open form")):
        points = [(entry["step"], 100 * entry[key]) for entry in history if key in entry]
        if points:
            lower.plot(*zip(*points, strict=True), color=shade, marker="o", label=label)
    lower.set(xlabel="step", ylabel="validation accuracy, %", ylim=(0, 105))
    lower.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def color(name: str) -> str:
    if name in CONTROLS:
        return GREY
    return {"h2c": ORANGE, "sharer": GREEN}.get(name, BLUE)


# name of the file: (key of the report that it needs, what draws it)
FIGURES = {
    "accuracy": ("methods", accuracy),
    "latency": ("methods", latency),
    "gates": ("gates", gates),
    "training": ("training", training),
}
