"""ASGI middleware and errors that both doors share. Imports no web framework."""

import asyncio
import contextlib
import json


def error_body(message: str, status: int) -> dict:
    """An error as OpenAI's clients expect it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def send_error(send, message: str, status: int, retry_after: int | None = None) -> None:
    """Answer with an error and close the connection: the body may be unread. `retry_after`: seconds."""
    body = json.dumps(error_body(message, status)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_json(receive, max_bytes: int) -> tuple[dict | None, str, int]:
    """Read a request's body of at most `max_bytes`.

    Returns:
        The JSON object; or None, why it is refused and the status. A larger body is read to its end, up to 16
        times the limit, and dropped: a client that is still sending would see a reset connection instead of
        the answer.
    """
    parts, size, more = [], 0, True
    while more and size <= 16 * max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None, "The client closed the connection.", 400
        size += len(message.get("body", b""))
        if size <= max_bytes:
            parts.append(message.get("body", b""))
        else:
            parts.clear()
        more = message.get("more_body", False)
    if size > max_bytes:
        return None, f"The body has more than {max_bytes:,} bytes; expected at most that.", 413
    try:
        body = json.loads(b"".join(parts))
    except RecursionError:
        return None, "The body nests too deeply; expected a JSON object of a request.", 400
    except ValueError as error:
        return None, f"The body is not JSON: {error}.", 400
    if not isinstance(body, dict):
        return None, f"The body is a JSON {type(body).__name__}; expected an object.", 400
    return body, "", 200


def with_body(scope: dict, body: dict) -> tuple[dict, bytes]:
    """A scope and bytes for another body."""
    encoded = json.dumps(body).encode()
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if name not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*kept, (b"content-length", str(len(encoded)).encode())]}, encoded


@contextlib.asynccontextmanager
async def replayed(body: bytes, receive):
    """A `receive` that gives `body` and waits for the client to hang up; and an event that is set then."""
    gone, given = asyncio.Event(), False

    async def watch():
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async def replay():
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    watching = asyncio.create_task(watch())
    try:
        yield replay, gone
    finally:
        watching.cancel()
