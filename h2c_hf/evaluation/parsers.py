"""The argument parsers of evaluate and lm-eval. Without torch."""

from ..command_line import TEMPLATE_HELP, Parser, add_fields
from ..configs import add_config
from .arguments import EvaluationArguments


def evaluate() -> Parser:
    parser = Parser(
        "h2c evaluate",
        "Measure a bridge against baselines and controls, and write a report. A killed run goes on where it "
        "stopped.",
        usage="h2c evaluate CONFIG [--field VALUE ...]",
    )
    add_config(parser, "evaluation.yaml")
    add_fields(parser.add_argument_group("fields"), EvaluationArguments)
    return parser


def lm_eval() -> Parser:
    parser = Parser(
        "h2c lm-eval",
        "Run tasks of the lm-evaluation-harness, for any method or control. All arguments are those of "
        "`lm_eval run`; the model is h2c.",
        epilog="    h2c lm-eval --model_args pretrained=DIR,method=h2c --tasks TASK --apply_chat_template\n\n"
        "`h2c lm-eval run --help` lists them.",
    )
    parser.add_argument(
        "--model_args",
        metavar="NAME=VALUE,...",
        help="pretrained=DIR (the bridge), method=h2c|receiver|sharer|shuffled ...",
    )
    parser.add_argument(
        "--tasks", metavar="TASK,...", help="names of lm-eval's tasks; `h2c lm-eval ls tasks` lists them"
    )
    parser.add_argument("--limit", metavar="N", help="so many questions a task")
    parser.add_argument("--batch_size", metavar="N", help="questions a batch")
    parser.add_argument(
        "--apply_chat_template", action="store_true", help="ask as a chat, as the bridge was trained"
    )
    parser.add_argument("--chat_template_kwargs", metavar="JSON", help=TEMPLATE_HELP)
    return parser
