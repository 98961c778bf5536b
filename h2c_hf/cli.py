"""`h2c <command> ...`: a thin door to each part of the package."""

import argparse
import contextlib
import difflib
import os
import sys
from dataclasses import dataclass
from importlib import import_module

from . import REPOSITORY, __version__
from .hints import missing


@dataclass(frozen=True)
class Command:
    """A command: the module whose `main(arguments)` returns the exit status, its parser's module, its aim.

    `extra` names the optional dependencies that the command needs.
    """

    module: str
    parsers: str
    what: str
    extra: str = "all"
    # Mistakes are told before torch is imported, if the parser reads all arguments; other commands read a
    # yaml file or lm-eval's own.
    complete: bool = True


COMMANDS = {
    "quickstart": Command(
        "apps.quickstart",
        "apps.parsers",
        "train a bridge on Atlas, measure it, draw it, load it back and ask it",
    ),
    "chat": Command(
        "apps.chat",
        "apps.parsers",
        "talk to a bridge in the terminal, and compare it with the Receiver and text-to-text",
        extra="chat",
    ),
    "demo": Command(
        "apps.demo",
        "apps.parsers",
        "open a page in which Receiver, text-to-text, H2C and Sharer answer side by side",
        extra="demo",
    ),
    "configs": Command(
        "configs", "configs", "list the configs that come with the package, or copy one to start from"
    ),
    "train": Command(
        "training.train",
        "training.parsers",
        "train a bridge for a pair of models on a mixture of data",
        extra="train",
        complete=False,
    ),
    "precompute": Command(
        "training.precompute",
        "training.parsers",
        "write the Sharer's hidden states of a run's examples once, to train from them",
        extra="train",
        complete=False,
    ),
    "lora": Command(
        "experiments.lora",
        "experiments.parsers",
        "fine-tune the Receiver on the same data without a Sharer, as a baseline",
        extra="lora",
        complete=False,
    ),
    "evaluate": Command(
        "evaluation.evaluate",
        "evaluation.parsers",
        "measure a bridge against baselines and controls, and write a report",
        extra="eval",
        complete=False,
    ),
    "report": Command("reports.compare", "reports.parsers", "print a report, or compare two", extra="eval"),
    "models": Command(
        "hub.models", "hub.parsers", "list the language models of the real pair, and fetch them"
    ),
    "serve": Command("apps.serve", "apps.parsers", "answer OpenAI's clients over HTTP", extra="serve"),
    "plot": Command(
        "visualization.figures", "visualization.parsers", "draw the figures of a saved report", extra="viz"
    ),
    "lm-eval": Command(
        "evaluation.lm_eval_command",
        "evaluation.parsers",
        "run tasks of the lm-evaluation-harness, for any method or control",
        extra="lm-eval",
        complete=False,
    ),
    "push": Command(
        "hub.push", "hub.parsers", "upload a bridge, with its model card and results, to the Hub", extra="viz"
    ),
    "convert": Command(
        "hub.conversion", "hub.parsers", "turn a checkpoint of the original implementation into a bridge"
    ),
    "ablate": Command(
        "experiments.ablation",
        "experiments.parsers",
        "train several forms of the bridge alike, and compare them",
    ),
    "atlas": Command("atlas.build", "atlas.parsers", "rebuild the embedded world of facts and tiny models"),
}
RESUMED = {"evaluate", "precompute", "ablate"}  # go on where they stopped when they are started again
INTERRUPTED = 130  # exit statuses as shells give them: 128 + SIGINT, 128 + SIGPIPE
CLOSED_PIPE = 141


def usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.what}" for name, command in COMMANDS.items())
    return f"""usage: h2c COMMAND ...

A large model thinks for a small one: train, measure, try and share bridges between language models.

commands:
{commands}

`h2c COMMAND --help` lists what a command takes; `h2c --version` tells the version.
Shell completion: eval "$(register-python-argcomplete h2c)"
{REPOSITORY}"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status. A user's mistake is told in one sentence, with status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "_ARGCOMPLETE" in os.environ:
        complete()
    if arguments[:1] == ["help"]:
        arguments = [arguments[1], "--help"] if len(arguments) > 1 else []
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"h2c {__version__}")
        return 0
    command, *rest = arguments
    try:
        status = run(command, rest)
        sys.stdout.flush()  # here, so that a closed pipe is met here
        return status
    except KeyboardInterrupt:
        tell(
            f"{command} was stopped by Ctrl-C"
            + ("; the same command goes on where it stopped." if command in RESUMED else ".")
        )
        return INTERRUPTED
    except BrokenPipeError:
        # Or Python would complain of the closed pipe when it ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        if not isinstance(error, mistakes()):
            raise
        tell(" ".join(str(error).split()) or type(error).__name__)
        return 2


def run(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise ValueError(
            f"There is no command {command!r}"
            + (f"; did you mean `h2c {near[0]}`?" if near else "; `h2c` lists them.")
        )
    # lm-eval has help of its own behind its subcommands.
    if {"-h", "--help"} & set(arguments[:1] if command == "lm-eval" else arguments):
        parser_of(command).print_help()
        return 0
    if COMMANDS[command].complete:
        parser_of(command).parse_args(arguments)
    if not sys.stderr.isatty():
        # Read when tqdm is imported: progress bars would fill a log file.
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        return import_module(f"{__package__}.{COMMANDS[command].module}").main(arguments) or 0
    except ModuleNotFoundError as error:
        if (error.name or __package__).split(".")[0] == __package__:
            raise
        raise ValueError(missing(command, error, COMMANDS[command].extra)) from error


def parser_of(command: str) -> argparse.ArgumentParser:
    return getattr(import_module(f"{__package__}.{COMMANDS[command].parsers}"), command.replace("-", "_"))()


def mistakes() -> tuple[type[Exception], ...]:
    """Return the errors that are told in one sentence, without a traceback."""
    from safetensors import SafetensorError

    return ValueError, OSError, FloatingPointError, SafetensorError


def tell(message: str) -> None:
    if "tqdm" in sys.modules:  # on a line of its own, below a progress bar
        from tqdm import tqdm

        tqdm.write(f"h2c: {message}", file=sys.stderr)
    else:
        print(f"h2c: {message}", file=sys.stderr)


def complete() -> None:
    """Answer the shell's question for completions, if argcomplete asks it, and exit."""
    import argcomplete

    parser = argparse.ArgumentParser(prog="h2c")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.what, parents=[parser_of(name)], add_help=False)
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    sys.exit(main())
