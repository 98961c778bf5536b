"""Read an OpenAI request: messages or a prompt, the Sharer's own messages, fields that must not be ignored.

Both doors read requests through this module. It imports neither vLLM nor a web framework.
"""

import copy
import json
from dataclasses import dataclass

from jinja2 import TemplateError

from ..modeling import H2CProcessor


CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ENDPOINTS = (CHAT, COMPLETIONS, RESPONSES)
CONTROLS = ("zeros",)
MOST_CHOICES = 16
TEXT_PARTS = ("text", "input_text", "output_text")
# Arguments of `apply_chat_template` that are the server's own.
RESERVED = {
    "conversation", "sharer_conversation", "chat_template", "add_generation_prompt", "tokenize", "tools",
    "return_tensors", "return_dict", "padding", "truncation", "max_length", "tokenizer_kwargs",
    "continue_final_message",
}  # fmt: skip
# field: (type, least, most). Bounds that the OpenAI API states, but for `n`.
NUMBERS = {
    "temperature": (float, 0, 2), "top_p": (float, 0, 1), "frequency_penalty": (float, -2, 2),
    "presence_penalty": (float, -2, 2), "n": (int, 1, MOST_CHOICES), "max_tokens": (int, 1, 2**31),
    "max_completion_tokens": (int, 1, 2**31), "max_output_tokens": (int, 1, 2**31),
    "seed": (int, -(2**63), 2**63 - 1),
}  # fmt: skip


class BadRequestError(ValueError):
    """A request that cannot be answered as it is. The message goes to the client."""


@dataclass
class Extension:
    """The fields that H2C adds to a request."""

    h2c: bool = True  # False: the Receiver answers alone
    control: str | None = None  # "zeros": the Sharer's hidden states are zeros
    sharer_messages: list[dict] | None = None  # the Sharer's conversation, if it differs from the Receiver's
    sharer_prompt: str | None = None  # the same for a plain prompt


def take_extension(body: dict, endpoint: str) -> Extension:
    """Remove H2C's fields from a request and return them.

    Raises:
        BadRequestError: for a field of the wrong type, a control that needs other requests, or a field of
            another endpoint.
    """
    fields = {
        name: body.pop(name)
        for name in ("h2c", "control", "sharer_messages", "sharer_prompt")
        if name in body
    }
    extension = Extension(**{name: value for name, value in fields.items() if value is not None})
    if not isinstance(extension.h2c, bool):
        raise BadRequestError(f"h2c is {extension.h2c!r}; expected true or false.")
    if extension.control == "shuffled":
        raise BadRequestError(
            "control 'shuffled' needs another request's hidden states, which a server must not mix; expected "
            "'zeros'."
        )
    if extension.control is not None and extension.control not in CONTROLS:
        raise BadRequestError(f"control is {extension.control!r}; expected 'zeros' or null.")
    other = "sharer_messages" if endpoint == COMPLETIONS else "sharer_prompt"
    if getattr(extension, other) is not None:
        expected = "sharer_prompt" if endpoint == COMPLETIONS else "sharer_messages"
        raise BadRequestError(f"{other} does not belong to {endpoint}; expected {expected}.")
    if not extension.h2c:
        for name in ("control", other, "sharer_messages", "sharer_prompt"):
            if getattr(extension, name) is not None:
                raise BadRequestError(
                    f"h2c is false and {name} is given; expected one of them: the Receiver alone has no "
                    "Sharer."
                )
    if extension.sharer_messages is not None:
        extension.sharer_messages = plain_messages(extension.sharer_messages, "sharer_messages")
    if extension.sharer_prompt is not None:
        extension.sharer_prompt = plain_text(extension.sharer_prompt, "sharer_prompt")
    return extension


def check_fields(body: dict) -> None:
    """Refuse values of the wrong type or range, and unimplemented fields that matter.

    Raises:
        BadRequestError: naming the field, its value and the expected one.
    """
    for name, (kind, least, most) in NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not right or not least <= value <= most:
            raise BadRequestError(
                f"{name} is {value!r}; expected {'an integer' if kind is int else 'a number'} from {least} "
                f"to {most}."
            )
    if not isinstance(body.get("stream") or False, bool):
        raise BadRequestError(f"stream is {body['stream']!r}; expected true or false.")
    stop = body.get("stop")
    if stop is not None:
        texts = [stop] if isinstance(stop, str) else stop
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise BadRequestError(
                f"stop is {stop!r}; expected a text or a list of texts, none of them empty."
            )
        if len(texts) > 16:
            raise BadRequestError(f"stop has {len(texts)} texts; expected at most 16.")
    for name, type_ in (
        ("tools", list),
        ("chat_template_kwargs", dict),
        ("logit_bias", dict),
        ("generation_config", str),
    ):
        if body.get(name) is not None and not isinstance(body[name], type_):
            raise BadRequestError(f"{name} is a {type(body[name]).__name__}; expected a {type_.__name__}.")
    if reserved := RESERVED & set(body.get("chat_template_kwargs") or {}):
        raise BadRequestError(
            f"chat_template_kwargs sets {sorted(reserved)[0]!r}, which the server sets itself."
        )


