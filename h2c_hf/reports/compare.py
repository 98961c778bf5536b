"""`h2c report REPORT [OTHER]`: print a saved report as a page, or compare two over common questions."""

from pathlib import Path

import numpy as np

from ..hints import next_commands
from .items import load_items
from .page import TITLES, difference_cells, markdown, percent, table
from .schema import load_report
from .statistics import difference


def compare(first: Path, second: Path) -> str:
    """The methods that both reports have, as a page. If both have an `items.parquet`, differences are paired
    over the questions that both asked, with McNemar's p; else they stand without one.

    Raises:
        ValueError: for a file that is no report, or reports without a common method.
    """
    reports = [load_report(path) for path in (first, second)]
    names = [name for name in reports[0]["methods"] if name in reports[1]["methods"]]
    if not names:
        raise ValueError(
            f"{first} and {second} have no method in common; got {', '.join(reports[0]['methods'])} in the "
            "first."
        )
    paths = [path.parent / "items.parquet" for path in (first, second)]
    pairs = paired(*(load_items(path) for path in paths)) if all(path.is_file() for path in paths) else {}
    rows = []
    for name in names:
        shared = name in pairs and len(pairs[name][0])
        values = (
            [right.mean() for right in pairs[name]]
            if shared
            else [report["methods"][name]["accuracy"] for report in reports]
        )
        cells = [TITLES.get(name, name), *(percent(value) for value in values)]
        if shared:
            row = difference(*pairs[name][::-1])
            rows.append([*cells, *difference_cells(row), f"{len(pairs[name][0]):,}"])
        else:
            rows.append([*cells, percent(values[1] - values[0]), "not paired", "-", "-"])
    columns = ["method", "first", "second", "second - first", "95 % interval", "McNemar p", "same questions"]
    lines = [f"first: {first}", f"second: {second}", "", *table(columns, rows), "", note(pairs)]
    changed = [
        f"- {name}: {one.get(name)} / {other.get(name)}"
        for key in ("config", "environment")
        for one, other in [[report.get(key, {}) for report in reports]]
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]
    return "\n".join([*lines, *(["", "What differs (first / second):", "", *changed] if changed else [])])


def note(pairs: dict) -> str:
    if pairs:
        return "Paired rows: both columns are over the same questions, those that both reports asked."
    return (
        "Not paired: each column is over its own report's questions, since items.parquet does not lie beside "
        "both reports."
    )


def paired(first: list[dict], second: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{method: whether each report was right} in choice form, over the common questions, in one order."""
    right = [
        {(row["method"], row["question_id"]): row["correct"] for row in rows if row["form"] == "choice"}
        for rows in (first, second)
    ]
    common = [key for key in right[0] if key in right[1]]
    return {
        method: tuple(np.array([answers[key] for key in common if key[0] == method]) for answers in right)
        for method in dict.fromkeys(method for method, _ in common)
    }


def main(arguments: list[str] | None = None) -> int:
    from .parsers import report

    options = report().parse_args(arguments)
    print(compare(options.report, options.other) if options.other else markdown(load_report(options.report)))
    next_commands(f"h2c plot {(options.other or options.report).parent}")
    return 0
