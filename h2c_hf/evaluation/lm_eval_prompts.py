"""The prompts that a request of lm-eval gives to each of two models: its context is one string, and each
model has its own chat template.

If lm-eval applies a chat template, its context is therefore not a rendered prompt but the conversation
itself, marked (`pack`), and each model renders it. Any other context is plain text, and both models read that
text.
"""

import bisect
import json
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..prompts import answer_ids, following_ids, user_turn
from ..wording import HINT_PREFIX


MARK = "<h2c conversation>"


@dataclass(frozen=True)
class Context:
    """The context of the tokens that are scored or written."""

    text: str  # a marked conversation, plain text, or nothing
    room: int  # tokens that must still fit after it, into the window of the model that answers
    # The answering model's tokens of `text`, where they are fixed already (a rolling window)
    ids: list[int] | None = None


def pack(conversation: list[dict], add_generation_prompt: bool = True) -> str:
    """The conversation as a string for `unpack`. Without a generation prompt, its last message goes on."""
    return MARK + json.dumps(
        {"messages": conversation, "continue_final_message": not add_generation_prompt}, ensure_ascii=False
    )


def unpack(context: str) -> tuple[list[dict], bool] | None:
    """The messages, and whether the last is to be continued; None for plain text."""
    if not context.startswith(MARK):
        return None
    packed = json.loads(context[len(MARK) :])
    return packed["messages"], packed["continue_final_message"]


def content(context: str) -> str:
    """Return the question: the last user message (plain text: all of it)."""
    packed = unpack(context)
    return context if packed is None else packed[0][_users(packed[0])[-1]]["content"]


def with_content(context: str, text: str) -> str:
    """The same context, asking ``text``."""
    packed = unpack(context)
    if packed is None:
        return text
    messages, continued = packed
    last = messages[_users(messages)[-1]]
    return pack(
        [{**message, "content": text} if message is last else message for message in messages], not continued
    )


def hint_request(context: str, instruction: str) -> str:
    """Return the Sharer's prompt of text-to-text: the conversation with an instruction."""
    packed = unpack(context)
    messages = user_turn(context) if packed is None else packed[0][:-1] if packed[1] else packed[0]
    return with_content(pack(messages), f"{content(context)}\n{instruction}")


def with_hint(context: str, hint: str) -> str:
    """Return the context with the Sharer's text before the question."""
    return with_content(context, f"{HINT_PREFIX} {hint}\n{content(context)}")


def _users(messages: list[dict]) -> list[int]:
    rows = [row for row, message in enumerate(messages) if message["role"] == "user"]
    if not rows:
        raise ValueError(
            f"A conversation has messages of {sorted({m['role'] for m in messages})} alone; expected one of "
            "the user."
        )
    return rows


def render(tokenizer: PreTrainedTokenizerBase, context: str, template_kwargs: dict | None = None) -> str:
    """The text that a model reads, special tokens written out by the chat template (plain text: unchanged).

    Args:
        template_kwargs: variables of the chat template, here and below.

    Raises:
        ValueError: for a conversation, if the tokenizer has no chat template.
    """
    packed = unpack(context)
    if packed is None:
        return context
    if tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template; expected one, or no "
            "--apply_chat_template."
        )
    messages, continued = packed
    return tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        **(template_kwargs or {}),
    )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    context: str,
    template_kwargs: dict | None = None,
    add_bos_token: bool | None = None,
) -> list[int]:
    """Return the token ids of a model's prompt.

    Args:
        add_bos_token: begin plain text with the begin token, or not; None: as the tokenizer does.
    """
    plain = unpack(context) is None
    ids = tokenizer(
        render(tokenizer, context, template_kwargs), add_special_tokens=plain and add_bos_token is not False
    )["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos, *ids] if plain and add_bos_token and bos is not None and ids[:1] != [bos] else ids


def split(context: str, continuation: str) -> tuple[str, str]:
    """As lm-eval does: spaces at the end of plain text belong to the continuation's first word. A
    conversation's frame stands."""
    if unpack(context) is not None:
        return context, continuation
    text = context.rstrip()
    return text, context[len(text) :] + continuation


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, template_kwargs: dict | None = None
) -> list[int]:
    """Return the token ids of the continuation after the context: in a conversation, its generation prompt.

    Raises:
        ValueError: if it has no tokens.
    """
    packed = unpack(context)
    if packed is None or packed[1] or not continuation.strip():
        ids = following_ids(tokenizer, render(tokenizer, context, template_kwargs), continuation)
    else:  # a template may write something between the generation prompt and the content: a space, a line end
        ids = answer_ids(tokenizer, packed[0], continuation, ended=False, template_kwargs=template_kwargs)
    if not ids:
        raise ValueError(f"The continuation {continuation!r} has no tokens; expected at least one.")
    return ids


def newest(tokenizer: PreTrainedTokenizerBase, context: str, limit: int, **options) -> tuple[list[int], bool]:
    """The context in at most ``limit`` tokens, and whether it was cut: the oldest turns go first.

    The frame (the system message, and the chat template's own text) stays whole.

    Args:
        options: of `encode`.

    Raises:
        ValueError: if even the last character of the content does not fit.
    """
    ids = encode(tokenizer, context, **options)
    if len(ids) <= limit:
        return ids, False
    if unpack(context) is not None:
        context = _newest_turns(tokenizer, context, limit, **options)
    text = content(context)

    def tail(length: int) -> list[int]:
        return encode(tokenizer, with_content(context, text[len(text) - length :]), **options)

    kept = bisect.bisect_left(range(len(text) + 1), True, key=lambda length: len(tail(length)) > limit) - 1
    if kept < 1:
        raise ValueError(
            f"A prompt has {len(ids)} tokens and there is room for {limit}; expected room for its frame and "
            "some content."
        )
    return tail(kept), True


def _newest_turns(tokenizer: PreTrainedTokenizerBase, context: str, limit: int, **options) -> str:
    """The conversation without its oldest turns: as many as it takes to fit, but for the last."""
    messages, continued = unpack(context)
    while len(users := _users(messages)) > 1 and len(encode(tokenizer, context, **options)) > limit:
        messages = messages[: users[0]] + messages[users[1] :]
        context = pack(messages, not continued)
    return context
