"""Figures of the questions: which method answers which rightly, and a page of answers side by side."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .style import (
    COLUMN,
    GREEN,
    SIZE,
    SMALL,
    VERMILLION,
    WIDTH,
    Theme,
    behind,
    names,
    on_map,
    page,
    plain_grid,
    title,
    widest,
    wrap,
)


PERCENT = Normalize(0, 100)


def subjects(report: dict, theme: Theme) -> Figure:
    """Accuracy of every method in every subject."""
    rows = report["by_subject"]
    methods = [name for name in next(iter(rows.values())) if name != "n"]
    labels = [
        wrap(f"{subject.replace('_', ' ')} ({row['n']:,})", 3.2, SMALL, 2) for subject, row in rows.items()
    ]
    cell = 0.86  # inches
    figure = page(
        "Accuracy by subject (questions)",
        0.26 * len(rows) + 1.9,
        max(WIDTH, cell * len(methods) + widest(labels) + 1.4),
    )
    axes = figure.subplots()
    shares = np.array([[100 * row[name] for name in methods] for row in rows.values()])
    axes.imshow(shares, norm=PERCENT, aspect="auto", interpolation="nearest")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column, row, f"{share:.0f}", ha="center", va="center", fontsize=SMALL, color=on_map(share / 100)
        )
    axes.set_xticks(range(len(methods)), [wrap(title(name), cell - 0.12, SMALL, 4) for name in methods])
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), labels)
    cells(axes, shares.shape, theme)
    shares_bar(figure, axes, "accuracy, %")
    return figure


def categories(report: dict, theme: Theme) -> Figure:
    """Accuracy by category: a row a category, a mark a method. As wide as a column of a paper."""
    rows = report["by_category"]
    methods = [name for name in next(iter(rows.values())) if name != "n"]
    looks = theme.looks(methods)
    room = 0.075 * len(methods) + 0.12  # inches a row: marks of like accuracy lie below one another
    columns = -(-len(methods) // 2)
    figure = page("Accuracy by category (questions)", room * len(rows) + 0.2 * columns + 1.1, COLUMN)
    axes = figure.subplots()
    for i, (name, label) in enumerate(zip(methods, names(methods, 1.2), strict=True)):
        heights = np.arange(len(rows)) + 0.8 * ((i + 0.5) / len(methods) - 0.5)
        values = [100 * row[name] for row in rows.values()]
        axes.plot(
            values,
            heights,
            looks[name].marker,
            color=looks[name].color,
            ms=5,
            mec=theme.paper,
            mew=0.4,
            label=label,
        )
    for row in range(len(rows) - 1):
        axes.axhline(row + 0.5, color=theme.grid, lw=0.6)
    axes.set_yticks(
        range(len(rows)), [wrap(f"{category} ({row['n']:,})", 0.9, SMALL) for category, row in rows.items()]
    )
    axes.set(xlim=(-3, 103), xlabel="accuracy, %", ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(0, 101, 25))
    plain_grid(axes, "x")
    figure.legend(loc="outside lower left", ncols=2, handletextpad=0.4, columnspacing=1.0)
    return figure


def confusion(report: dict, theme: Theme) -> Figure:
    """Expected against predicted letter, a panel a method."""
    counts = {name: np.array(table) for name, table in report["confusion"].items()}
    letters = "ABCDEFGHIJ"[: len(next(iter(counts.values())))]
    cell = 0.42  # inches
    columns = min(len(counts), max(1, 16 // len(letters)))
    lines = -(-len(counts) // columns)
    size = cell * len(letters)
    figure = page(
        "Expected and given letters, questions",
        lines * (size + 0.75) + 0.9,
        max(WIDTH, columns * (size + 0.35) + 1.6),
    )
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(counts) :]:
        axes.remove()
    for axes, (name, table) in zip(grid.flat, counts.items(), strict=False):
        shares = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(shares, norm=PERCENT, interpolation="nearest")
        for (row, column), count in np.ndenumerate(table):
            axes.text(
                column,
                row,
                f"{count}",
                ha="center",
                va="center",
                fontsize=SMALL - 1,
                color=on_map(shares[row, column] / 100),
            )
        axes.set_title(wrap(title(name), size, SMALL, 2), fontsize=SMALL)
        axes.set_xticks(range(len(letters)), letters)
        axes.set_yticks(range(len(letters)), letters)
        axes.tick_params(labelbottom=True)
        cells(axes, table.shape, theme)
    figure.supxlabel("given letter", fontsize=SIZE)
    figure.supylabel("expected letter", fontsize=SIZE)
    shares_bar(figure, list(grid.flat[: len(counts)]), "share of the expected letter's questions, %")
    return figure


def cells(axes, shape: tuple[int, int], theme: Theme) -> None:
    """Lines between the cells of a table of colours."""
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=theme.paper, lw=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def shares_bar(figure: Figure, axes, label: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(PERCENT),
        ax=axes,
        label=label,
        ticks=range(0, 101, 25),
        aspect=30,
        fraction=0.05,
        shrink=0.9,
    )
    bar.outline.set_visible(False)


def probability_shift(report: dict, theme: Theme) -> Figure:
    """For one question, the probability that each method gives each letter; dotted, the Receiver's own."""
    data = report["probability_shift"]
    methods, looks, count = data["methods"], theme.looks(data["methods"]), len(data["choices"])
    columns = min(count, 4)
    lines = -(-count // columns)
    heading = f"How likely each answer is, for one question: {data['question']}"
    figure = page(heading, lines * (0.3 * len(methods) + 1.0) + 1.2, 9.5)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    for i, (axes, letter, choice) in enumerate(zip(grid.flat, "ABCDEFGHIJ", data["choices"], strict=False)):
        for row, (name, shares) in enumerate(methods.items()):
            look = looks[name]
            axes.barh(
                row, 100 * shares[i], 0.7, color=look.color, hatch=look.hatch, edgecolor=theme.paper, lw=0
            )
            axes.annotate(
                f"{100 * shares[i]:.1f}", (100 * shares[i], row), (4, 0), textcoords="offset points",
                va="center", fontsize=SMALL, bbox=behind(theme),
            )  # fmt: skip
        if "receiver" in methods:
            axes.axvline(100 * methods["receiver"][i], color=theme.ink, lw=1, ls=":")
        right = letter == data["expected"]
        text = wrap(f"{'✓ ' if right else ''}{letter}. {choice}", 1.55, SMALL)
        axes.set_title(text, fontsize=SMALL, weight="bold" if right else "normal")
        axes.set_xticks((0, 50, 100))
        axes.tick_params(labelbottom=True)
        plain_grid(axes, "x")
    grid[0, 0].set(xlim=(0, 135), ylim=(len(methods) - 0.5, -0.5))
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(methods)), names(methods, 1.5))
    legend_of = "✓: the right answer" + ("; dotted: the Receiver alone" if "receiver" in methods else "")
    figure.supxlabel(f"probability of the letter as the first token, %  ({legend_of})", fontsize=SIZE)
    return figure


