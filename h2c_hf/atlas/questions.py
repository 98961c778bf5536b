"""Atlas questions: a fact as an MMLU-style question, in varied words; distractors give nothing away."""

import random
from collections import defaultdict
from dataclasses import replace

from .facts import Fact, load_facts


# Names stand inside the sentence, never first: a tokenizer meets each in one form, with a leading space.
QUESTIONS = {
    "country": ["Which country is {} in?", "In which country is the city of {}?",
                "The city of {} is part of which country?"],
    "region": ["Which region is {} in?", "In which region is the city of {}?",
               "The city of {} is part of which region?"],
    "capital": ["What is the capital of {}?", "Which city is the capital of {}?",
                "The capital of {} is which city?"],
    "continent": ["Which continent is {} on?", "On which continent is {}?",
                  "What continent does {} belong to?"],
    "currency": ["What is the currency of {}?", "Which currency is used in {}?",
                 "With which currency does one pay in {}?"],
    "symbol": ["What is the symbol of {}?", "Which symbol has the element {}?",
               "The element {} has which symbol?"],
    "period": ["What is the period of {}?", "Which period is the element {} in?",
               "The element {} is in which period?"],
    "block": ["What is the block of {}?", "Which block is the element {} in?",
              "The element {} is in which block?"],
    "constellation": [
        "Which constellation is {} in?", "In which constellation is the star {}?",
        "The star {} is part of which constellation?",
    ],
    "instrument": ["Which instrument does {} play?", "What does the musician {} play?",
                   "The musician {} plays which instrument?"],
    "position": ["Which position does {} play?", "In which position is the athlete {}?",
                 "The athlete {} has which position?"],
    "sport": ["Which sport does {} play?", "What sport is the athlete {} known for?",
              "The athlete {} plays which sport?"],
    "sector": ["Which sector is {} in?", "In which sector is the company {}?",
               "The company {} belongs to which sector?"],
}  # fmt: skip

STATEMENTS = {
    "country": ["The city of {} is in the country {}.", "We know that {} is in {}."],
    "region": ["The city of {} is in the region {}.", "We know that {} is in {}."],
    "capital": ["The capital of {} is {}.", "We know that {} has the capital {}."],
    "continent": ["The country {} is on the continent {}.", "We know that {} is on {}."],
    "currency": ["The currency of {} is {}.", "We know that {} pays with {}."],
    "symbol": ["The symbol of {} is {}.", "We know that {} has the symbol {}."],
    "period": ["The period of {} is {}.", "We know that {} is in period {}."],
    "block": ["The block of {} is {}.", "We know that {} is in block {}."],
    "constellation": ["The star {} is in the constellation {}.", "We know that {} is in {}."],
    "instrument": ["The musician {} plays the {}.", "We know that {} plays {}."],
    "position": ["The athlete {} plays as {}.", "We know that {} has the position {}."],
    "sport": ["The athlete {} plays the sport {}.", "We know that {} plays {}."],
    "sector": ["The company {} is in the sector {}.", "We know that {} belongs to {}."],
}

CHOICES = 4


def statement(fact: Fact, rng: random.Random | None = None) -> str:
    """The fact as a sentence: the first wording, or one that ``rng`` draws."""
    wordings = STATEMENTS[fact.attribute]
    return (rng.choice(wordings) if rng else wordings[0]).format(fact.entity, fact.value)


class QuestionWriter:
    """Writes questions about facts. Distractors are other values of the attribute, drawn as often as the
    facts hold them, so that a common value is as often a wrong choice as it is the right one."""

    def __init__(self, facts: list[Fact]):
        self.values = defaultdict(list)
        for fact in facts:
            self.values[fact.attribute].append(fact.value)

    def choices(
        self, attribute: str, answer: str, rng: random.Random, position: int | None = None
    ) -> list[str]:
        """``CHOICES`` different values of the attribute, the answer at ``position`` (default: random)."""
        distractors = set()
        # All drawn again on a clash: keeps the draw free of order effects.
        while len(distractors) < CHOICES - 1:
            distractors = set(rng.choices(self.values[attribute], k=CHOICES - 1)) - {answer}
        choices = rng.sample(sorted(distractors), CHOICES - 1)
        choices.insert(rng.randrange(CHOICES) if position is None else position, answer)
        return choices

    def write(self, fact: Fact, rng: random.Random, position: int | None = None) -> dict:
        """One question in the columns of ``cais/mmlu``, and the entity it is about."""
        choices = self.choices(fact.attribute, fact.value, rng, position)
        return {
            "question": rng.choice(QUESTIONS[fact.attribute]).format(fact.entity),
            "choices": choices,
            "answer": choices.index(fact.value),
            "subject": fact.attribute,
            "entity": fact.entity,
        }


