"""`h2c chat [REPO]`: a conversation in the terminal, streamed; what earlier turns computed is kept."""

import argparse
import contextlib
import shutil
import textwrap
from itertools import zip_longest

from transformers import TextStreamer
from transformers.utils import logging

from .data.prompts import user_turn, with_passage
from .demo import add_pair_options, opened, pair_options
from .evaluation.methods import METHODS, Batch
from .evaluation.page import TITLES
from .modeling import H2CForCausalLM, H2CProcessor


COMPARED = ("receiver", "text_to_text", "h2c")
HELP = """\
/compare QUESTION   Receiver, text-to-text and H2C side by side, without the conversation
/sharer TEXT        a passage that only the Sharer reads, before your next message
/clear              forget the conversation
/help               this list
/quit               end (or Ctrl-D); Ctrl-C stops an answer"""


class Chat:
    """One conversation, and the commands around it. Answers go to standard output."""

    def __init__(self, model: H2CForCausalLM, processor: H2CProcessor, max_new_tokens: int):
        self.model, self.processor, self.options = model, processor, {"max_new_tokens": max_new_tokens}
        self.clear()

    def clear(self) -> None:
        self.conversation, self.passage = self.model.conversation(), None
        self.messages, self.sharer_messages = [], []

    def run(self) -> None:
        """Read lines until /quit or the end of the input."""
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\n(/quit or Ctrl-D ends)")
                continue
            if line == "/quit":
                return
            try:
                self.take(line)
            except KeyboardInterrupt:
                print("\n(stopped; that message is forgotten)")
            except ValueError as error:  # longer than a context window
                print(f"{error} That message is forgotten; /clear forgets the others.")

    def take(self, line: str) -> None:
        command, _, text = line.partition(" ")
        text = text.strip()
        if command == "/clear":
            self.clear()
        elif command == "/help":
            print(HELP)
        elif command in ("/compare", "/sharer") and not text:
            print(f"{command} needs text: {next(row for row in HELP.splitlines() if row.startswith(command))}")
        elif command == "/compare":
            self.compare(text)
        elif command == "/sharer":
            self.passage = text
        elif command.startswith("/"):
            print(f"There is no command {command}; /help lists them.")
        elif line:
            self.ask(line)

    def ask(self, text: str) -> None:
        """Answer a message. One whose answer fails or is stopped is as if it had not been sent."""
        messages = [*self.messages, *user_turn(text)]
        sharer_messages = [*self.sharer_messages, *user_turn(with_passage(self.passage, text) if self.passage else text)]
        inputs = self.processor.apply_chat_template(messages, sharer_messages).to(self.model.receiver.device)
        streamer = TextStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        output = self.conversation.generate(**inputs, streamer=streamer, **self.options)
        answer = self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        said = {"role": "assistant", "content": answer}
        self.messages, self.sharer_messages, self.passage = [*messages, said], [*sharer_messages, said], None

    def compare(self, text: str) -> None:
        batch = Batch(self.model, self.processor, [{"question": text}], "open")
        answers = [METHODS[name].generate(batch, do_sample=False, **self.options)[0].strip() for name in COMPARED]
        print(columns([TITLES[name] for name in COMPARED], answers, shutil.get_terminal_size().columns))


def columns(titles: list[str], texts: list[str], width: int) -> str:
    """Texts beside each other, each wrapped below its title, in `width` characters."""
    width = max(12, (width + 2) // len(texts) - 2)
    wrapped = [[line for part in text.splitlines() for line in textwrap.wrap(part, width) or [""]] for text in texts]
    rows = [titles, ["-" * width] * len(texts), *zip_longest(*wrapped, fillvalue="")]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell in row).rstrip() for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """`h2c chat`."""
    parser = argparse.ArgumentParser(
        prog="h2c chat", description=__doc__, epilog=f"in the chat:\n{textwrap.indent(HELP, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("repo", nargs="?", metavar="REPO", help="the bridge: a folder or a Hub id (default: Atlas, in the package)")
    add_pair_options(parser)
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {options.max_new_tokens}; expected at least 1.")
    logging.disable_progress_bar()
    model, processor = opened(options.repo, **pair_options(options))
    with contextlib.suppress(ImportError):  # where there is one, `input` has line editing and a history
        import readline  # noqa: F401
    print(f"{options.repo or 'Atlas'}: {model.bridge.num_parameters():,} parameters between {named_pair(model)}. /help lists the commands.")
    Chat(model, processor, options.max_new_tokens).run()
    return 0


def named_pair(model: H2CForCausalLM) -> str:
    return " and ".join(f"{role} {getattr(model.config, f'{role}_model_id')}" for role in ("sharer", "receiver"))