def generations(report: dict, theme: Theme) -> Figure:
    """A page: the answers of each method to a few questions, by letter and in words."""
    width = 9.5  # inches, as all lengths here
    columns, rooms = (0.15, 2.15, 4.75), (1.85, 2.45, 4.55)
    rows = [
        ("heading", ["Answers side by side"]),
        ("columns", ["method", "letter, among the choices", "in words, without the choices"]),
    ]
    for example in report["examples"]:
        choices = f"Choices: {'; '.join(example['choices'])}. Expected: {example['expected']}."
        rows.append(("question", [wrap(example["question"], width - 0.4, SIZE, 6)]))
        rows.append(("choices", [wrap(choices, width - 0.4, SMALL, 6)]))
        for name, answer in example["answers"].items():
            right = (
                answer["choice"].partition(". ")[2] == example["expected"],
                answer["open"] == example["expected"],
            )
            texts = [
                title(name),
                *(
                    f"{'✓' if ok else '✗'} {answer[form]}"
                    for ok, form in zip(right, ("choice", "open"), strict=True)
                ),
            ]
            rows.append(
                ("answer", [wrap(text, room, SMALL, 6) for text, room in zip(texts, rooms, strict=True)])
            )
    heights = [max(text.count("\n") + 1 for text in texts) * LINE[kind] + 0.08 for kind, texts in rows]

    top = sum(heights) + 0.2
    figure = Figure(figsize=(width, top))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, top))
    axes.axis("off")
    top -= 0.1
    for (kind, texts), height in zip(rows, heights, strict=True):
        if kind == "question":
            axes.plot((columns[0], width - 0.15), (top, top), color=theme.grid, lw=0.8)
        for x, text in zip(columns, texts, strict=False):
            mark = {"✓": GREEN, "✗": VERMILLION}.get(text[:1]) if x != columns[0] else None
            axes.text(
                x, top - 0.05, text, va="top", color=mark or theme.ink, linespacing=1.15,
                weight="bold" if kind == "columns" else "normal",
                fontsize={"heading": SIZE + 2, "question": SIZE}.get(kind, SMALL),
            )  # fmt: skip
        top -= height
    return figure


# Inches from line to line.
LINE = {"heading": 0.24, "columns": 0.16, "question": 0.19, "choices": 0.16, "answer": 0.16}
