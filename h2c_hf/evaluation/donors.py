"""Whose states the shuffled control gives to a question: those about something else, with another answer."""

from functools import lru_cache

from .answers import contained, plain


_plain = lru_cache(maxsize=2**14)(plain)  # each question is compared with several others


def answers_of(question: dict) -> list[str]:
    """Every accepted answer, as SQuAD compares it."""
    return [_plain(answer) for answer in question.get("answers") or [question["choices"][question["answer"]]]]


def topic(question: dict) -> str:
    """The passage or text that a question is about; the question itself if there is none."""
    return question.get("group") or question.get("passage") or question["question"]


def can_give(donor: dict, question: dict) -> bool:
    """Whether the donor's states tell nothing of the question: it is about another entity and passage, has
    another answer, and its passage names neither the question's entity nor an answer to it."""
    entity, answers = question.get("entity"), answers_of(question)
    if (
        topic(donor) == topic(question)
        or (entity and donor.get("entity") == entity)
        or set(answers) & set(answers_of(donor))
    ):
        return False
    passage = _plain(donor.get("passage", ""))
    return not contained(passage, [*answers, *([entity] if entity else [])]) if passage else True


def donor_row(questions: list[dict], row: int, rows: list[int] | None = None) -> int:
    """The row that gives its states to `row`: the nearest before it in `rows` (round about), or else in all.

    Args:
        rows: a batch, by default all questions; it holds `row`.

    Raises:
        ValueError: if no question can give.
    """
    for candidates in ([rows] if rows else []) + [list(range(len(questions)))]:
        at = candidates.index(row)
        for other in candidates[:at][::-1] + candidates[at + 1 :][::-1]:
            if can_give(questions[other], questions[row]):
                return other
    raise ValueError(
        "The shuffled control needs a question about something else with another answer than "
        f"{answers_of(questions[row])}: got none among {len(questions)}. Ask more, or other questions."
    )
