import json

import numpy as np
import pytest

from h2c_hf.reports.page import markdown
from h2c_hf.reports.report import beats_controls, build_report, save_report
from h2c_hf.reports.schema import load_report


METHODS = {
    "receiver": 0.25,
    "text_to_text": 0.9,
    "h2c": 0.85,
    "sharer": 0.95,
    "shuffled": 0.26,
    "zeros": 0.24,
}


def report(**accuracies) -> dict:
    rng = np.random.default_rng(0)
    questions = [
        {"subject": "capital" if row % 2 else "region", "answer": row % 4, "choices": [*"wxyz"]}
        for row in range(800)
    ]
    results = {}
    for name, value in {**METHODS, **accuracies}.items():
        correct = rng.random(800) < value
        results[name] = {
            "correct": correct,
            "predictions": [row % 4 if right else (row + 1) % 4 for row, right in enumerate(correct)],
        }
    latency = {name: {"ttft_ms_median": 5.0, "ttft_ms_p90": 6.0} for name in results}
    return build_report(results, latency, questions, gates={"key": [0.5, None], "value": [0.6, 0.7]})


def test_a_report_has_what_others_rely_on(tmp_path):
    save_report(report(), tmp_path)
    loaded = load_report(tmp_path / "report.json")
    assert loaded["schema_version"] == 1
    for name in METHODS:
        row = loaded["methods"][name]
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["n"] == 800 and row["ttft_ms_median"] == 5.0
    for key in ("recovered", "information_gain"):
        assert loaded[key]["low"] <= loaded[key]["value"] <= loaded[key]["high"]
    assert loaded["information_gain"]["control"] == "shuffled"
    assert set(loaded["by_subject"]) == {"capital", "region"}
    assert not list(tmp_path.glob("*.part"))


def test_what_the_figures_need_is_right():
    made = report()
    for name, counts in made["confusion"].items():
        counts = np.array(counts)
        assert counts.shape == (4, 4) and counts.sum() == 800 and (counts.sum(1) == 200).all()
        assert np.trace(counts) / 800 == pytest.approx(made["methods"][name]["accuracy"])
        # Rows are expected, columns predicted.
        assert counts[0, 1] == 200 - counts[0, 0] and counts[1, 0] == 0
        groups = made["by_subject"].values()
        assert made["methods"][name]["macro_accuracy"] == pytest.approx(
            np.mean([row[name] for row in groups])
        )
    assert [row["second"] for row in made["comparisons"]] == [name for name in METHODS if name != "h2c"]
    for row in made["comparisons"]:
        assert row["value"] == pytest.approx(
            made["methods"]["h2c"]["accuracy"] - made["methods"][row["second"]]["accuracy"]
        )
        assert (row["questions_needed"] is None) == (row["p"] < 0.05)


def test_mmlu_subjects_are_grouped():
    correct = np.array([True, False, True, True])
    names = ["anatomy", "astronomy", "philosophy", "astronomy"]
    results = {name: {"correct": correct, "predictions": [0, 1, 0, 0]} for name in METHODS}
    questions = [{"subject": name, "answer": 0, "choices": ["a", "b"]} for name in names]
    categories = build_report(results, {}, questions)["by_category"]
    assert {name: (row["n"], row["h2c"]) for name, row in categories.items()} == {
        "STEM": (2, 0.5),
        "humanities": (1, 1.0),
        "other": (1, 1.0),
    }


def test_the_page_says_what_the_json_says():
    made = report()
    page = markdown(made)
    for row in made["methods"].values():
        assert f"{100 * row['accuracy']:.1f} %" in page and f"{100 * row['accuracy_low']:.1f} %" in page
    assert f"{100 * made['recovered']['value']:.1f} %" in page


def test_h2c_must_beat_its_best_control():
    assert beats_controls(report())
    assert not beats_controls(report(h2c=0.26))
    assert not beats_controls(report(zeros=0.85))  # one control as good is enough to sink it


def test_what_is_no_report_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is no report"):
        load_report(path)
    path.write_text(json.dumps({**report(), "methods": {"h2c": {"accuracy": 1.2}}}))
    with pytest.raises(ValueError, match=r"not as the schema of reports has it: \$.methods"):
        load_report(path)
    path.write_text(json.dumps({"schema_version": 7}))
    with pytest.raises(ValueError, match="schema_version 7; expected 1"):
        load_report(path)
