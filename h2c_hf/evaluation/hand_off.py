"""Context hand-off: the Sharer reads a passage and a question, the Receiver the question alone, and answers in words."""

import re
import string

import numpy as np

from ..atlas.questions import atlas_passages
from ..data.rows import spread_rows
from .questions import read_rows
from .statistics import accuracy_row


def hand_off_questions(path: str, name: str | None, split: str, limit: int | None = None, facts: int = 4) -> list[dict]:
    """Questions with a `passage` and the `answers` that count as right.

    Args:
        path: "atlas" (true statements about the split's entities), "atlas_invented" (the same with values drawn anew, which
            nobody can know), or a dataset in the layout of SQuAD.
        limit: so many of them, spread over all.
        facts: statements a passage of Atlas.
    """
    if path in ("atlas", "atlas_invented"):
        questions = atlas_passages(split, facts, invented=path == "atlas_invented")
    else:
        questions = _squad(path, name, split)
    return [questions[row] for row in spread_rows(len(questions), limit)]


def _squad(path: str, name: str | None, split: str) -> list[dict]:
    rows = read_rows(path, name, split, ("context", "question", "answers"))
    answered = [(row, row["answers"]["text"]) for row in rows if row["answers"]["text"]]
    return [
        {
            "question": row["question"], "passage": row["context"], "choices": answers[:1], "answer": 0, "answers": answers,
            "subject": row.get("title") or "",
        }
        for row, answers in answered
    ]  # fmt: skip


def hand_off_rows(results: dict[str, dict], questions: list[dict]) -> dict[str, dict]:
    """{method: accuracy row of the exact match, and `contained`, the share of texts that hold an answer}, as SQuAD compares:
    without case, punctuation and articles."""
    rows = {}
    for name, result in results.items():
        pairs = [
            (plain(text), [plain(answer) for answer in q["answers"]]) for text, q in zip(result["predictions"], questions, strict=True)
        ]
        exact = np.array([text in answers for text, answers in pairs])
        contained = np.array([any(f" {answer} " in f" {text} " for answer in answers) for text, answers in pairs])
        rows[name] = {**accuracy_row(exact), "contained": float(contained.mean())}
    return rows


def plain(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
