"""`h2c chat [REPO]`: a conversation in the terminal, streamed; what earlier turns computed is kept."""

import shutil
import sys
import textwrap
from collections.abc import Callable
from itertools import zip_longest

from transformers import TextStreamer
from transformers.utils import logging

from .chat_help import HELP
from .data.prompts import user_turn, with_passage
from .demo import opened, pair_options
from .evaluation.methods import METHODS, Batch
from .evaluation.page import TITLES
from .hints import next_commands
from .modeling import H2CForCausalLM, H2CProcessor
from .parsers import chat as parser


COMPARED = ("receiver", "text_to_text", "h2c")
COMMANDS = [line.split()[0] for line in HELP.splitlines()]
LEAVE = ("/quit", "/exit", "quit", "exit")
ATLAS_EXAMPLES = (
    "In which country is the city of Bensekrane?",
    "Which sport does Babe Ruth play?",
    "/compare What is the capital of Peru?",
)
EXAMPLES = ("Which planet has the shortest year?", "/compare Who wrote Middlemarch?")
ATLAS_LIMITS = (
    "The tiny models of Atlas answer questions about cities, countries, elements, stars and people, each by itself: they were not "
    "taught to understand a question that refers back ('And what is its capital?')."
)


class Chat:
    """One conversation, and the commands around it. Answers go to standard output."""

    def __init__(self, model: H2CForCausalLM, processor: H2CProcessor, max_new_tokens: int, read: Callable[[str], str] = input):
        """read: shows a prompt and returns a message of the user's; `input`, or `prompt_session().prompt` in a terminal."""
        self.model, self.processor, self.options, self.read = model, processor, {"max_new_tokens": max_new_tokens}, read
        self.clear()

    def clear(self) -> None:
        self.conversation, self.passage = self.model.conversation(), None
        self.messages, self.sharer_messages = [], []

    def run(self) -> None:
        """Read messages until /quit or the end of the input."""
        while True:
            try:
                line = self.read("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\n(/quit or Ctrl-D ends)")
                continue
            if line.lower() in LEAVE:
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
        inputs = self.processor.apply_chat_template(messages, sharer_messages).to(self.model.device)
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


def prompt_session():
    """Return a prompt for a terminal: a pasted paragraph is one message, Tab completes commands, the arrows recall earlier messages."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.shortcuts import CompleteStyle

    completer = WordCompleter(COMMANDS, sentence=True)
    return PromptSession(completer=completer, complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE)


def banner(model: H2CForCausalLM, repo: str | None) -> str:
    """Return the first lines of a chat: the bridge and its models, and what to try."""
    config = model.config
    names = {role: getattr(config, f"{role}_model_id") or "(not named)" for role in ("sharer", "receiver")}
    if repo is None:
        names = {"sharer": "the tiny Llama of Atlas, which knows 4,533 facts", "receiver": "the tiny Qwen2 of Atlas, which knows none"}
    examples = ATLAS_EXAMPLES if repo is None else EXAMPLES
    return "\n".join(
        [
            f"Bridge    {repo or 'Atlas, in the package'}: {model.bridge.num_parameters():,} parameters",
            f"Sharer    {names['sharer']}: reads, writes nothing",
            f"Receiver  {names['receiver']}: answers",
            "",
            *(textwrap.wrap(ATLAS_LIMITS, min(100, shutil.get_terminal_size().columns)) if repo is None else []),
            "Try:",
            *(f"  {example}" for example in examples),
            "/help lists the commands.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """`h2c chat`."""
    options = parser().parse_args(arguments)
    if options.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {options.max_new_tokens}; expected at least 1.")
    logging.disable_progress_bar()
    model, processor = opened(options.repo, **pair_options(options))
    print(banner(model, options.repo))
    read = prompt_session().prompt if sys.stdin.isatty() and sys.stdout.isatty() else input
    Chat(model, processor, options.max_new_tokens, read).run()
    next_commands(f"h2c demo{f' {options.repo}' if options.repo else ''}")
    return 0
