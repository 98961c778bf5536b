"""`h2c demo [REPO]`: a page with Receiver, text-to-text and H2C side by side, and a look into the bridge."""

import errno
import socket

from ..hints import install
from ..loading import opened
from .parsers import demo as parser
from .parsers import pair_options


def main(arguments: list[str] | None = None) -> int:
    """`h2c demo`."""
    options = parser().parse_args(arguments)
    check_address(options.host, options.port)
    try:
        from . import demo_page
    except ImportError as error:
        raise ValueError(f"h2c demo needs gradio ({error}); install it with: {install('demo')}") from None

    model, processor = opened(options.repo, **pair_options(options))
    demo_page.serve(demo_page.Demo(model, processor, options.repo), options.host, options.port, options.share)
    return 0


def check_address(host: str | None, port: int | None) -> None:
    """Refuse an address that cannot be listened on, before the models are loaded.

    Raises:
        ValueError: naming the host or the port.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"--port is {port}; expected 1 to 65535.")
    host = host or "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port or 0))
    except socket.gaierror:
        raise ValueError(
            f"--host is {host!r}, which is no address; expected 127.0.0.1, or 0.0.0.0 for other machines too."
        ) from None
    except PermissionError:
        raise ValueError(f"--port {port} needs the rights of root; expected 1024 or more.") from None
    except OSError as error:
        told = (
            "is in use; expected another port, or none"
            if error.errno == errno.EADDRINUSE
            else f"cannot be used: {error.strerror}"
        )
        raise ValueError(f"{host}:{port or ''} {told}.") from None
