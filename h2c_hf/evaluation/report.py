"""`report.json`: what a run measured, in one versioned file; and `report.md`, the same for people."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .statistics import accuracy_interval, difference, recovered


SCHEMA_VERSION = 1
CONTROLS = ("shuffled", "zeros", "noise")
LIBRARIES = ("h2c_hf", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "scipy")
TITLES = {
    "receiver": "Receiver", "text_to_text": "text-to-text", "h2c": "H2C", "sharer": "Sharer",
    "shuffled": "control: shuffled", "zeros": "control: zeros", "noise": "control: noise",
}  # fmt: skip


def build_report(results: dict[str, dict], latency: dict[str, dict], questions: list[dict], **more) -> dict:
    """A report of one evaluation in choice form.

    Args:
        results: what `h2c_hf.evaluation.runner.evaluate` returned; with `h2c`, `receiver`, `sharer` and a control.
        latency: what `h2c_hf.evaluation.latency.time_to_first_token` returned.
        questions: those that were asked.
        more: further keys of the report.
    """
    correct = {name: result["correct"] for name, result in results.items()}
    control = max((name for name in CONTROLS if name in correct), key=lambda name: correct[name].mean())
    return {
        "schema_version": SCHEMA_VERSION,
        "methods": {name: {**accuracy_row(values), **latency[name]} for name, values in correct.items()},
        "recovered": recovered(correct["h2c"], correct["receiver"], correct["sharer"]),
        "information_gain": {**difference(correct["h2c"], correct[control]), "control": control},
        "by_subject": by_subject(correct, questions),
        "environment": {
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            **{library: version(library) for library in LIBRARIES},
        },
        **more,
    }


def accuracy_row(correct: np.ndarray) -> dict[str, float | int]:
    accuracy, low, high = accuracy_interval(correct)
    return {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "n": len(correct)}


def by_subject(correct: dict[str, np.ndarray], questions: list[dict]) -> dict[str, dict]:
    """{subject: {"n", method: accuracy ...}}."""
    subjects = np.array([question["subject"] for question in questions])
    return {
        str(subject): {
            "n": int((subjects == subject).sum()),
            **{name: float(values[subjects == subject].mean()) for name, values in correct.items()},
        }
        for subject in np.unique(subjects)
    }


def beats_controls(report: dict) -> bool:
    """Whether the interval of h2c's lead over its best control lies above zero."""
    low = report["information_gain"]["low"]
    return low is not None and low > 0


def markdown(report: dict) -> str:
    """The report as a page."""
    gain, share = report["information_gain"], report["recovered"]
    lines = [
        "| method | accuracy | 95 % interval | questions | time to first token, ms |",
        "| --- | ---: | :---: | ---: | ---: |",
        *(
            f"| {TITLES[name]} | {percent(row['accuracy'])} | {percent(row['accuracy_low'])} - {percent(row['accuracy_high'])} "
            f"| {row['n']:,} | {row['ttft_ms_median']:.1f} |"
            for name, row in report["methods"].items()
        ),
        "",
        f"- recovered, (H2C - Receiver) / (Sharer - Receiver): {interval(share)}",
        f"- information gain, H2C - best control ({gain['control']}): {interval(gain)}, McNemar p = {gain['p']:.1g}",
    ]
    if "open_form" in report:
        rows = [f"{TITLES[name]} {percent(row['accuracy'])}" for name, row in report["open_form"].items()]
        lines.append(f"- open form (the answer in words, exact match): {', '.join(rows)}")
    lines += ["", "By subject:", "", *subject_table(report["by_subject"])]
    for example in report.get("examples", []):
        lines += ["", f"**{example['question']}** {'; '.join(example['choices'])}. Expected: {example['expected']}.", ""]
        lines += ["| method | letter | in words, without the choices |", "| --- | --- | --- |"]
        lines += [f"| {TITLES[name]} | {row['choice']} | {row['open']} |" for name, row in example["answers"].items()]
    return "\n".join(lines) + "\n"


def subject_table(subjects: dict[str, dict]) -> list[str]:
    names = [name for name in next(iter(subjects.values())) if name != "n"]
    return [
        f"| subject | questions | {' | '.join(TITLES[name] for name in names)} |",
        f"| --- | ---: |{' ---: |' * len(names)}",
        *(f"| {subject} | {row['n']} | {' | '.join(percent(row[name]) for name in names)} |" for subject, row in subjects.items()),
    ]


def percent(fraction: float | None) -> str:
    return "not defined" if fraction is None else f"{100 * fraction:.1f} %"


def interval(row: dict) -> str:
    return f"{percent(row['value'])} (95 % interval {percent(row['low'])} to {percent(row['high'])})"


def save_report(report: dict, directory: str | Path) -> list[Path]:
    """Write `report.json` and `report.md`; each beside its place first, so that no half of one is ever there."""
    texts = {"report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n", "report.md": markdown(report)}
    paths = []
    for name, text in texts.items():
        path = Path(directory) / name
        path.with_suffix(path.suffix + ".part").write_text(text, encoding="utf-8")
        paths.append(path.with_suffix(path.suffix + ".part").replace(path))
    return paths


def load_report(path: str | Path) -> dict:
    """Read a `report.json`.

    Raises:
        ValueError: where it is no report, or one of another schema version.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        found = report["schema_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report: expected JSON with a schema_version, {error!r}.") from None
    if found != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version {found}; expected {SCHEMA_VERSION}.")
    return report
