"""The app behind `h2c serve`: an OpenAI endpoint for one bridge, on the server of `transformers serve`."""

import asyncio
import json
import socket
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from ..hints import install
from ..modeling import H2CForCausalLM, H2CProcessor
from ..modeling.inputs_h2c import check_prompt
from .bridging import zero_states
from .http import error_body, read_json, replayed, send_error, with_body
from .openai_requests import (
    CHAT,
    COMPLETIONS,
    ENDPOINTS,
    RESPONSES,
    BadRequestError,
    Extension,
    check_fields,
    encode,
    refuse_ignored,
    take_extension,
)


try:
    import uvicorn
    from fastapi import HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException as StarletteHTTPException
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager, TimedModel
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import (
        BaseHandler,
        DirectStreamer,
        GenerateManager,
        GenerationState,
        _GenerationCancelled,
        _StreamError,
        get_response_template,
    )
# Without them, transformers' own modules fail on names that they do not find.
except (ImportError, NameError) as error:
    raise ValueError(
        f"h2c serve needs fastapi, uvicorn and openai ({error}); install them with: {install('serve')}"
    ) from None


# `transformers chat` asks for the last one first.
ROUTES = {*ENDPOINTS, "/v1/models", "/health", "/load_model"}
DEFAULT_NEW_TOKENS = 1024  # as in transformers' server


@dataclass
class RequestState:
    """The state of one request that does not fit into the arguments of transformers' handlers."""

    gone: threading.Event = field(default_factory=threading.Event)  # the client hung up
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    alone: bool = False  # the Receiver answers without the bridge


STATE: ContextVar[RequestState] = ContextVar("request_state")


@dataclass
class Job:
    """A request that passed all checks."""

    inputs: dict
    generation_config: GenerationConfig


class OneBridge(ModelManager):
    """A model manager that holds one loaded bridge under one name, and loads no other."""

    def __init__(self, name: str, model: H2CForCausalLM, processor: H2CProcessor):
        super().__init__(device="cpu", model_timeout=-1)
        self.force_model = name
        self.loaded_models[name] = TimedModel(model, timeout_seconds=-1, processor=processor)

    def process_model_name(self, model_id: str) -> str:
        if model_id != self.force_model:
            raise HTTPException(404, f"There is no model {model_id!r} here; expected {self.force_model!r}.")
        return model_id


class StopText:
    """Cuts a streamed text before the first of `stop`. An end that may begin one is held back."""

    def __init__(self, stop: list[str]):
        self.stop, self._held, self.done = stop, "", False

    def take(self, piece: str) -> str:
        """The part of the text so far that is certain and has not been returned yet."""
        if self.done:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.done, self._held = True, ""
            return text[: min(found)]
        most = min(len(text), max((len(stop) for stop in self.stop), default=1) - 1)
        held = next(
            (n for n in range(most, 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stop)), 0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """Return the text that was held back, once the text has ended."""
        held, self._held = self._held, ""
        return held


def cut(text: str, stop: list[str]) -> str:
    """`text` up to the first of `stop`."""
    return text[: min((at for at in (text.find(one) for one in stop) if at >= 0), default=len(text))]


class CutQueue(asyncio.Queue):
    """A queue of text pieces that ends before the first stop string."""

    def __init__(self, stop: list[str]):
        super().__init__()
        self._text = StopText(stop)

    def put_nowait(self, item) -> None:
        if type(item) is str:
            item = self._text.take(item)
            if not item:
                return
        elif item is None and (rest := self._text.rest()):
            super().put_nowait(rest)
        super().put_nowait(item)


class Generation(GenerateManager):
    """One generation after the other on one thread, as in transformers. Generation ends when its client has
    hung up, the seed is set where its numbers are drawn, and stop strings are not part of the text."""

    def _run(self, model: H2CForCausalLM, arguments: dict, state: RequestState):
        if state.gone.is_set():
            raise _GenerationCancelled
        if state.seed is not None:
            torch.manual_seed(state.seed)

        def hung_up(input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), state.gone.is_set(), device=input_ids.device)

        answers = model.receiver if state.alone else model
        return answers.generate(**arguments, stopping_criteria=StoppingCriteriaList([hung_up]))

    def generate_streaming(self, model, processor, inputs, gen_config, request_id, response_parser=None):
        state, loop = STATE.get(), asyncio.get_running_loop()
        queue = CutQueue(state.stop)
        tokenizer = processor.tokenizer
        streamer = DirectStreamer(tokenizer._tokenizer, loop, queue, response_parser=response_parser)
        arguments = {**inputs, "streamer": streamer, "generation_config": gen_config, "tokenizer": tokenizer}

        def run() -> None:
            try:
                self._run(model, arguments, state)
            except _GenerationCancelled:
                loop.call_soon_threadsafe(queue.put_nowait, None)
            except Exception as error:  # transformers writes the message between quotes, as it is
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(json.dumps(str(error))[1:-1]))

        self.submit(run)
        return queue, streamer

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):
        rows = await self.sequences(model, processor, inputs, gen_config)
        return finished(processor, inputs, rows[0])

    async def sequences(self, model, processor, inputs, gen_config) -> list[torch.Tensor]:
        """The new tokens of each of `num_return_sequences` answers: the prompt is bridged once."""
        arguments = {**inputs, "generation_config": gen_config, "tokenizer": processor.tokenizer}
        try:
            rows = await self.async_submit(self._run, model, arguments, STATE.get())
        except _GenerationCancelled:
            raise HTTPException(499, "The client closed the connection.") from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        new = rows[:, inputs["input_ids"].shape[1] :]
        return [without_padding(row, gen_config) for row in new]


