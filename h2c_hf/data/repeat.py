"""Reconstruction: the Sharer reads a text, and the Receiver, which does not see it, is to write it."""

import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .questions import in_words
from .tables import PARTS, digest, part_of, texts


if TYPE_CHECKING:
    from .sources import DataSource

REPEAT_INSTRUCTION = "Repeat the text."


def repeat_records(records: Iterable[dict], source: "DataSource") -> list[dict]:
    """Questions in words whose passage and answer are the same text: `source.fewest` to `source.most` words
    in a row, cut from a text of the records. Every text is used once before any is used again; `source.count`
    questions, by default one a text.

    Raises:
        ValueError: if no text has `source.fewest` words.
    """
    pool = [words for words in words_of(records, source.part) if len(words) >= source.fewest]
    if not pool:
        part = f" in the part {source.part!r}" if source.part else ""
        raise ValueError(
            f"{source.title} has no text of {source.fewest} words{part}; expected some, or a smaller "
            "'fewest'."
        )
    rng = random.Random(f"repeat-{source.part}-{source.seed}")
    rng.shuffle(pool)
    return [cut(pool[number % len(pool)], source, rng) for number in range(source.count or len(pool))]


def cut(words: list[str], source: "DataSource", rng: random.Random) -> dict:
    length = rng.randint(source.fewest, min(source.most, len(words)))
    start = rng.randrange(len(words) - length + 1)
    text = " ".join(words[start : start + length])
    return in_words(REPEAT_INSTRUCTION, [text], text, "repeat", group=digest(" ".join(words)))


def words_of(records: Iterable[dict], part: str | None) -> Iterator[list[str]]:
    """The different texts of the records, as lists of words. With a `part`, those of its records (see
    `part_of`) that stand in no record of an earlier part: a text of "validation" or "test" is never one of
    "train"."""
    order, found = list(PARTS), {}
    for record in records:
        own = [words for text in texts(record) if (words := text.split())]
        if own:
            place = part_of(" ".join(own[0]))
            for words in own:
                text = " ".join(words)
                found[text] = min(place, found.get(text, place), key=order.index)
    return (text.split(" ") for text, place in found.items() if part in (None, place))
