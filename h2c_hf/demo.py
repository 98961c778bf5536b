"""`h2c demo [REPO]`: a page in which Receiver, text-to-text and H2C answer side by side, and a look into the bridge."""

import argparse
import errno
import socket

import torch

from .hints import install
from .loading import ROLES, load_pair
from .modeling import H2CForCausalLM, H2CProcessor
from .parsers import demo as parser


def opened(repo: str | None, revision: str | None = None, **options) -> tuple[H2CForCausalLM, H2CProcessor]:
    """A bridge's models and processor, on the GPU where there is one; without a repo the pair and the bridge in the package, in fp32.

    Args:
        options: of `load_pair`.

    Raises:
        OSError: where there is no such repo or folder, in one sentence.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if repo is None:
        given = options.get("chat_template_kwargs")
        return load_pair("atlas", dtype=torch.float32, device_map={"": device}, chat_template_kwargs=given)
    return load_pair(repo, revision, dtype="auto", device_map={"": device}, **options)


def pair_options(options: argparse.Namespace) -> dict:
    """Return the options of `parsers.add_repo`, as `opened` takes them."""
    of_roles = [f"{role}{name}" for role in ROLES for name in ("", "_chat_template")]
    names = ["revision", "sharer_quantization", "chat_template_kwargs", *of_roles]
    return {name: getattr(options, name) for name in names}


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
        raise ValueError(f"--host is {host!r}, which is no address; expected 127.0.0.1, or 0.0.0.0 for other machines too.") from None
    except PermissionError:
        raise ValueError(f"--port {port} needs the rights of root; expected 1024 or more.") from None
    except OSError as error:
        told = "is in use; expected another port, or none" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise ValueError(f"{host}:{port or ''} {told}.") from None