class Finished:
    """A generation manager that has the answer already."""

    def __init__(self, row: torch.Tensor):
        self.row = row

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):
        return finished(processor, inputs, self.row)


def finished(processor, inputs: dict, row: torch.Tensor) -> tuple[str, int, torch.Tensor]:
    """Text, prompt length and token ids, as transformers' handlers expect them."""
    return (
        cut(processor.decode(row, skip_special_tokens=True), STATE.get().stop),
        inputs["input_ids"].shape[-1],
        row,
    )


def without_padding(row: torch.Tensor, config: GenerationConfig) -> torch.Tensor:
    """A row of several answers up to its end token: the padding of shorter answers is not part of them."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    found = [index for index, token in enumerate(row.tolist()) if token in ends]
    return row[: found[0] + 1] if found else row


class BridgeRequests(BaseHandler):
    """The steps that the three handlers share, before transformers' own code answers."""

    endpoint: str

    async def handle_request(self, body: dict, request_id: str):
        try:
            extension = take_extension(body, self.endpoint)
            check_fields(body)
            refuse_ignored(body)
            self._validate_request(
                {name: value for name, value in body.items() if name not in ("n", "chat_template_kwargs")}
            )
            name, model, processor = self._resolve_model(body)
            job = self._job(model, processor, body, extension)
        except BadRequestError as error:
            raise HTTPException(400, str(error)) from error
        manager = self.generation_state.get_manager(name)
        arguments = [request_id, model, processor, name]
        arguments += [body] if self.endpoint == RESPONSES else []
        arguments += [job.inputs, job.generation_config]
        more = {} if self.endpoint == COMPLETIONS else {"tools": body.get("tools")}
        if self.endpoint == COMPLETIONS:
            more["suffix"] = body.get("suffix")
        if body.get("stream"):
            return self._streaming(*arguments, gen_manager=manager, **more)
        copies = int(body.get("n") or 1)
        if copies == 1:
            return await self._non_streaming(*arguments, gen_manager=manager, **more)
        if job.generation_config.do_sample:
            job.generation_config.num_return_sequences = copies
        rows = await manager.sequences(model, processor, job.inputs, job.generation_config)
        rows = rows if job.generation_config.do_sample else rows * copies  # greedy answers are alike
        answers = [await self._non_streaming(*arguments, gen_manager=Finished(row), **more) for row in rows]
        return JSONResponse(merged([json.loads(answer.body) for answer in answers]))

    def _job(self, model: H2CForCausalLM, processor: H2CProcessor, body: dict, extension: Extension) -> Job:
        """Encode and check a request.

        Raises:
            BadRequestError: for a request that cannot be answered as it is.
        """
        inputs = encode(processor, body, self.endpoint, extension)
        try:
            ids, mask, sharer_ids, sharer_mask = (
                inputs[f"{prefix}{name}"]
                for prefix in ("", "sharer_")
                for name in ("input_ids", "attention_mask")
            )
            if extension.h2c:
                check_prompt("sharer_", sharer_ids, sharer_mask, model.sharer, least=1)
                model.check_receiver_prompt(ids, mask, sharer_mask, sharer_ids.shape[1])
            else:
                check_prompt("", ids, mask, model.receiver, least=1)
        except ValueError as error:
            raise BadRequestError(str(error)) from error
        inputs = dict(inputs)
        if extension.control == "zeros":
            inputs["sharer_hidden_states"] = zero_states(model, inputs.pop("sharer_input_ids"))
        STATE.get().alone = not extension.h2c
        if not extension.h2c:
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        device = model.device
        inputs = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        message = sharer_ids.shape[1] if extension.h2c and model.config.bridge_form == "message" else 0
        return Job(inputs, self._generation_config(body, model, ids.shape[1] + message))

    def _generation_config(self, body: dict, model: H2CForCausalLM, prompt_length: int) -> GenerationConfig:
        """The generation config of a request, within the Receiver's context window.

        Args:
            prompt_length: the positions that the prompt takes, with those of a message.

        Raises:
            BadRequestError: for values that `generate` refuses, or more new tokens than the window has left.
        """
        try:
            config = self._build_generation_config({**body, "seed": None}, model.generation_config)
            config.do_sample = (
                bool(body["temperature"]) if body.get("temperature") is not None else config.do_sample
            )
            if not config.do_sample:
                config.temperature = config.top_p = config.top_k = None
            if body.get("logit_bias"):  # transformers drops it in completions
                config.sequence_bias = {
                    (int(token),): float(bias) for token, bias in body["logit_bias"].items()
                }
            config.validate()
        except (ValueError, TypeError, AttributeError) as error:
            raise BadRequestError(f"The generation parameters are not valid: {error}") from error
        if (config.num_beams or 1) > 1 and body.get("stream"):
            raise BadRequestError(
                f"num_beams is {config.num_beams} and stream is true; expected num_beams=1 for a streamed "
                "answer."
            )
        most = max(config.num_return_sequences or 1, config.num_beams or 1)
        if most > 16:
            raise BadRequestError(f"num_beams or num_return_sequences is {most}; expected at most 16.")
        config.num_return_sequences = 1
        window = getattr(model.receiver.config.get_text_config(decoder=True), "max_position_embeddings", None)
        asked = [
            name
            for name in ("max_completion_tokens", "max_tokens", "max_output_tokens", "generation_config")
            if body.get(name)
        ]
        if window is not None:
            left = window - prompt_length
            if left < 1:
                raise BadRequestError(
                    f"The prompt has {prompt_length} tokens; the Receiver's context window is {window}, "
                    "answer included."
                )
            if asked and (config.max_new_tokens or 0) > left and asked[0] != "generation_config":
                raise BadRequestError(
                    f"The prompt has {prompt_length} tokens and {asked[0]} is {config.max_new_tokens}; "
                    f"the Receiver's context window is {window}, so expected at most {left}."
                )
            config.max_new_tokens = min(config.max_new_tokens or DEFAULT_NEW_TOKENS, left)
        stop = body.get("stop") or []
        state = STATE.get()
        state.stop, state.seed = [stop] if isinstance(stop, str) else stop, body.get("seed")
        config.stop_strings = state.stop or None
        return config