def atlas_questions(split: str, variants: int = 1, seed: int = 0) -> list[dict]:
    """The questions of a split, ``variants`` a fact (other words, other choices), always the same for a seed.

    Each letter is right equally often, so that a method that always says the same letter scores chance
    exactly.
    """
    facts = load_facts()
    writer, rng = QuestionWriter(facts), random.Random(f"{split}-{seed}")
    asked = [fact for _ in range(variants) for fact in facts if fact.split == split]
    positions = [index % CHOICES for index in range(len(asked))]
    rng.shuffle(positions)
    return [writer.write(fact, rng, position) for fact, position in zip(asked, positions, strict=True)]


def atlas_passages(
    split: str, facts: int = 4, invented: bool = False, seed: int = 0, values: int = 0
) -> list[dict]:
    """A question about each fact of the split, answered by the text of its one choice, and its `passage`:
    ``facts`` statements, that fact's among others about other entities. ``invented``: all values are drawn
    anew, so that nobody can know them. ``values``: so many questions about each *value* that facts have
    instead, each about an entity that is drawn: a word that few facts have is then asked for as often as any
    other. These are invented, too.

    Raises:
        ValueError: for fewer than 1 fact a passage, or more than there are.
    """
    everything = load_facts()
    writer, rng = QuestionWriter(everything), random.Random(f"{split}-passages-{seed}")
    pool = [fact for fact in everything if fact.split == split]
    if not 1 <= facts <= len(pool) // 2:
        raise ValueError(
            f"A passage has {facts} facts; expected 1 to {len(pool) // 2} of the {len(pool)} of {split}."
        )
    if invented or values:
        pool = [replace(fact, value=rng.choice(writer.values[fact.attribute])) for fact in pool]
    asked = _about_each_value(pool, writer, values, rng) if values else pool
    questions = []
    for fact in asked:
        told = [fact, *rng.sample([other for other in pool if other.entity != fact.entity], facts - 1)]
        passage = " ".join(statement(one, rng if values else None) for one in rng.sample(told, len(told)))
        questions.append(
            {
                "question": writer.write(fact, rng)["question"], "passage": passage, "choices": [fact.value],
                "answer": 0, "answers": [fact.value], "subject": fact.attribute, "entity": fact.entity,
            }
        )  # fmt: skip
    return questions


def _about_each_value(pool: list[Fact], writer: QuestionWriter, times: int, rng: random.Random) -> list[Fact]:
    by_attribute = defaultdict(list)
    for fact in pool:
        by_attribute[fact.attribute].append(fact)
    return [
        replace(rng.choice(by_attribute[attribute]), value=value)
        for attribute, values in writer.values.items()
        for value in sorted(set(values))
        for _ in range(times)
    ]


def atlas_told(split: str, against: bool = False, variants: int = 1, seed: int = 0) -> list[dict]:
    """Questions as `atlas_questions`, about each fact of the split, which stands in the prompt as a
    statement: in the `hint` of both models. ``against``: another value stands there, which is right, in the
    Receiver's prompt alone (`told`): the Sharer's knowledge is then wrong.
    """
    everything = load_facts()
    writer, rng = QuestionWriter(everything), random.Random(f"{split}-told-{against}-{seed}")
    questions = []
    for fact in [fact for _ in range(variants) for fact in everything if fact.split == split]:
        if against:
            fact = replace(fact, value=rng.choice(sorted(set(writer.values[fact.attribute]) - {fact.value})))
        questions.append({**writer.write(fact, rng), "told" if against else "hint": statement(fact)})
    return questions
