"""Context hand-off: the Sharer reads a passage and a question, the Receiver the question alone, and answers in words."""

import random
import re
import string

import numpy as np

from ..atlas.facts import load_facts
from ..atlas.questions import QuestionWriter, statement
from .questions import read_rows
from .statistics import accuracy_row


SENTENCES = 4


def hand_off_questions(path: str, name: str | None, split: str, limit: int | None = None) -> list[dict]:
    """Questions with a `passage` and the `answers` that count as right.

    Args:
        path: "atlas" (true statements about the split's entities), "atlas_invented" (the same with values drawn anew, which
            nobody can know), or a dataset in the layout of SQuAD.
        limit: so many of them, spread over all.
    """
    questions = atlas_passages(split, path == "atlas_invented") if path in ("atlas", "atlas_invented") else _squad(path, name, split)
    if limit and limit < len(questions):
        questions = [questions[row] for row in np.linspace(0, len(questions) - 1, limit, dtype=int)]
    return questions


def atlas_passages(split: str, invented: bool = False, seed: int = 0) -> list[dict]:
    """A question about each fact of the split, with a passage of that fact among `SENTENCES` - 1 about other entities."""
    everything = load_facts()
    writer, rng = QuestionWriter(everything), random.Random(f"{split}-passages-{seed}")
    facts = [fact for fact in everything if fact.split == split]
    if invented:
        facts = [type(fact)(**{**vars(fact), "value": rng.choice(writer.values[fact.attribute])}) for fact in facts]
    questions = []
    for fact in facts:
        told = [fact, *rng.sample([other for other in facts if other.entity != fact.entity], SENTENCES - 1)]
        passage = " ".join(statement(one) for one in rng.sample(told, len(told)))
        asked = writer.write(fact, rng)
        questions.append(_question(asked["question"], passage, [fact.value], fact.attribute))
    return questions


def _squad(path: str, name: str | None, split: str) -> list[dict]:
    rows = read_rows(path, name, split, ("context", "question", "answers"))
    return [_question(r["question"], r["context"], r["answers"]["text"], r.get("title") or "") for r in rows if r["answers"]["text"]]


def _question(question: str, passage: str, answers: list[str], subject: str) -> dict:
    return {"question": question, "passage": passage, "choices": answers[:1], "answer": 0, "answers": answers, "subject": subject}


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
