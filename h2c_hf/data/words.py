"""Passages about Atlas' entities with an open vocabulary: values are words, or phrases of two, from a text.

Atlas' own values are a few hundred words, and a bridge may learn to choose among them. Here a value is any of
thousands of words, split by word: those that are trained on ("seen") and those that are kept for measuring
("new").
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..atlas.facts import Fact, load_facts
from ..atlas.questions import QUESTIONS, STATEMENTS
from .questions import in_words
from .repeat import REPEAT_INSTRUCTION
from .tables import expand, load_table, texts


if TYPE_CHECKING:
    from .sources import DataSource

WORD = re.compile(r"\b[a-z]{4,12}\b")
LEAST_OCCURRENCES = 3
NEW_WORDS = 600  # kept for measuring; at most a tenth of the list
PHRASES = 0.3  # share of the values that are two words


def count_words(rows: Iterable[dict]) -> list[str]:
    """The words of 4 to 12 lower-case letters that occur `LEAST_OCCURRENCES` times in the rows, sorted."""
    counts = Counter()
    for row in rows:
        for text in texts(row):
            counts.update(WORD.findall(text))
    return sorted(word for word, count in counts.items() if count >= LEAST_OCCURRENCES)


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """(seen, new): the new words are those with the lowest SHA-256, so the split depends on no seed."""
    ordered = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    new = min(NEW_WORDS, len(ordered) // 10)
    return sorted(ordered[new:]), sorted(ordered[:new])


def load_words(path: str) -> tuple[list[str], list[str]]:
    """(seen, new) words of a file or dataset.

    Raises:
        ValueError: if it cannot be read, or has fewer than 20 such words.
    """
    path = expand(path)
    modified = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0
    return _load_words(path, modified)


@lru_cache(maxsize=4)
def _load_words(path: str, modified: int) -> tuple[list[str], list[str]]:
    words = count_words(load_table(path))
    if len(words) < 20:
        raise ValueError(
            f"{path} has {len(words)} words of 4 to 12 lower-case letters that occur {LEAST_OCCURRENCES} "
            "times; expected at least 20."
        )
    return split_words(words)


def words_of(source: "DataSource") -> list[str]:
    """The words that are values in `source`.

    Raises:
        ValueError: without a word list.
    """
    if not source.words:
        raise ValueError(
            f"A data source of the form {source.form!r} has no word list; expected words=FILE, a text file's "
            "dataset such as .jsonl."
        )
    seen, new = load_words(source.words)
    return new if source.new_words else seen


def words_records(source: "DataSource") -> list[dict]:
    """Questions in words about the entities of `source.split`; the passage has `source.facts` statements
    about as many entities, each with a value of its own. One question about each fact, `source.variants`
    times, or `source.count` questions.

    Raises:
        ValueError: without a word list, or for more facts a passage than the split has entities.
    """
    words = words_of(source)
    pool = [fact for fact in load_facts() if fact.split == source.split]
    entities = len({fact.entity for fact in pool})
    if not 1 <= source.facts <= min(entities, len(words)) // 2:
        raise ValueError(
            f"A passage has {source.facts} facts; expected 1 to {min(entities, len(words)) // 2}."
        )
    rng = random.Random(f"words-{source.split}-{source.facts}-{source.new_words}-{source.seed}")
    order = rng.sample(pool, len(pool))
    count = source.count or source.variants * len(pool)
    return [passage(order[number % len(order)], pool, source.facts, words, rng) for number in range(count)]


def word_list_records(source: "DataSource") -> list[dict]:
    """Questions to repeat `source.fewest` to `source.most` random words, in which nothing lets one word be
    guessed from another: `source.count` questions, by default one for each word of the list.

    Raises:
        ValueError: without a word list.
    """
    words = words_of(source)
    rng = random.Random(f"word_list-{source.new_words}-{source.seed}")
    lists = [
        " ".join(rng.choices(words, k=rng.randint(source.fewest, source.most)))
        for _ in range(source.count or len(words))
    ]
    return [in_words(REPEAT_INSTRUCTION, [text], text, "word_list", group=text) for text in lists]


def passage(asked: Fact, pool: list[Fact], count: int, words: list[str], rng: random.Random) -> dict:
    """A question about `asked`, and a passage of `count` statements about different entities and values."""
    told = {asked.entity: asked}
    while len(told) < count:
        fact = rng.choice(pool)
        told.setdefault(fact.entity, fact)
    values: dict[str, None] = {}
    while len(values) < count:
        values[" ".join(rng.choices(words, k=1 + (rng.random() < PHRASES)))] = None
    facts = list(zip(told.values(), values, strict=True))
    statements = [rng.choice(STATEMENTS[fact.attribute]).format(fact.entity, value) for fact, value in facts]
    question = rng.choice(QUESTIONS[asked.attribute]).format(asked.entity)
    answer = facts[0][1]
    rng.shuffle(statements)
    return in_words(question, [answer], " ".join(statements), asked.attribute, entity=asked.entity)