def refuse_ignored(body: dict) -> None:
    """Refuse the fields that transformers' server drops, if they ask for a different answer.

    Raises:
        BadRequestError: naming the field.
    """
    asks = {
        "logprobs": body.get("logprobs") not in (None, False), "top_logprobs": bool(body.get("top_logprobs")),
        "echo": bool(body.get("echo")), "best_of": (body.get("best_of") or 1) != 1,
        "presence_penalty": bool(body.get("presence_penalty")), "functions": bool(body.get("functions")),
        "response_format": (body.get("response_format") or {"type": "text"}) != {"type": "text"},
        "tool_choice": body.get("tool_choice") not in (None, "auto", "none"),
        "prediction": bool(body.get("prediction")), "audio": bool(body.get("audio")),
        "previous_response_id": bool(body.get("previous_response_id")),
        "background": bool(body.get("background")),
    }  # fmt: skip
    if asked := [name for name, asks_for_it in asks.items() if asks_for_it]:
        raise BadRequestError(f"{asked[0]} is not supported by this server; leave it out.")
    if body.get("stream") and (body.get("n") or 1) > 1:
        raise BadRequestError(f"n is {body['n']} and stream is true; expected n=1 for a streamed answer.")


def plain_text(value, name: str) -> str:
    """A text that can be encoded as UTF-8.

    Raises:
        BadRequestError: for anything else.
    """
    if not isinstance(value, str):
        raise BadRequestError(f"{name} is a {type(value).__name__}; expected a text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequestError(
            f"{name} holds a lone surrogate, which is no character; expected valid Unicode."
        ) from None
    return value


def plain_messages(messages, name: str = "messages") -> list[dict]:
    """Messages whose content is one text, as chat templates expect them: text parts are joined by newlines,
    and the arguments of tool calls are parsed.

    Raises:
        BadRequestError: for an empty list, a message without a role, or a part that is no text.
    """
    if not isinstance(messages, list) or not messages:
        got = "an empty list" if messages == [] else f"a {type(messages).__name__}"
        raise BadRequestError(f"{name} is {got}; expected a list of at least one message.")
    plain = []
    for index, message in enumerate(messages):
        at = f"{name}[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequestError(f"{at} has no role; expected an object with a role and a content.")
        content = message.get("content")
        if isinstance(content, list):
            texts = []
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if kind not in TEXT_PARTS:
                    raise BadRequestError(f"{at} has a part of type {kind!r}; expected text parts only.")
                texts.append(plain_text(part.get("text"), f"{at}.content.text"))
            content = "\n".join(texts)
        elif content is None and message["role"] == "assistant":
            content = ""
        message = {**message, "content": plain_text(content, f"{at}.content")}
        if message.get("tool_calls"):
            message["tool_calls"] = [tool_call(call, at) for call in message["tool_calls"]]
        plain.append(message)
    return plain


def tool_call(call, at: str) -> dict:
    """A tool call whose arguments are a mapping: templates iterate over it."""
    call = copy.deepcopy(call)
    try:
        function = call.get("function") or call
        if isinstance(function["arguments"], str):
            function["arguments"] = json.loads(function["arguments"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadRequestError(
            f"A tool call in {at} has no arguments in JSON; expected a function with a name and arguments."
        ) from None
    return call


def response_messages(body: dict) -> list[dict]:
    """The messages of a request to the Responses API: its `instructions`, then its `input`.

    Raises:
        BadRequestError: for an item that is neither a message nor a tool call nor its output.
    """
    given = body.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise BadRequestError(
            f"input is {'empty' if given == [] else f'a {type(given).__name__}'}; expected a text or a list "
            "of items."
        )
    if isinstance(given[0], dict) and given[0].get("type") in TEXT_PARTS and "role" not in given[0]:
        given = [{"role": "user", "content": given}]
    messages = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    for index, item in enumerate(given):
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(item, dict) and "role" in item:
            messages.append({"role": item["role"], "content": item.get("content", "")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
            )
        else:
            raise BadRequestError(
                f"input[{index}] has type {kind!r}; expected a message, a function_call or a "
                "function_call_output."
            )
    return plain_messages(messages, "input")


def response_tools(tools: list[dict] | None) -> list[dict] | None:
    """Tools of the Responses API, which are flat, in the nested form of chat templates.

    Raises:
        BadRequestError: for a tool that is no function.
    """
    if tools is None:
        return None
    if other := [
        tool for tool in tools if not isinstance(tool, dict) or tool.get("type", "function") != "function"
    ]:
        raise BadRequestError(f"A tool is {other[0]!r}; expected one of type 'function'.")
    return [
        tool
        if "function" in tool
        else {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
        for tool in tools
    ]


def encode(processor: H2CProcessor, body: dict, endpoint: str, extension: Extension) -> dict:
    """Both models' token ids: `input_ids`, `sharer_input_ids` and their masks, (1, length) each, int64.

    Raises:
        BadRequestError: for a request without a prompt, or messages that a chat template refuses.
    """
    try:
        if endpoint == COMPLETIONS:
            prompt = body.get("prompt")
            if isinstance(prompt, list) and len(prompt) == 1:
                prompt = prompt[0]
            if isinstance(prompt, list):
                raise BadRequestError(
                    "prompt is a list; expected one text: token ids and several prompts have no Sharer's "
                    "prompt."
                )
            return processor(plain_text(prompt, "prompt"), extension.sharer_prompt)
        if endpoint == CHAT:
            messages, tools = plain_messages(body.get("messages")), body.get("tools")
        else:
            messages, tools = response_messages(body), response_tools(body.get("tools"))
        template = {**(body.get("chat_template_kwargs") or {}), **({"tools": tools} if tools else {})}
        return processor.apply_chat_template(messages, extension.sharer_messages, **template)
    except BadRequestError:
        raise
    # An empty prompt, or what a template does not take.
    except (ValueError, TypeError, KeyError, TemplateError) as error:
        raise BadRequestError(f"The prompt cannot be made of this request: {error}") from error
