"""The training texts of the two tiny models: short chats, a list of turns each.

The Sharer is taught the real facts, and to read passages of invented ones. The Receiver lives in *invented
worlds*: real names, values drawn at random, the facts it needs in its prompt. So it learns to read, and knows
nothing.

Several turns share one list of choices ("quiz"), because answers by letter are learned from many answers a
sequence: with one a sequence they stay at chance for thousands of steps.
"""

import random
from collections import defaultdict
from dataclasses import replace
from functools import partialmethod
from typing import NamedTuple

from ..prompts import (
    LETTERS,
    choice_answer,
    choice_prompt,
    hint_prompt,
    open_answer,
    open_prompt,
    with_passage,
)
from .facts import Fact, load_facts
from .questions import CHOICES, QUESTIONS, QuestionWriter, statement


class Turn(NamedTuple):
    """``assistant`` may be a list of pieces: every second one is to be learned, the others are given.
    ``thought`` is the value that an answer by letter stands for: half of the layers should know it when the
    letter is due. ``source`` is the place of the answer in a passage."""

    user: str
    assistant: str | list[str]
    thought: str | None = None
    source: "Source | None" = None

    def messages(self) -> list[dict]:
        """As in a chat; for an answer that is no list of pieces."""
        return [{"role": "user", "content": self.user}, {"role": "assistant", "content": self.assistant}]


class Source(NamedTuple):
    """The place of an answer: the statement of the passage that ends in it, and the statement's entity."""

    statement: str
    entity: str


Turns = list[Turn]
MATCH_TURNS = 8
MATCH_QUESTIONS = ("The letter of {}?", "Which letter is {}?")


class DocumentWriter:
    """Base of the two teachers. Each name in ``FORMS`` is a method that writes one document of that form.

    Args:
        facts: the subjects of the documents.
        known: the facts whose values are choices, if not those alone.
    """

    def __init__(self, facts: list[Fact], known: list[Fact] | None = None):
        self.facts = facts
        self.writer = QuestionWriter(known or facts)
        self.by_attribute = defaultdict(list)
        for fact in facts:
            self.by_attribute[fact.attribute].append(fact)

    def write(self, rng: random.Random, form: str) -> Turns:
        return getattr(self, form)(rng)

    def index(self, rng: random.Random) -> Turns:
        """Every value of a list, each with its letter: the first step to answering by letter."""
        values = self._values(rng, rng.randint(CHOICES, MATCH_TURNS))
        pieces = [
            piece
            for value in rng.choices(values, k=2 * MATCH_TURNS)
            for piece in (value, LETTERS[values.index(value)])
        ]
        return [Turn(choice_prompt({"question": "Which letter has each?", "choices": values}), pieces)]

    def match(self, rng: random.Random) -> Turns:
        """Which letter stands before this value? Needs no knowledge: the second step."""
        values = self._values(rng, rng.randint(CHOICES, MATCH_TURNS))
        asked = rng.choices(values, k=MATCH_TURNS)  # with repeats, so that none can be told by elimination
        return self._turns([(rng.choice(MATCH_QUESTIONS).format(value), value) for value in asked], values)

    def _values(self, rng: random.Random, count: int) -> list[str]:
        values = sorted(set(self.writer.values[rng.choice(list(self.by_attribute))]))
        return rng.sample(values, min(count, len(values)))

    def _turns(self, questions: list[tuple[str, str]], values: list[str]) -> Turns:
        """One turn a (question, right value); all use the list of choices that the first turn holds."""
        first = choice_prompt({"question": questions[0][0], "choices": values})
        users = [first, *(question for question, _ in questions[1:])]
        return [
            Turn(user, LETTERS[values.index(value)], value)
            for user, (_, value) in zip(users, questions, strict=True)
        ]

    def _ask(self, rng: random.Random, facts: list[Fact]) -> list[tuple[str, str]]:
        return [(rng.choice(QUESTIONS[fact.attribute]).format(fact.entity), fact.value) for fact in facts]


