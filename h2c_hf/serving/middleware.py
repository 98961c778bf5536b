"""ASGI middleware for vLLM's server: makes both models' prompts of a request, with the bridge's own
processor. Does not import vLLM.

    H2C_BRIDGE=REPO vllm serve RECEIVER --middleware h2c_hf.serving.middleware.H2CMiddleware ...

Chat completions, completions and responses take the fields of `h2c serve`: `sharer_messages` or
`sharer_prompt`, `h2c` and `control`.
"""

import os

from transformers import AutoConfig, GenerationConfig

from ..loading import fetched_base
from ..modeling import H2CBridgeConfig, H2CProcessor
from .bridging import message_tokens
from .http import read_json, replayed, send_error, with_body
from .openai_requests import CHAT, COMPLETIONS, ENDPOINTS, RESPONSES, BadRequestError, encode, take_extension


BRIDGE_VARIABLE = "H2C_BRIDGE"
MAX_BYTES = 4 * 2**20
# vLLM would render another prompt than the processor, or leave the bridged positions out.
REFUSED = {
    "prompt_logprobs": "vLLM computes the prompt itself then, without the bridge",
    "echo": "vLLM computes the prompt itself then, without the bridge",
    "prompt_embeds": "the Sharer cannot read embeddings",
    "truncate_prompt_tokens": "the bridge reads the whole prompt",
    "use_beam_search": "each step would bridge anew",
    "best_of": "vLLM would bridge each candidate",
    "continue_final_message": "the processor ends the prompt in the assistant's turn",
    "chat_template": "each model has its own template",
    "documents": "the Sharer's template does not know them",
    "previous_response_id": "earlier messages are not in the request; send them as input",
    "prompt": "a stored prompt cannot be read",
    "kv_transfer_params": "this server sets them",
    "cache_salt": "this server salts bridged prompts itself",
}  # fmt: skip


class H2CMiddleware:
    """Replaces the prompt by token ids; puts the Sharer's into `kv_transfer_params`, for the connector."""

    def __init__(self, app, bridge: str | None = None, max_bytes: int = MAX_BYTES):
        bridge = bridge or os.environ.get(BRIDGE_VARIABLE)
        if not bridge:
            raise ValueError(f"{BRIDGE_VARIABLE} is not set; expected the bridge's repo or folder.")
        self.app, self.max_bytes = app, max_bytes
        self.processor = H2CProcessor.from_pretrained(bridge)
        self.config = H2CBridgeConfig.from_pretrained(bridge)
        self.sharer_window = sharer_window(self.config, bridge)
        self.samples = samples(bridge)

    async def __call__(self, scope, receive, send):
        endpoint = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or scope["method"] != "POST" or endpoint not in ENDPOINTS:
            return await self.app(scope, receive, send)
        body, why, status = await read_json(receive, self.max_bytes)
        if body is None:
            return await send_error(send, why, status)
        try:
            body = self.with_prompts(body, endpoint)
        except BadRequestError as error:
            return await send_error(send, str(error), 400)
        scope, encoded = with_body(scope, body)
        async with replayed(encoded, receive) as (replay, _):
            await self.app(scope, replay, send)

    def with_prompts(self, body: dict, endpoint: str) -> dict:
        """The request that vLLM gets.

        Raises:
            BadRequestError: for a request that cannot be bridged, with the reason.
        """
        extension = take_extension(body, endpoint)
        if not self.samples and body.get("temperature") is None and (body.get("n") or 1) == 1:
            # As `h2c serve` answers; vLLM would sample at 1, and refuses n greedy answers.
            body = {**body, "temperature": 0}
        if not extension.h2c:
            if body.get("kv_transfer_params") is not None:
                raise BadRequestError(
                    f"kv_transfer_params is given; leave it out: {REFUSED['kv_transfer_params']}."
                )
            return {**body, "kv_transfer_params": {"h2c": False}}
        for name, why in REFUSED.items():
            if name == "prompt" and endpoint != RESPONSES:
                continue
            if body.get(name) not in (None, False) and not (name == "best_of" and body[name] == 1):
                raise BadRequestError(f"{name} is given; leave it out, or set h2c to false: {why}.")
        if endpoint == CHAT and body.get("add_generation_prompt") is False:
            raise BadRequestError(
                "add_generation_prompt is false; expected true: the last token of the prompt is the "
                "kickstart."
            )
        inputs = encode(self.processor, body, endpoint, extension)
        ids, sharer_ids = (inputs[name][0].tolist() for name in ("input_ids", "sharer_input_ids"))
        if len(ids) < 2:
            raise BadRequestError(
                f"The prompt has {len(ids)} token; expected at least 2 (one to bridge, and the kickstart)."
            )
        if self.sharer_window is not None and len(sharer_ids) > self.sharer_window:
            raise BadRequestError(
                f"The Sharer's prompt has {len(sharer_ids)} tokens; its context window is "
                f"{self.sharer_window}."
            )
        params = {"sharer_input_ids": sharer_ids, "control": extension.control}
        if message := message_tokens(self.config, len(sharer_ids)):
            if endpoint == RESPONSES:
                raise BadRequestError(
                    "vLLM renders the prompt of /v1/responses itself, without the message; use "
                    "/v1/chat/completions."
                )
            params["message_tokens"] = message
            ids = [ids[0]] * message + ids  # positions to write the message into; the ids are not read
        if endpoint == CHAT:
            params["prompt_token_ids"] = ids  # vLLM reads them instead of rendering the messages
        elif endpoint == COMPLETIONS:
            body = {**body, "prompt": ids}
        else:
            params["input_ids"] = ids  # vLLM renders `input` itself; the connector compares
        return {**body, "kv_transfer_params": params}


def samples(bridge: str) -> bool:
    """Whether the bridge's generation config samples; `generate` is greedy without one."""
    try:
        return bool(GenerationConfig.from_pretrained(bridge).do_sample)
    except OSError:  # the repo has none
        return False


def sharer_window(config: H2CBridgeConfig, bridge: str) -> int | None:
    """The Sharer's context window, from its config."""
    fetched = fetched_base(config, "sharer")
    if fetched is not None:
        sharer = fetched.config()
    else:
        model_id, arguments = config.locate("sharer", bridge, {}, {})
        sharer = AutoConfig.from_pretrained(model_id, **arguments)
    return getattr(sharer.get_text_config(decoder=True), "max_position_embeddings", None)
