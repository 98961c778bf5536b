"""Passages in the layout of SQuAD: the Sharer reads passage and question, the Receiver the question only."""

import re
from typing import TYPE_CHECKING

from .exchanges import UnusableRecordError
from .parsing import parse_text
from .questions import answers_of, in_words
from .tables import digest


if TYPE_CHECKING:
    from .sources import DataSource


def squad_question(record: dict, source: "DataSource") -> dict:
    """A record with `context`, `question` and `answers` (`text` and `answer_start`), cropped to `source.crop`
    words if that is not 0."""
    passage, answers = record["context"], answers_of(record)
    if not answers:  # SQuAD 2.0 has questions that the passage does not answer
        raise UnusableRecordError("no answer")
    if source.crop:
        starts = parse_text(record["answers"]).get("answer_start")
        passage = crop(passage, starts[0], source.crop)
    return in_words(
        record["question"], answers, passage, record.get("title") or "", group=digest(record["context"])
    )


def crop(passage: str, position: int, most: int) -> str:
    """The sentence that holds the character at `position`, with whole sentences around it, `most` words.

    The sentence itself is kept whole even if it is longer. Sentences after it are taken first, then those
    before, by turns.
    """
    sentences = re.split(r"(?<=[.!?])\s+", passage)
    starts, at = [], 0
    for sentence in sentences:
        at = passage.index(sentence, at)
        starts.append(at)
        at += len(sentence)
    first = last = max(number for number, start in enumerate(starts) if start <= position or number == 0)
    words = [len(sentence.split()) for sentence in sentences]
    room, grew = most - words[first], True
    while grew:
        grew = False
        if last + 1 < len(sentences) and words[last + 1] <= room:
            last += 1
            room -= words[last]
            grew = True
        if first > 0 and words[first - 1] <= room:
            first -= 1
            room -= words[first]
            grew = True
    return passage[starts[first] : starts[last] + len(sentences[last])]
