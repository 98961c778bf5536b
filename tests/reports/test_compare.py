import json

import numpy as np
import pytest

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.cli import main
from h2c_hf.reports.report import build_report, save_report
from h2c_hf.reports.statistics import difference


QUESTIONS = atlas_questions("test")[:200]


def saved(directory, share: float, questions: list[dict], seed: int = 0) -> np.ndarray:
    """A report in which h2c is right on the given share of questions."""
    directory.mkdir()
    rng = np.random.default_rng(seed)
    results = {}
    for name in ("receiver", "h2c", "sharer", "zeros"):
        correct = rng.random(len(questions)) < (share if name == "h2c" else 0.5)
        predictions = [
            q["answer"] if right else (q["answer"] + 1) % 4
            for q, right in zip(questions, correct, strict=True)
        ]
        results[name] = {
            "correct": correct,
            "predictions": predictions,
            "scores": [[0.0] * 4] * len(questions),
        }
    save_report(build_report(results, {}, questions), directory, {"choice": (questions, results)})
    return results["h2c"]["correct"]


def test_two_reports_are_paired_over_the_questions_that_both_asked(tmp_path, capsys):
    """In another order, and with questions that only one of them asked."""
    first = saved(tmp_path / "first", 0.5, QUESTIONS[:150])
    second = saved(tmp_path / "second", 0.7, QUESTIONS[50:][::-1], seed=1)
    assert main(["report", str(tmp_path / "first"), str(tmp_path / "second" / "report.json")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| H2C"))
    expected = difference(second[::-1][:100], first[50:])
    assert (
        line.endswith("| 100 |")
        and f"{100 * expected['value']:.1f} %" in line
        and f"{expected['p']:.1g}" in line
    )
    assert f"| {100 * first[50:].mean():.1f} % | {100 * second[::-1][:100].mean():.1f} % |" in line, (
        "both over the shared questions"
    )
    (tmp_path / "second" / "items.parquet").unlink()
    main(["report", str(tmp_path / "first"), str(tmp_path / "second")])
    assert "not paired" in capsys.readouterr().out


def test_one_report_is_printed(tmp_path, capsys):
    saved(tmp_path / "first", 0.5, QUESTIONS)
    assert main(["report", str(tmp_path / "first")]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "first" / "report.md").read_text().strip()


def test_what_is_no_report_is_refused_in_one_sentence(tmp_path, capsys):
    saved(tmp_path / "first", 0.5, QUESTIONS)
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"schema_version": 1}))
    assert main(["report", str(tmp_path / "first"), str(path)]) == 2
    assert "is not as the schema of reports has it" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nothing.json")]) == 2
    (tmp_path / "first" / "items.parquet").write_bytes(b"PAR1")
    saved(tmp_path / "second", 0.5, QUESTIONS)
    assert main(["report", str(tmp_path / "first"), str(tmp_path / "second")]) == 2
    assert "is not the items of a report" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("share", [0.55])
def test_questions_needed_is_told_where_a_difference_is_not_significant(tmp_path, share):
    saved(tmp_path / "first", share, QUESTIONS)
    report = json.loads((tmp_path / "first" / "report.json").read_text())
    weak = [row for row in report["comparisons"] if row["p"] >= 0.05]
    assert weak and all(row["questions_needed"] > 200 for row in weak if row["value"])
