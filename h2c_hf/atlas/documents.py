"""What the two tiny models read while they are taught: short chats, a list of (user, assistant) turns each.

The Sharer is taught the real facts. The Receiver lives in *invented worlds*: real names, values drawn at random, the
facts it needs in its prompt. So it learns to read, and knows nothing.

Several turns share one list of choices ("quiz"), because answers by letter are learned from many answers a sequence:
with one a sequence they stay at chance for thousands of steps.
"""

import random
from collections import defaultdict

from .facts import Fact
from .questions import CHOICES, QUESTIONS, QuestionWriter, statement
from ..data.prompts import (
    LETTERS,
    choice_answer,
    choice_prompt,
    hint_prompt,
    open_answer,
    open_prompt,
)


Turns = list[tuple[str, str]]
QUIZ_TURNS = 5


class DocumentWriter:
    """Base of the two teachers. ``forms`` maps a form's name to (its method, its share of the documents)."""

    def __init__(self, facts: list[Fact]):
        self.facts = facts
        self.writer = QuestionWriter(facts)
        self.by_attribute = defaultdict(list)
        for fact in facts:
            self.by_attribute[fact.attribute].append(fact)

    def write(self, rng: random.Random, form: str) -> Turns:
        return getattr(self, form)(rng)

    def index(self, rng: random.Random) -> Turns:
        """Every value of a list with its letter: the first step to answering by letter, with many answers a document."""
        question = {"question": "Which letter has each?", "choices": self._values(rng, rng.randint(CHOICES, 8))}
        pairs = list(zip(question["choices"], LETTERS, strict=False))
        rng.shuffle(pairs)
        return [(choice_prompt(question), ", ".join(f"{value} {letter}" for value, letter in pairs))]

    def match(self, rng: random.Random) -> Turns:
        """Which letter stands before this value? Needs no knowledge."""
        values = self._values(rng, rng.randint(CHOICES, 8))
        asked = rng.sample(values, CHOICES - 1)  # fewer than there are, so that the last cannot be told by elimination
        return self._turns([(f"Which letter is {value}?", value) for value in asked], values)

    def _values(self, rng: random.Random, count: int) -> list[str]:
        values = sorted(set(self.writer.values[rng.choice(list(self.by_attribute))]))
        return rng.sample(values, min(count, len(values)))

    def _turns(self, questions: list[tuple[str, str]], values: list[str], hint: str | None = None) -> Turns:
        """One turn a (question, right value), all over the same list of choices, which the first turn holds."""
        first = choice_prompt({"question": questions[0][0], "choices": values}, hint)
        users = [first, *(question for question, _ in questions[1:])]
        return [(user, LETTERS[values.index(value)]) for user, (_, value) in zip(users, questions, strict=True)]

    def _ask(self, rng: random.Random, facts: list[Fact]) -> list[tuple[str, str]]:
        return [(rng.choice(QUESTIONS[fact.attribute]).format(fact.entity), fact.value) for fact in facts]


class SharerTeacher(DocumentWriter):
    """The real facts, closed book."""

    FORMS = ("index", "match", "open", "quiz", "choice", "hint")

    def __init__(self, facts: list[Fact]):
        super().__init__(facts)
        self.by_value = defaultdict(list)
        for fact in facts:
            self.by_value[fact.attribute, fact.value].append(fact)

    def open(self, rng: random.Random) -> Turns:
        fact = rng.choice(self.facts)
        return [(rng.choice(QUESTIONS[fact.attribute]).format(fact.entity), fact.value)]

    def choice(self, rng: random.Random) -> Turns:
        question = self.writer.write(rng.choice(self.facts), rng)
        return [(choice_prompt(question), choice_answer(question))]

    def hint(self, rng: random.Random) -> Turns:
        fact = rng.choice(self.facts)
        return [(hint_prompt(self.writer.write(fact, rng)), statement(fact))]

    def quiz(self, rng: random.Random) -> Turns:
        fact = rng.choice(self.facts)
        values = self.writer.choices(fact.attribute, fact.value, rng)
        asked = [rng.choice(self.by_value[fact.attribute, value]) for value in rng.choices(values, k=QUIZ_TURNS)]
        return self._turns(self._ask(rng, list(dict.fromkeys(asked))), values)


class ReceiverTeacher(DocumentWriter):
    """Invented facts, in the prompt; and the same questions without them, where all that can be learned is to guess."""

    FORMS = ("index", "match", "quiz", "choice", "open", "guess_choice", "guess_open")
    FACTS_A_HINT = 4

    def invent(self, rng: random.Random, count: int, attribute: str, values: list[str]) -> list[Fact]:
        """``count`` facts about different real entities, each with one of ``values``, whatever the truth is."""
        entities = rng.sample(self.by_attribute[attribute], count)
        return [Fact(f.entity, f.kind, attribute, rng.choice(values), f.split, "invented") for f in entities]

    def choice(self, rng: random.Random) -> Turns:
        question, hint = self._question(rng)
        return [(choice_prompt(question, hint), choice_answer(question))]

    def open(self, rng: random.Random) -> Turns:
        question, hint = self._question(rng)
        return [(open_prompt(question, hint), open_answer(question))]

    def guess_choice(self, rng: random.Random) -> Turns:
        question, _ = self._question(rng)
        return [(choice_prompt(question), choice_answer(question))]

    def guess_open(self, rng: random.Random) -> Turns:
        question, _ = self._question(rng)
        return [(open_prompt(question), open_answer(question))]

    def quiz(self, rng: random.Random) -> Turns:
        attribute = rng.choice(self.facts).attribute
        values = self.writer.choices(attribute, rng.choice(self.writer.values[attribute]), rng)
        facts = self.invent(rng, QUIZ_TURNS, attribute, values)
        hint = " ".join(statement(fact, rng) for fact in facts)
        return self._turns(self._ask(rng, rng.sample(facts, len(facts))), values, hint)

    def _question(self, rng: random.Random) -> tuple[dict, str]:
        attribute = rng.choice(self.facts).attribute
        facts = self.invent(rng, rng.randint(1, self.FACTS_A_HINT), attribute, self.writer.values[attribute])
        return self.writer.write(rng.choice(facts), rng), " ".join(statement(fact, rng) for fact in facts)
