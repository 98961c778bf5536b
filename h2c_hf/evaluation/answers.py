"""Judge an answer in words as SQuAD does: without case, punctuation and articles, by all accepted answers."""

import re
import string
from collections import Counter

import numpy as np


def plain(text: str) -> str:
    """The text as SQuAD compares it; but a text of nothing else than articles and punctuation, such as the
    answer "A" or "+", stays as it is: an empty prediction is no answer to it."""
    lower = " ".join(text.lower().split())
    kept = "".join(character for character in lower if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split()) or lower


def exact(text: str, answers: list[str]) -> bool:
    """Whether the whole text is one of the answers."""
    return plain(text) in {plain(answer) for answer in answers}


def contained(text: str, answers: list[str]) -> bool:
    """Whether the text holds one of the answers, word by word."""
    return any(f" {plain(answer)} " in f" {plain(text)} " for answer in answers)


def f1(text: str, answers: list[str]) -> float:
    """Token F1 with the answer that is nearest."""
    return max(_f1(plain(text).split(), plain(answer).split()) for answer in answers)


def _f1(text: list[str], answer: list[str]) -> float:
    if not text or not answer:  # as SQuAD 2.0: nothing agrees with nothing only
        return float(text == answer)
    common = sum((Counter(text) & Counter(answer)).values())
    return 2 * common / (len(text) + len(answer))


def judged(predictions: list[str], questions: list[dict]) -> dict[str, np.ndarray]:
    """{"exact" (bool), "contained" (bool), "f1"}: an entry a question.

    Args:
        questions: each with its `answers`.
    """
    pairs = [(text, question["answers"]) for text, question in zip(predictions, questions, strict=True)]
    return {
        "exact": np.array([exact(*pair) for pair in pairs], bool),
        "contained": np.array([contained(*pair) for pair in pairs], bool),
        "f1": np.array([f1(*pair) for pair in pairs], float),
    }
