"""`h2c <command> ...`: a thin door to each part of the package. A command's own module reads its arguments: `h2c <command> --help`."""

import argparse
import sys
from importlib import import_module

from tqdm import tqdm


# command: (module whose `main(arguments)` runs it and returns the exit status, what it does)
COMMANDS = {
    "quickstart": ("h2c_hf.quickstart", "train a bridge on Atlas, measure it, draw it, load it back and ask it"),
    "train": ("h2c_hf.training.train", "train a bridge for a pair of models on a mixture of data"),
    "precompute": ("h2c_hf.training.precompute", "write the Sharer's hidden states of a run's examples once, to train from them"),
    "lora": ("h2c_hf.experiments.lora", "fine-tune the Receiver on the same data without a Sharer, as a baseline"),
    "evaluate": ("h2c_hf.evaluation.evaluate", "measure a bridge against baselines and controls, and write a report"),
    "report": ("h2c_hf.evaluation.compare", "print a report, or compare two"),
    "lm-eval": ("h2c_hf.evaluation.lm_eval_command", "run tasks of the lm-evaluation-harness, for any method or control"),
    "chat": ("h2c_hf.chat", "talk to a bridge in the terminal, and compare it with the Receiver and text-to-text"),
    "models": ("h2c_hf.hub.models", "list the language models of the real pair, and fetch them"),
    "serve": ("h2c_hf.serving.server", "answer OpenAI's clients over HTTP"),
    "push": ("h2c_hf.hub.push", "upload a bridge, with its model card and results, to the Hub"),
    "demo": ("h2c_hf.demo", "open a page in which Receiver, text-to-text and H2C answer side by side"),
    "plot": ("h2c_hf.visualization.figures", "draw the figures of a saved report"),
    "atlas": ("h2c_hf.atlas.build", "rebuild the embedded world of facts and tiny models"),
}


def main(arguments: list[str] | None = None) -> int:
    listing = "\n".join(f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="h2c", description=__doc__, epilog=f"commands:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    options = parser.parse_args(arguments)
    try:
        # Imported when it is run: `h2c --help` should not wait for torch.
        return import_module(COMMANDS[options.command][0]).main(options.arguments) or 0
    except (ValueError, OSError, FloatingPointError) as error:  # told in one sentence, no traceback
        tqdm.write(f"h2c: {error}", file=sys.stderr)  # on a line of its own, where a progress bar stands
        return 2


if __name__ == "__main__":
    sys.exit(main())
