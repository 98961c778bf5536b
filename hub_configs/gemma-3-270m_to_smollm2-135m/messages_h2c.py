"""Messages as plain dicts of text, and tokenizer options that a processor for two models cannot follow."""

import dataclasses
from collections.abc import Mapping


# Options of tokenizers that would cut, or pad otherwise than on the left to the longest prompt, with the
# values that change nothing.
FIXED = {
    "padding": (None, True, "longest"),
    "padding_side": (None, "left"),
    "truncation": (None, False, "do_not_truncate"),
    "max_length": (None,),
    "pad_to_multiple_of": (None,),
    "return_assistant_tokens_mask": (None, False),
}


def check_fixed(options: dict) -> None:
    """Take the options that are fixed out of `options`.

    Raises:
        ValueError: for a value other than the fixed ones.
    """
    for name, allowed in FIXED.items():
        value = options.pop(name, None)
        if not any(value is fixed or (isinstance(value, str) and value == fixed) for fixed in allowed):
            raise ValueError(
                f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}: prompts for two models "
                "are padded on the left, to the longest, and never cut. Shorten the messages instead."
            )


def plain_messages(value):
    """Return messages (lists of messages, conversations) as dicts. Dataclasses and pydantic models are
    messages too; the parts of a message's content are joined.

    Raises:
        ValueError: for a part or a content that is not text.
    """
    if hasattr(value, "messages"):
        value = value.messages
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif callable(getattr(value, "model_dump", None)):
        value = value.model_dump()
    if isinstance(value, Mapping):
        value = {key: plain_messages(item) if key != "content" else item for key, item in value.items()}
        return {**value, "content": joined_parts(value["content"])} if "content" in value else value
    return [plain_messages(item) for item in value] if isinstance(value, list | tuple) else value


def check_messages(conversation) -> None:
    """
    Raises:
        ValueError: for other than a list of messages, or a list of such lists. A template prints other
            objects, special tokens and all.
    """
    messages = conversation if isinstance(conversation, list) else [type(conversation)]
    if isinstance(messages[0], list):
        messages = [message for row in messages for message in row]
    for message in messages:
        if not isinstance(message, dict):
            got = message if isinstance(message, type) else type(message)
            raise ValueError(
                f"A message is a {got.__name__}; expected a dict with role and content, a dataclass or a "
                "pydantic model."
            )


def joined_parts(content):
    """Return the text of a message's content."""
    if content is None or isinstance(content, str | int | float):
        return content
    if not isinstance(content, list | tuple):  # printed by a template, special tokens and all
        raise ValueError(
            f"A message's content is a {type(content).__name__}; expected text, or a list of parts of type "
            "'text'."
        )
    parts = [part if isinstance(part, str) else plain_messages(part) for part in content]
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"A message has a part of type {kind!r}; expected parts of type 'text': both models read "
                "text alone."
            )
    return "".join(part["text"] for part in parts)


__all__ = ["check_fixed", "check_messages", "plain_messages"]
