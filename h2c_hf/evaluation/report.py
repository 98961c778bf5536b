"""`report.json`: what a run measured, in one versioned file, checked when it is read; and `report.md`, the same for people."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np

from .environment import environment
from .items import item_rows, save_items
from .page import TITLES as TITLES
from .page import interval as interval
from .page import markdown
from .page import percent as percent
from .statistics import accuracy_row, difference, macro_accuracy, recovered
from .subjects import CATEGORIES


SCHEMA_VERSION = 1
CONTROLS = ("shuffled", "zeros", "noise", "adapter")


def build_report(results: dict[str, dict], latency: dict[str, dict], questions: list[dict], **more) -> dict:
    """A report of one evaluation in choice form.

    Args:
        results: what `h2c_hf.evaluation.runner.evaluate` returned; with `h2c`, `receiver`, `sharer` and a control.
        latency: {method: row}, as in what `h2c_hf.evaluation.latency.measure` returned; may be empty.
        questions: those that were asked.
        more: further keys of the report.
    """
    correct = {name: result["correct"] for name, result in results.items()}
    subjects = [question["subject"] for question in questions]
    control = max((name for name in CONTROLS if name in correct), key=lambda name: correct[name].mean())
    report = {
        "schema_version": SCHEMA_VERSION,
        "methods": {
            name: {**accuracy_row(values), "macro_accuracy": macro_accuracy(values, subjects), **latency.get(name, {})}
            for name, values in correct.items()
        },
        "recovered": recovered(correct["h2c"], correct["receiver"], correct["sharer"]),
        "information_gain": {**difference(correct["h2c"], correct[control]), "control": control},
        "comparisons": [{"first": "h2c", "second": name, **difference(correct["h2c"], correct[name])} for name in correct if name != "h2c"],
        "by_subject": by_group(correct, subjects),
    }
    if known := [CATEGORIES[subject] for subject in subjects if subject in CATEGORIES]:
        kept = np.array([subject in CATEGORIES for subject in subjects])
        report["by_category"] = by_group({name: values[kept] for name, values in correct.items()}, known)
    report["confusion"] = {name: confusion(result["predictions"], questions) for name, result in results.items()}
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
    size = len(questions[0]["choices"])
    counts = np.zeros((size, size), int)
    np.add.at(counts, ([question["answer"] for question in questions], predictions), 1)
    return counts.tolist()


def beats_controls(report: dict) -> bool:
    """Whether the interval of h2c's lead over its best control lies above zero."""
    low = report["information_gain"]["low"]
    return low is not None and low > 0


def save_report(report: dict, directory: str | Path, items: dict[str, tuple[list[dict], dict]] | None = None) -> list[Path]:
    """Write `report.json`, `report.md` and, with ``items`` {form: (questions, results)}, `items.parquet`; each beside its place
    first, so that no half of one is ever there."""
    check_report(report, "The report")
    texts = {"report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n", "report.md": markdown(report)}
    paths = []
    for name, text in texts.items():
        path = Path(directory) / name
        path.with_suffix(path.suffix + ".part").write_text(text, encoding="utf-8")
        paths.append(path.with_suffix(path.suffix + ".part").replace(path))
    if items:
        rows = [row for form, (questions, results) in items.items() for row in item_rows(form, questions, results)]
        paths.append(save_items(rows, Path(directory) / "items.parquet"))
    return paths


def load_report(path: str | Path) -> dict:
    """Read a `report.json`.

    Raises:
        ValueError: where it is no report, one of another schema version, or one that the schema refuses.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        found = report["schema_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report: expected JSON with a schema_version, {error!r}.") from None
    if found != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version {found}; expected {SCHEMA_VERSION}.")
    check_report(report, path)
    return report


def check_report(report: dict, name: str | Path) -> None:
    """
    Raises:
        ValueError: naming the first place where `report.schema.json` is not met.
    """
    error = jsonschema.exceptions.best_match(schema().iter_errors(report))
    if error is not None:
        raise ValueError(f"{name} is not as the schema of reports has it: {error.json_path}: {error.message[:300]}")


@cache
def schema() -> jsonschema.Draft202012Validator:
    text = files("h2c_hf.evaluation").joinpath("report.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
