"""The words around a question that a config may change. Without torch: `h2c evaluate --help` lists them."""

from dataclasses import dataclass


LETTERS = "ABCDEFGHIJ"
CHOICE_INSTRUCTION = "Answer with one letter."
HINT_INSTRUCTION = "Explain your answer in one sentence."
ANSWER_INSTRUCTION = "Answer in one sentence."
REASONING_INSTRUCTION = "Think step by step, then give your answer."
HINT_PREFIX = "Hint:"


@dataclass(frozen=True)
class Prompts:
    """The words of an evaluation that a config may change. ``hint``, ``answer`` and ``reasoning`` are the
    questions to the Sharer in the variants of text-to-text, after the question with its choices."""

    choice: str = CHOICE_INSTRUCTION
    hint: str = HINT_INSTRUCTION
    answer: str = ANSWER_INSTRUCTION
    reasoning: str = REASONING_INSTRUCTION
    prefix: str = HINT_PREFIX


PROMPTS = Prompts()
