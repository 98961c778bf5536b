"""The Sharer, the bridge and the Receiver's prefill as a process that sends keys and values to vLLM workers.

    H2C_BRIDGE_TOKEN=SECRET python -m h2c_hf.serving.bridge_server REPO --host 0.0.0.0 --port 8200

    POST /bridge   {"input_ids", "sharer_input_ids", "control"} -> safetensors of "keys" and "values",
                   (layers, heads, N - 1, head_dim) each, in the Receiver's dtype
    GET  /pair     which Receiver the bridge is for
    GET  /health   200 while the server takes prompts

A full queue answers 503 with `Retry-After`. A client that hangs up gives its place in the queue back.
"""

import argparse
import asyncio
import contextlib
import hmac
import json
import os

import safetensors.torch
import torch
import uvicorn

from ..loading import load_model
from ..modeling import H2CForCausalLM
from .bridging import Bridged, Bridger, Prompt, QueueFullError, pair_facts
from .http import read_json, replayed, send_error


TOKEN_VARIABLE = "H2C_BRIDGE_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class BridgeServer:
    """An ASGI app around a `Bridger`."""

    def __init__(
        self, model: H2CForCausalLM, token: str | None = None, max_bytes: int = 4 * 2**20, **options
    ):
        """
        Args:
            token: that clients must send; None lets everybody in.
            max_bytes: of a request's body.
            options: of `Bridger`.
        """
        self.bridger = Bridger(model, **options)
        self.facts = pair_facts(model)
        self.token = token
        self.max_bytes = max_bytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        asked = (scope["method"], scope["path"])
        if asked == ("GET", "/health"):
            return await respond(send, b'{"status": "ok"}', b"application/json")
        if not self._knows(scope):
            return await send_error(
                send,
                f"The bridge server expects 'Authorization: Bearer' and the token of {TOKEN_VARIABLE}.",
                401,
            )
        if asked == ("GET", "/pair"):
            return await respond(send, json.dumps(self.facts).encode(), b"application/json")
        if asked != ("POST", "/bridge"):
            return await send_error(
                send,
                f"There is no {asked[0]} {asked[1]} here; expected POST /bridge, GET /pair or GET /health.",
                404,
            )
        body, why, status = await read_json(receive, self.max_bytes)
        if body is None:
            return await send_error(send, why, status)
        try:
            future = self.bridger.submit(read_prompt(body))
        except QueueFullError as error:
            return await send_error(send, str(error), 503, retry_after=1)
        except ValueError as error:
            return await send_error(send, str(error), 400)
        async with replayed(b"", receive) as (_, gone):
            hung_up, answered = asyncio.ensure_future(gone.wait()), asyncio.wrap_future(future)
            await asyncio.wait([hung_up, answered], return_when=asyncio.FIRST_COMPLETED)
            hung_up.cancel()
        if not answered.done():
            answered.cancel()  # before its turn; a prompt that is being bridged is finished, and kept
            return
        try:
            content = await asyncio.to_thread(encoded, await answered)
        except asyncio.CancelledError:
            return await send_error(send, "The bridge server is shutting down.", 503, retry_after=1)
        except ValueError as error:
            return await send_error(send, str(error), 400)
        except Exception as error:
            return await send_error(send, f"The prompt could not be bridged: {type(error).__name__}.", 500)
        await respond(send, content, b"application/octet-stream")

    def _knows(self, scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return self.token is None or hmac.compare_digest(given, f"Bearer {self.token}".encode())


async def respond(send, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def encoded(bridged: Bridged) -> bytes:
    """The body of an answer."""
    if bridged.ready is not None:
        bridged.ready.synchronize()
    return safetensors.torch.save(
        {"keys": bridged.keys.cpu().contiguous(), "values": bridged.values.cpu().contiguous()}
    )


def read_prompt(body: dict) -> Prompt:
    """
    Raises:
        ValueError: for a field that is missing, unknown or of the wrong type.
    """
    if unknown := body.keys() - {"input_ids", "sharer_input_ids", "control"}:
        raise ValueError(
            f"There is no field {sorted(unknown)[0]!r}; expected input_ids, sharer_input_ids and control."
        )
    rows = []
    for name in ("input_ids", "sharer_input_ids"):
        ids = body.get(name)
        if (
            not isinstance(ids, list)
            or not ids
            or not all(type(token) is int and 0 <= token < 2**31 for token in ids)
        ):
            raise ValueError(
                f"{name} is {'empty' if ids == [] else type(ids).__name__}; expected a list of token ids."
            )
        rows.append(tuple(ids))
    if body.get("control") not in (None, "zeros"):
        raise ValueError(f"control is {body['control']!r}; expected 'zeros' or null.")
    return Prompt(*rows, body.get("control"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m h2c_hf.serving.bridge_server", description=__doc__.splitlines()[0]
    )
    parser.add_argument("repo", metavar="REPO", help="the bridge: a folder or a Hub id")
    parser.add_argument(
        "--host", default="127.0.0.1", help=f"another address needs {TOKEN_VARIABLE} (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8200, help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="of all three models (default: as they were saved, or float32 if bfloat16 is emulated)",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument(
        "--max_batch_tokens",
        type=int,
        default=4096,
        help="of one pass, padding included (default: %(default)s)",
    )
    parser.add_argument(
        "--max_queue", type=int, default=256, help="prompts that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--cache_mb", type=int, default=256, help="memory for recent results (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None and options.host not in LOOPBACK:
        raise SystemExit(
            f"--host is {options.host} and {TOKEN_VARIABLE} is not set; set a token, or listen on 127.0.0.1."
        )
    model = load_model(options.repo, dtype=options.dtype).to(options.device)
    app = BridgeServer(
        model,
        token,
        max_batch_tokens=options.max_batch_tokens,
        max_queue=options.max_queue,
        cache_bytes=options.cache_mb * 2**20,
    )
    print(f"Bridging for {options.repo} at http://{options.host}:{options.port}", flush=True)
    with contextlib.closing(app.bridger):
        uvicorn.run(
            app,
            host=options.host,
            port=options.port,
            log_level="warning",
            timeout_graceful_shutdown=30,
            backlog=1024,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
