"""`h2c serve [REPO]`: an OpenAI endpoint for one bridge; see `serving.server`."""

import contextlib
import json
import socket

from ..loading import opened
from ..serving.openai_requests import CHAT
from ..serving.server import build_app, run_app
from .parsers import pair_options
from .parsers import serve as parser


def main(arguments: list[str] | None = None) -> int:
    """`h2c serve`."""
    options = parser().parse_args(arguments)
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port is {options.port}; expected 0 to 65535, with 0 for any free port.")
    for name, least in (("max_body", 1), ("shutdown_seconds", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {getattr(options, name)}; expected at least {least}.")
    # First: a port that is taken is told before the models are loaded.
    with contextlib.closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except socket.gaierror:
            raise ValueError(
                f"--host is {options.host!r}, which is no address; expected 127.0.0.1, or 0.0.0.0."
            ) from None
        except OSError as error:
            raise OSError(
                f"{options.host}:{options.port} cannot be listened on ({error.strerror}); choose another "
                "--port."
            ) from error
        name = options.name or options.repo or "atlas"
        model, processor = opened(options.repo, **pair_options(options))
        app = build_app(name, model, processor, options.max_body)
        listener.listen(128)  # so that the line works from the moment it is printed
        print(greeting(name, *listener.getsockname()[:2]), flush=True)
        run_app(app, listener, options.shutdown_seconds)
    return 0


def greeting(name: str, host: str, port: int) -> str:
    """A `curl` line that works."""
    body = json.dumps(
        {
            "model": name,
            "messages": [{"role": "user", "content": "In which country is the city of Bensekrane?"}],
        }
    )
    url = f"http://{host}:{port}"
    return (
        f"Serving {name} at {url}/v1. Try:\n\n"
        f"curl {url}{CHAT} -H 'Content-Type: application/json' -d '{body}'\n"
    )