class Chat(BridgeRequests, ChatCompletionHandler):
    endpoint = CHAT

    # A response parser has read the text before the cut.
    def _build_completion(self, request_id, content, *args, **kwargs):
        return super()._build_completion(request_id, cut(content, STATE.get().stop), *args, **kwargs)


class Completions(BridgeRequests, CompletionHandler):
    endpoint = COMPLETIONS


class Responses(BridgeRequests, ResponseHandler):
    endpoint = RESPONSES


def merged(answers: list[dict]) -> dict:
    """One answer of several with a choice each; the prompt counts once."""
    answer = answers[0]
    answer["choices"] = [{**other["choices"][0], "index": index} for index, other in enumerate(answers)]
    usage = answer["usage"]
    usage["completion_tokens"] = sum(other["usage"]["completion_tokens"] for other in answers)
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return answer


class Guard:
    """ASGI middleware: refuses bodies that are no requests, gives each request its `RequestState`, and
    notices that a client hangs up."""

    def __init__(self, app, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        body, why, status = await read_json(receive, self.max_bytes)
        if body is None:
            return await send_error(send, why, status)
        scope, encoded = with_body(scope, body)
        state = RequestState()
        STATE.set(state)
        async with replayed(encoded, receive) as (replay, gone):
            noticed = asyncio.create_task(self._notice(gone, state))
            try:
                return await self.app(scope, replay, send)
            finally:
                noticed.cancel()

    @staticmethod
    async def _notice(gone: asyncio.Event, state: RequestState) -> None:
        await gone.wait()
        state.gone.set()


def build_app(name: str, model: H2CForCausalLM, processor: H2CProcessor, max_bytes: int):
    """transformers' server for one bridge.

    Args:
        name: of the model, in requests and answers.
        max_bytes: of a request's body.
    """
    tokenizer = processor.receiver_tokenizer
    # How tool calls are read from the text: transformers chooses by the model's type, and a bridge answers as
    # its Receiver does.
    template = get_response_template(tokenizer, model.receiver)
    if template and str(template.get("start_anchor")) in (tokenizer.chat_template or "").replace("\\n", "\n"):
        tokenizer.response_template = template
    manager, state = OneBridge(name, model, processor), GenerationState()
    state._generate_managers[name] = Generation()
    handlers = [handler(manager, state) for handler in (Chat, Completions, Responses)]
    app = build_server(manager, *handlers, None, None, state)
    # The others unload the model, or need other kinds of models.
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_request, error):
        return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request, error):
        return JSONResponse(error_body(str(error), 400), 400)

    @app.exception_handler(Exception)
    async def failed(_request, error):
        return JSONResponse(error_body(f"The server failed: {type(error).__name__}.", 500), 500)

    app.add_middleware(Guard, max_bytes=max_bytes)
    return app


def run_app(app, listener: socket.socket, shutdown_seconds: int) -> None:
    """Answer requests until SIGINT or SIGTERM; requests that run then have `shutdown_seconds` to end."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=shutdown_seconds)
    uvicorn.Server(config).run(sockets=[listener])
