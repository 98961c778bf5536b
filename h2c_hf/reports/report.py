"""`report.json`: the results of a run, in one versioned file; and `report.md`, the same for people."""

import json
from pathlib import Path

import numpy as np

from ..atomic import write_text
from .environment import environment
from .items import item_rows, save_items
from .page import CONTROLS, markdown
from .schema import SCHEMA_VERSION, check_report
from .statistics import accuracy_row, difference, equivalence, macro_accuracy, recovered
from .subjects import CATEGORIES


def build_report(results: dict[str, dict], latency: dict[str, dict], questions: list[dict], **more) -> dict:
    """A report of one evaluation; its headline is the choice form, or else a set of questions in words.

    Args:
        results: the output of `h2c_hf.evaluation.runner.evaluate`; with `h2c`, `receiver`, `sharer` and a
            control.
        latency: {method: row}, as `h2c_hf.evaluation.latency.time_methods` returns it; may be empty.
        questions: those that were asked.
        more: further keys of the report.
    """
    correct = {name: result["correct"] for name, result in results.items()}
    subjects = [question["subject"] for question in questions]
    control = max((name for name in CONTROLS if name in correct), key=lambda name: correct[name].mean())
    report = {
        "schema_version": SCHEMA_VERSION,
        "methods": {
            name: {
                **accuracy_row(values),
                "macro_accuracy": macro_accuracy(values, subjects),
                **latency.get(name, {}),
            }
            for name, values in correct.items()
        },
        "recovered": recovered(correct["h2c"], correct["receiver"], correct["sharer"]),
        "information_gain": {**difference(correct["h2c"], correct[control]), "control": control},
        "comparisons": [
            {
                "first": "h2c",
                "second": name,
                **difference(correct["h2c"], correct[name]),
                "equivalence": equivalence(correct["h2c"], correct[name]),
            }
            for name in correct
            if name != "h2c"
        ],
        "by_subject": by_group(correct, subjects),
    }
    if known := [CATEGORIES[subject] for subject in subjects if subject in CATEGORIES]:
        kept = np.array([subject in CATEGORIES for subject in subjects])
        report["by_category"] = by_group({name: values[kept] for name, values in correct.items()}, known)
    if all(isinstance(result["predictions"][0], int) for result in results.values()):
        report["chance"] = float(np.mean([1 / len(question["choices"]) for question in questions]))
        report["confusion"] = {
            name: confusion(result["predictions"], questions) for name, result in results.items()
        }
    return {**report, "environment": environment(), **more}


def by_group(correct: dict[str, np.ndarray], groups: list[str]) -> dict[str, dict]:
    """{group: {"n", method: accuracy ...}}."""
    groups = np.array(groups)
    return {
        str(group): {
            "n": int((groups == group).sum()),
            **{name: float(values[groups == group].mean()) for name, values in correct.items()},
        }
        for group in np.unique(groups)
    }


def confusion(predictions: list[int], questions: list[dict]) -> list[list[int]]:
    """Counts, expected letter x predicted letter."""
    size = max(len(question["choices"]) for question in questions)
    counts = np.zeros((size, size), int)
    np.add.at(counts, ([question["answer"] for question in questions], predictions), 1)
    return counts.tolist()


def beats_controls(report: dict) -> bool:
    """Whether the interval of h2c's lead over its best control lies above zero."""
    low = report["information_gain"]["low"]
    return low is not None and low > 0


def save_report(
    report: dict, directory: str | Path, items: dict[str, tuple[list[dict], dict]] | None = None
) -> list[Path]:
    """Write `report.json`, `report.md` and, with ``items``, `items.parquet`; each atomically."""
    check_report(report, "The report")
    texts = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        "report.md": markdown(report),
    }
    paths = []
    for name, text in texts.items():
        paths.append(write_text(Path(directory) / name, text))
    if items:
        rows = [
            row for form, (questions, results) in items.items() for row in item_rows(form, questions, results)
        ]
        paths.append(save_items(rows, Path(directory) / "items.parquet"))
    return paths
