"""Exchanges from conversations, in the layouts of OpenHermes (ShareGPT), TRL messages, and prompt / completion."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .exchanges import Exchange, UnusableRecordError


if TYPE_CHECKING:
    from .sources import DataSource

# ShareGPT's names of the roles, as OpenHermes has them.
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_sharegpt(record: dict, source: "DataSource") -> Iterator[Exchange]:
    """`conversations`: from / value, as in OpenHermes-2.5."""
    unknown = [turn["from"] for turn in record["conversations"] if turn["from"] not in SHAREGPT_ROLES]
    if unknown:
        raise UnusableRecordError("unknown role")
    messages = [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    yield from targets(messages, source.turns)


def read_messages(record: dict, source: "DataSource") -> Iterator[Exchange]:
    """`messages`: role / content, as in TRL."""
    yield from targets(record["messages"], source.turns)


def read_pair(record: dict, source: "DataSource") -> Iterator[Exchange]:
    """`prompt` and `completion`: both text, or both messages."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not prompt.strip() or not completion.strip():
            raise UnusableRecordError("empty message")
        yield prompt, completion
        return
    yield from targets([*prompt, *completion], source.turns)


def targets(messages: list[dict], turns: str) -> Iterator[Exchange]:
    """Yield an exchange for the first assistant turn, or for each, with all turns before it as the prompt."""
    found = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i]
    if not found or all(message["role"] == "system" for message in messages[: found[0]]):
        raise UnusableRecordError("no assistant turn after a user turn")
    if any(not isinstance(message["content"], str) or not message["content"].strip() for message in messages[: found[-1] + 1]):
        raise UnusableRecordError("empty message")
    for i in found[:1] if turns == "first" else found:
        yield [{"role": m["role"], "content": m["content"]} for m in messages[:i]], messages[i]["content"]
