"""Parse values of a record: lists that a CSV file holds as text, and the columns of `cais/mmlu`."""

import ast
import io
import json
import tokenize

from ..prompts import LETTERS


CONSTANTS = ("None", "True", "False")


def parse_text(value):
    """Return the list or dict that a text writes: as JSON, as Python prints it, or as numpy and pandas do
    (`['a' 'b']`, `array(['a'], dtype=object)`). Any other value is returned as it is.

    Raises:
        ValueError: for a text that writes neither.
    """
    if not isinstance(value, str):
        return value
    for read in (json.loads, _read_python):
        try:
            parsed = read(value)
        except (ValueError, SyntaxError, tokenize.TokenError, RecursionError):
            continue
        if isinstance(parsed, list | tuple | dict):
            return list(parsed) if isinstance(parsed, tuple) else parsed
    raise ValueError(
        f"is the text {shortened(value)}; expected a list, or a text that writes one as JSON or Python do"
    )


def _read_python(text: str):
    """`ast.literal_eval` with commas where numpy prints none: Python would join `'a' 'b'` into a string."""
    if text.strip()[:1] not in ("[", "(", "{"):
        raise ValueError("no list")
    tokens, ended = [], False
    # In parentheses a line may end anywhere.
    for token in tokenize.generate_tokens(io.StringIO(f"({text})").readline):
        literal = token.type in (tokenize.STRING, tokenize.NUMBER)
        if ended and (literal or token.type == tokenize.NAME or token.string in ("[", "(", "{")):
            tokens.append((tokenize.OP, ","))
        if token.type != tokenize.NL:
            ended = literal or token.string in ("]", ")", "}", *CONSTANTS)
            tokens.append((token.type, token.string))
    return ast.literal_eval(
        _WithoutArrays().visit(ast.parse(tokenize.untokenize(tokens).strip(), mode="eval"))
    )


class _WithoutArrays(ast.NodeTransformer):
    """`array([...], dtype=...)` as its list."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1
        return self.visit(node.args[0]) if is_array else node


def parse_list(record: dict, column: str) -> list:
    """The list in a column of a record, which may be text; see `parse_text`.

    Raises:
        ValueError: for anything else.
    """
    try:
        value = parse_text(record[column])
    except ValueError as error:
        raise ValueError(f"{column} {error}.") from None
    if not isinstance(value, list):
        raise ValueError(f"{column} is {shortened(value)}; expected a list.")
    return value


def parse_choices(value) -> list[str]:
    """The texts of a question's choices.

    Raises:
        ValueError: for anything but 1 to 10 texts or numbers.
    """
    choices = parse_text(value)
    if not isinstance(choices, list):
        raise ValueError(f"is {shortened(value)}; expected a list of texts")
    if not 1 <= len(choices) <= len(LETTERS):
        raise ValueError(f"has {len(choices)} texts; expected 1 to {len(LETTERS)}")
    wrong = [choice for choice in choices if not isinstance(choice, str | int | float)]
    if wrong:
        raise ValueError(f"holds {shortened(wrong[0])}; expected texts")
    return [str(choice) for choice in choices]


def parse_answer(value, choices: list[str]) -> int:
    """The index of the right choice, from that index or a letter.

    Raises:
        ValueError: for any other value, no answer, or a letter that is the text of another choice.
    """
    count = len(choices)
    index = LETTERS.find(value.strip()) if isinstance(value, str) and len(value.strip()) == 1 else value
    if isinstance(index, float) and index.is_integer():  # a column with an empty cell is one of floats
        index = int(index)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        got = "empty" if value is None else shortened(value)
        raise ValueError(
            f"is {got}; expected the index of one of its {count} choices, 0 to {count - 1}, or its letter"
        )
    if isinstance(value, str) and value.strip() in choices and choices[index] != value.strip():
        raise ValueError(
            f"is {value!r}, the letter of {choices[index]!r} and the text of another choice; expected an "
            "index"
        )
    return index


def parse_answers(value) -> list[str]:
    """The texts of SQuAD's `answers`, {"text": [...]}, or of a plain list; either may itself be text.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = parse_text(value)
    except ValueError as error:
        raise ValueError(f"answers {error}.") from None
    texts = found.get("text") if isinstance(found, dict) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"answers is {shortened(value)}; expected texts, as a list or as {{'text': [...]}}.")
    return texts


def parse_question(record: dict) -> dict:
    """The record with its choices as texts and its answer as an index.

    Raises:
        ValueError: naming the column and its fault.
    """
    if not isinstance(record["question"], str) or not record["question"].strip():
        raise ValueError(f"question is {shortened(record['question'])}; expected a text.")
    column = "choices"
    try:
        choices = parse_choices(record[column])
        column = "answer"
        answer = parse_answer(record[column], choices)
    except ValueError as error:
        raise ValueError(f"{column} {error}.") from None
    return {**record, "choices": choices, "answer": answer}


def shortened(value, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
