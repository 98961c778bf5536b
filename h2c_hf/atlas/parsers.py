"""The argument parser of atlas. Without torch."""

from ..command_line import Parser


def atlas() -> Parser:
    parser = Parser(
        "h2c atlas",
        "Rebuild Atlas from nothing: facts, tokenizers and both models (about an hour on 2 cores).",
    )
    parser.add_argument("action", choices=("build",))
    parser.add_argument("--output", default="outputs/atlas", help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--tables",
        metavar="DIR",
        help="folder of the source tables to select facts from (default: the facts that ship)",
    )
    return parser