class SharerTeacher(DocumentWriter):
    """The real facts, closed book; and passages of invented ones, which count for more than the real."""

    FORMS = (
        "index",
        "match",
        "open",
        "quiz",
        "choice",
        "hint",
        "read_1",
        "read_4",
        "read_16",
        "alike_1",
        "alike_4",
        "alike_16",
    )
    QUIZ_TURNS = 5
    READ_TURNS = 8

    def __init__(self, facts: list[Fact]):
        super().__init__(facts)
        self.by_value = defaultdict(list)
        for fact in facts:
            self.by_value[fact.attribute, fact.value].append(fact)

    def open(self, rng: random.Random) -> Turns:
        fact = rng.choice(self.facts)
        return [Turn(rng.choice(QUESTIONS[fact.attribute]).format(fact.entity), fact.value, fact.value)]

    def choice(self, rng: random.Random) -> Turns:
        question = self.writer.write(rng.choice(self.facts), rng)
        return [Turn(choice_prompt(question), choice_answer(question), open_answer(question))]

    def hint(self, rng: random.Random) -> Turns:
        question = self.writer.write(rng.choice(self.facts), rng)
        return [Turn(hint_prompt(question), f"The answer is {open_answer(question)}.", open_answer(question))]

    def quiz(self, rng: random.Random) -> Turns:
        fact = rng.choice(self.facts)
        values = self.writer.choices(fact.attribute, fact.value, rng)
        asked = [
            rng.choice(self.by_value[fact.attribute, value])
            for value in rng.choices(values, k=self.QUIZ_TURNS)
        ]
        return self._turns(self._ask(rng, list(dict.fromkeys(asked))), values)

    def read(self, rng: random.Random, count: int, alike: bool = False) -> Turns:
        """A passage of at most so many invented facts, and questions about them. ``alike``: all of one
        attribute, each attribute as often; otherwise half of the time."""
        pool = self.by_attribute[rng.choice(list(self.by_attribute))] if alike else self._some_facts(rng)
        facts = {fact.entity: fact for fact in rng.sample(pool, count)}.values()  # one for each entity
        told = [replace(fact, value=rng.choice(self.writer.values[fact.attribute])) for fact in facts]
        passage = [statement(fact, rng) for fact in told]
        turns = []
        for number in rng.sample(range(len(told)), min(len(told), self.READ_TURNS)):
            ((question, value),) = self._ask(rng, [told[number]])
            source = Source(passage[number], told[number].entity)
            turns.append(
                Turn(question if turns else with_passage(" ".join(passage), question), value, value, source)
            )
        return turns

    read_1 = partialmethod(read, count=1)
    read_4 = partialmethod(read, count=4)
    read_16 = partialmethod(read, count=16)
    alike_1 = partialmethod(read, count=1, alike=True)
    alike_4 = partialmethod(read, count=4, alike=True)
    alike_16 = partialmethod(read, count=16, alike=True)

    def _some_facts(self, rng: random.Random) -> list[Fact]:
        return rng.choice([self.facts, self.by_attribute[rng.choice(self.facts).attribute]])


class ReceiverTeacher(DocumentWriter):
    """Invented facts, in the prompt; and the same questions without them, to which one can only guess."""

    FORMS = ("index", "match", "quiz", "choice", "open", "guess_choice", "guess_open")
    QUIZ_TURNS = 4
    FACTS_A_HINT = (1, 1, 2, 3, 4)

    def invent(self, rng: random.Random, count: int, attribute: str, values: list[str]) -> list[Fact]:
        """``count`` facts about different real entities, each with one of ``values``, true or not."""
        entities = rng.sample(self.by_attribute[attribute], count)
        return [Fact(f.entity, f.kind, attribute, rng.choice(values), f.split, "invented") for f in entities]

    def choice(self, rng: random.Random) -> Turns:
        question, hint = self._question(rng)
        return [Turn(choice_prompt(question, hint), choice_answer(question), open_answer(question))]

    def open(self, rng: random.Random) -> Turns:
        question, hint = self._question(rng)
        return [Turn(open_prompt(question, hint), open_answer(question), open_answer(question))]

    def guess_choice(self, rng: random.Random) -> Turns:
        question, _ = self._question(rng)
        return [Turn(choice_prompt(question), choice_answer(question))]

    def guess_open(self, rng: random.Random) -> Turns:
        question, _ = self._question(rng)
        return [Turn(open_prompt(question), open_answer(question))]

    def quiz(self, rng: random.Random) -> Turns:
        """Several questions over one list of choices, each with a hint of its own."""
        attribute = rng.choice(self.facts).attribute
        values = self.writer.choices(attribute, rng.choice(self.writer.values[attribute]), rng)
        turns = []
        for number in range(self.QUIZ_TURNS):
            facts = self.invent(rng, rng.choice(self.FACTS_A_HINT), attribute, values)
            ((question, answer),) = self._ask(rng, [rng.choice(facts)])
            asked = {"question": question, "choices": values}
            hint = " ".join(statement(fact, rng) for fact in facts)
            prompt = open_prompt if number else choice_prompt
            turns.append(Turn(prompt(asked, hint), LETTERS[values.index(answer)], answer))
        return turns

    def _question(self, rng: random.Random) -> tuple[dict, str]:
        attribute = rng.choice(self.facts).attribute
        facts = self.invent(rng, rng.choice(self.FACTS_A_HINT), attribute, self.writer.values[attribute])
        return self.writer.write(rng.choice(facts), rng), " ".join(statement(fact, rng) for fact in facts)


def atlas_quizzes(split: str, variants: int = 1, seed: int = 0) -> list[dict]:
    """Chats as the Receiver was taught (`ReceiverTeacher.quiz`), in the column ``messages``: four turns, each
    with invented facts about entities of the split and a question about one of them, so that both models read
    every answer. A quiz for every four facts of the split, ``variants`` times."""
    everything = load_facts()
    asked = [fact for fact in everything if fact.split == split]
    teacher, rng = ReceiverTeacher(asked, known=everything), random.Random(f"{split}-quizzes-{seed}")
    quizzes = [teacher.quiz(rng) for _ in range(variants * len(asked) // teacher.QUIZ_TURNS)]
    return [{"messages": [message for turn in quiz for message in turn.messages()]} for quiz in quizzes]
