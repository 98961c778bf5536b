"""Exchanges from conversations, as OpenHermes (ShareGPT), TRL messages, and prompt / completion have them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..modeling.messages_h2c import plain_messages
from ..prompts import user_turn
from .exchanges import Exchange, UnusableRecordError
from .parsing import parse_list, parse_text


if TYPE_CHECKING:
    from .sources import DataSource

# ShareGPT's names of the roles, as OpenHermes has them.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read_sharegpt(record: dict, source: "DataSource") -> Iterator[Exchange]:
    """`conversations`: from / value, as in OpenHermes-2.5."""
    turns = parse_list(record, "conversations")
    if not all(isinstance(turn, dict) and {"from", "value"} <= turn.keys() for turn in turns):
        raise UnusableRecordError("turn without from and value")
    if any(turn["from"] not in SHAREGPT_ROLES for turn in turns):
        raise UnusableRecordError("unknown role")
    messages = [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    yield from targets(messages, source.turns)


def read_messages(record: dict, source: "DataSource") -> Iterator[Exchange]:
    """`messages`: role / content, as in TRL."""
    yield from targets(parse_list(record, "messages"), source.turns)


def read_pair(record: dict, source: "DataSource") -> Iterator[Exchange]:
    """`prompt` and `completion`: both text, or both messages."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str):
        prompt = messages_of(prompt) or prompt
    if isinstance(completion, str):
        completion = messages_of(completion) or completion
    if isinstance(prompt, str) and isinstance(completion, str):
        if not prompt.strip() or not completion.strip():
            raise UnusableRecordError("empty message")
        yield prompt, completion
        return
    prompt = user_turn(prompt) if isinstance(prompt, str) else prompt
    completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise UnusableRecordError("no prompt or no completion")
    yield from targets([*prompt, *completion], source.turns)


def messages_of(text: str) -> list[dict] | None:
    """The messages that a text writes, as CSV files hold them; None if it is any other text."""
    try:
        messages = parse_text(text)
    except ValueError:
        return None
    written = isinstance(messages, list) and messages and all(is_message(message) for message in messages)
    return messages if written else None


def is_message(message) -> bool:
    return isinstance(message, dict) and {"role", "content"} <= message.keys()


def targets(messages: list[dict], turns: str) -> Iterator[Exchange]:
    """Yield an exchange for the first assistant turn, or for each, with all turns before it as the prompt."""
    if not all(is_message(message) for message in messages):
        raise UnusableRecordError("message without role and content")
    try:
        messages = plain_messages(messages)
    except ValueError as error:
        raise UnusableRecordError("part that is not text") from error
    found = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i]
    if not found or all(message["role"] == "system" for message in messages[: found[0]]):
        raise UnusableRecordError("no assistant turn after a user turn")
    if any(
        not isinstance(message["content"], str) or not message["content"].strip()
        for message in messages[: found[-1] + 1]
    ):
        raise UnusableRecordError("empty message")
    for i in found[:1] if turns == "first" else found:
        yield [{"role": m["role"], "content": m["content"]} for m in messages[:i]], messages[i]["content"]
