"""Messages as plain dicts of text, and tokenizer options that a processor for two models cannot follow."""

import dataclasses


# Options of tokenizers that would cut, or pad otherwise than on the left to the longest prompt, with the values that change nothing.
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
                f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}: prompts for two models are padded on the left, "
                f"to the longest, and never cut. Shorten the messages instead."
            )


def plain_messages(value):
    """Return messages (lists of messages, conversations) as dicts. Dataclasses and pydantic models are messages too; the parts of a
    message's content are joined.

    Raises:
        ValueError: for a part that is not text.
    """
    if hasattr(value, "messages"):
        value = value.messages
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif callable(getattr(value, "model_dump", None)):
        value = value.model_dump()
    if isinstance(value, dict):
        value = {key: plain_messages(item) if key != "content" else item for key, item in value.items()}
        return {**value, "content": joined_parts(value["content"])} if "content" in value else value
    return [plain_messages(item) for item in value] if isinstance(value, list | tuple) else value


def joined_parts(content):
    """Return the text of a message's content."""
    if not isinstance(content, list | tuple):
        return content
    parts = [part if isinstance(part, str) else plain_messages(part) for part in content]
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"A message has a part of type {kind!r}; expected parts of type 'text': both models read text alone.")
    return "".join(part["text"] for part in parts)


__all__ = ["check_fixed", "plain_messages"]
