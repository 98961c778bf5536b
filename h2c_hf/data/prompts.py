"""The words around a question: one place for training, evaluation and generation, so that all see the same prompt.

A question is a dict in the columns of ``cais/mmlu``: ``question``, ``choices`` (list of str), ``answer`` (index), ``subject``.
Every function returns the text of one user turn; the chat template of each tokenizer puts the frame around it.
"""

LETTERS = "ABCDEFGHIJ"
CHOICE_INSTRUCTION = "Answer with one letter."
HINT_INSTRUCTION = "Explain your answer in one sentence."
HINT_PREFIX = "Hint:"


def choice_prompt(question: dict, hint: str | None = None) -> str:
    """The question with its lettered choices; ``hint`` is what another model said about it (text-to-text)."""
    return f"{_with_choices(question, hint)}\n{CHOICE_INSTRUCTION}"


def hint_prompt(question: dict) -> str:
    """What the Sharer is asked in text-to-text: it sees the same question and may answer and explain."""
    return f"{_with_choices(question)}\n{HINT_INSTRUCTION}"


def open_prompt(question: dict, hint: str | None = None) -> str:
    """The question alone: the answer is the text of the right choice."""
    return _with_hint(question["question"], hint)


def choice_answer(question: dict) -> str:
    return LETTERS[question["answer"]]


def open_answer(question: dict) -> str:
    return question["choices"][question["answer"]]


def _with_choices(question: dict, hint: str | None = None) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question["choices"], strict=False)]
    return "\n".join([_with_hint(question["question"], hint), *lines])


def _with_hint(text: str, hint: str | None) -> str:
    return text if hint is None else f"{HINT_PREFIX} {hint}\n{text}"
