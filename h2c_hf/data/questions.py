"""Questions by letter (the columns of `cais/mmlu`) or in words, with or without a passage for the Sharer.

A question in words has `question`, `answers` (all that count as right; the first is the target), `subject`,
and in the private regime `passage`. It has `choices` and `answer` as well, the first answer as the only
choice, so that one code path asks both kinds.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..prompts import FORMS, choice_answer, choice_prompt, open_answer, open_prompt, user_turn, with_passage
from .exchanges import Exchange, UnusableRecordError
from .parsing import parse_answer, parse_answers, parse_choices, parse_list


if TYPE_CHECKING:
    from .sources import DataSource


def in_words(
    question: str, answers: list[str], passage: str | None = None, subject: str = "", **more
) -> dict:
    """A question that is answered in words.

    Raises:
        UnusableRecordError: if there is no answer, or the question or the passage is empty.
    """
    answers = [answer for answer in answers if isinstance(answer, str) and answer.strip()]
    if not answers:
        raise UnusableRecordError("no answer")
    if not question.strip() or (passage is not None and not passage.strip()):
        raise UnusableRecordError("empty message")
    told = {} if passage is None else {"passage": passage}
    return {
        "question": question,
        "choices": answers[:1],
        "answer": 0,
        "answers": answers,
        "subject": subject,
        **told,
        **more,
    }


def answered(question: dict) -> Exchange:
    """The exchange of a question in words: the Sharer reads the passage, if any, before the question."""
    prompt = open_prompt(question)
    if "passage" in question:
        return user_turn(prompt), open_answer(question), user_turn(with_passage(question["passage"], prompt))
    return user_turn(prompt), open_answer(question)


def answers_of(record: dict) -> list[str]:
    """The texts in a record's `answers`; see `parse_answers`.

    Raises:
        UnusableRecordError: if that is neither a list nor a mapping.
        ValueError: if it is a text that writes neither.
    """
    if not isinstance(record["answers"], str | list | dict):
        raise UnusableRecordError("answers is no list of texts")
    return parse_answers(record["answers"])


def closed_book(record: dict, source: "DataSource") -> dict:
    """A record with `question` and `answers`, all that are accepted, as WebQuestions; both models read it."""
    return in_words(record["question"], answers_of(record), subject=record.get("subject") or "")


def with_choice(record: dict) -> dict:
    """The record with its choices as texts and its answer as an index.

    Raises:
        UnusableRecordError: if the answer is none of the choices.
        ValueError: for choices that are a text which writes no list.
    """
    choices = parse_list(record, "choices") if isinstance(record["choices"], str) else record["choices"]
    try:
        choices = parse_choices(choices)
        return {**record, "choices": choices, "answer": parse_answer(record["answer"], choices)}
    except ValueError:
        raise UnusableRecordError("answer is none of the choices") from None


def read_choice_question(record: dict, source: "DataSource") -> Iterator[Exchange]:
    """Multiple choice in the columns of `cais/mmlu`. The answer is an index or a letter."""
    record = with_choice(record)
    try:
        if source.form == "hand_off":
            yield answered(record)
            return
        if source.form == "told":
            for_both = record.get("hint")
            told = user_turn(choice_prompt(record, record.get("told") or for_both))
            yield told, choice_answer(record), user_turn(choice_prompt(record, for_both))
            return
        prompt, answer = FORMS[source.form]
        yield user_turn(prompt(record)), answer(record)
    except (ValueError, TypeError):
        raise UnusableRecordError("answer is none of the choices") from None
