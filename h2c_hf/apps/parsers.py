"""The argument parsers of quickstart, chat, demo and serve. Without torch."""

import argparse
import typing

from ..command_line import TEMPLATE_HELP, Parser
from ..pair_fields import Quantization
from .chat_help import HELP


ROLES = ("sharer", "receiver")


def add_repo(parser: Parser) -> None:
    parser.add_argument(
        "repo",
        nargs="?",
        metavar="REPO",
        help="the bridge: a folder or a Hub id (default: Atlas, in the package)",
    )
    parser.add_argument("--revision", help="commit of the bridge's repo")
    for role in ROLES:
        name = role.capitalize()
        parser.add_argument(
            f"--{role}",
            metavar="MODEL",
            help=f"a {name} instead of the one that REPO names: Hub id, folder, GGUF file",
        )
        parser.add_argument(
            f"--{role}_chat_template",
            metavar="FILE",
            help=f"Jinja file, or 'plain', instead of the {name}'s own template",
        )
    parser.add_argument("--chat_template_kwargs", metavar="JSON", help=TEMPLATE_HELP)
    parser.add_argument(
        "--sharer_quantization",
        choices=typing.get_args(Quantization),
        default="none",
        help="load REPO's Sharer in 4 or 8 bits (bitsandbytes)",
    )


def pair_options(options: argparse.Namespace) -> dict:
    """Return the options of `add_repo`, as `loading.opened` takes them."""
    of_roles = [f"{role}{name}" for role in ROLES for name in ("", "_chat_template")]
    names = ["revision", "sharer_quantization", "chat_template_kwargs", *of_roles]
    return {name: getattr(options, name) for name in names}


def quickstart() -> Parser:
    parser = Parser(
        "h2c quickstart",
        "Train a bridge, measure it against baselines and controls, draw, save, load and ask it.",
    )
    parser.add_argument(
        "--pair",
        default="atlas",
        help="'atlas', or two published models: gemma-3-270m_to_smollm2-135m (about 20 minutes)",
    )
    parser.add_argument(
        "--output", default="outputs/quickstart", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=float, default=1.0, help="passes over the questions of Atlas (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, help="training steps of another pair, instead of those of its quickstart.yaml"
    )
    return parser


def chat() -> Parser:
    parser = Parser(
        "h2c chat",
        "Talk to a bridge in the terminal: several turns, streamed; what earlier turns computed is kept.",
        epilog="in the chat:\n\n" + "\n".join(f"  {line}" for line in HELP.splitlines()),
    )  # fmt: skip
    add_repo(parser)
    parser.add_argument(
        "--url", help="talk to a server instead of loading REPO: h2c serve, or vLLM with the connector"
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=256, help="longest answer (default: %(default)s)"
    )
    return parser


def demo() -> Parser:
    parser = Parser(
        "h2c demo",
        "Open a page in which Receiver, text-to-text, H2C, Sharer and controls answer side by side.",
    )
    add_repo(parser)
    parser.add_argument(
        "--host", help="address to listen on; 0.0.0.0 for other machines too (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, help="port to listen on (default: the first free one from 7860 on)"
    )
    parser.add_argument(
        "--share", action="store_true", help="make a public link for 72 hours, through Gradio's servers"
    )
    return parser


def serve() -> Parser:
    parser = Parser("h2c serve", "Answer OpenAI's clients over HTTP, for one bridge.")
    add_repo(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port (default: %(default)s)")
    parser.add_argument("--name", help="name of the model in requests (default: REPO, or atlas)")
    parser.add_argument(
        "--max_body",
        type=int,
        default=4 * 2**20,
        metavar="BYTES",
        help="largest request (default: %(default)s)",
    )
    parser.add_argument(
        "--shutdown_seconds",
        type=int,
        default=60,
        help="how long running requests may go on after SIGTERM (default: %(default)s)",
    )
    return parser
