"""Context hand-off: the Sharer reads a passage and a question, the Receiver answers the question in words."""

import numpy as np

from ..atlas.questions import atlas_passages
from ..data.parsing import parse_answers
from ..data.rows import spread_rows
from ..reports.statistics import accuracy_row, mean_row
from .answers import judged
from .questions import read_rows


def hand_off_questions(
    path: str, name: str | None, split: str, limit: int | None = None, facts: int = 4
) -> list[dict]:
    """Questions with a `passage` and the `answers` that count as right.

    Args:
        path: "atlas" (true statements about the split's entities), "atlas_invented" (the same with values
            drawn anew, which nobody can know), or a dataset in the layout of SQuAD.
        limit: so many of them, spread over all.
        facts: statements a passage of Atlas.
    """
    if path in ("atlas", "atlas_invented"):
        questions = atlas_passages(split, facts, invented=path == "atlas_invented")
    else:
        questions = _squad(path, name, split)
    return [questions[row] for row in spread_rows(len(questions), limit)]


def _squad(path: str, name: str | None, split: str) -> list[dict]:
    questions = []
    for number, row in enumerate(read_rows(path, name, split, ("context", "question", "answers"))):
        try:
            answers = parse_answers(row["answers"])
        except ValueError as error:
            raise ValueError(f"Row {number} of {path} ({split}): {error}") from None
        if answers:
            questions.append(
                {
                    "question": row["question"], "passage": row["context"], "choices": answers[:1],
                    "answer": 0, "answers": answers, "subject": row.get("title") or "",
                }
            )  # fmt: skip
    return questions


def hand_off_rows(results: dict[str, dict], questions: list[dict]) -> dict[str, dict]:
    """{method: row}, see `words_row`."""
    return {name: words_row(judged(result["predictions"], questions)) for name, result in results.items()}


def words_row(found: dict[str, np.ndarray]) -> dict[str, float | int]:
    """A method's row: the accuracy is that of the exact match; `contained` is the share of texts that hold an
    answer, and `f1` the mean token F1, each with its 95 % interval.

    Args:
        found: the output of `judged`.
    """
    held, overlap = accuracy_row(found["contained"]), mean_row(found["f1"])
    return {
        **accuracy_row(found["exact"]),
        "contained": held["accuracy"], "contained_low": held["accuracy_low"],
        "contained_high": held["accuracy_high"], "f1": overlap["value"], "f1_low": overlap["low"],
        "f1_high": overlap["high"],
    }  # fmt: skip
