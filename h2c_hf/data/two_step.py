"""Questions in two steps: "the capital of the country that X is in", when the passage says which country that
is, and what its capital is.

Each passage tells of two cities in two countries, so that a fact of the right kind is not enough: the second
step needs the first.
"""

import random
from typing import TYPE_CHECKING

from ..atlas.facts import load_facts
from ..atlas.questions import STATEMENTS
from .questions import in_words
from .words import words_of


if TYPE_CHECKING:
    from .sources import DataSource

ATTRIBUTES = ("capital", "currency")  # of a country
QUESTIONS = (
    "What is the {} of the country that {} is in?",
    "The city of {1} is in a country. What is its {0}?",
)


def two_step_records(source: "DataSource") -> list[dict]:
    """Questions in words about the cities of `source.split`; the values are words, drawn anew for each
    passage. `source.variants` questions a city, or `source.count` questions.

    Raises:
        ValueError: without a word list.
    """
    words, facts = words_of(source), [fact for fact in load_facts() if fact.split == source.split]
    cities, countries = (
        sorted({fact.entity for fact in facts if fact.kind == kind}) for kind in ("city", "country")
    )
    rng = random.Random(f"two_step-{source.split}-{source.new_words}-{source.seed}")
    order = rng.sample(cities, len(cities))
    count = source.count or source.variants * len(cities)
    return [passage(order[number % len(order)], cities, countries, words, rng) for number in range(count)]


def passage(city: str, cities: list[str], countries: list[str], words: list[str], rng: random.Random) -> dict:
    """A question about `city`, and a passage of four statements: two cities, each in a country, and an
    attribute of both countries."""
    attribute = rng.choice(ATTRIBUTES)
    other = rng.choice([name for name in cities if name != city])
    lands, values = rng.sample(countries, 2), rng.sample(words, 2)
    statements = [
        text
        for place, country, value in zip((city, other), lands, values, strict=True)
        for text in (
            STATEMENTS["country"][0].format(place, country),
            rng.choice(STATEMENTS[attribute]).format(country, value),
        )
    ]
    rng.shuffle(statements)
    question = rng.choice(QUESTIONS).format(attribute, city)
    return in_words(question, values[:1], " ".join(statements), attribute, entity=city)
