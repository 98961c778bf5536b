"""`h2c chat [REPO]`: a conversation in the terminal, streamed; earlier turns are not computed again.
`h2c chat --url URL` asks a server."""

import argparse
import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from itertools import zip_longest

from transformers import AutoConfig, TextStreamer
from transformers.utils import logging

from ..atlas import MODELS
from ..evaluation.batch import Batch
from ..evaluation.methods import METHODS
from ..hints import install, next_commands
from ..loading import opened
from ..modeling import H2CForCausalLM, H2CProcessor
from ..prompts import user_turn, with_passage
from ..reports.page import TITLES
from .chat_help import HELP
from .parsers import chat as parser
from .parsers import pair_options


COMPARED = ("receiver", "text_to_text", "h2c")
COMPARED_REMOTELY = ("receiver", "h2c")
# With a space behind those that take a text, such as QUESTION.
COMMANDS = [
    f"{command} " if text.isupper() else command for command, text, *_ in map(str.split, HELP.splitlines())
]
LEAVE = ("/quit", "/exit", "quit", "exit")
ATLAS_EXAMPLES = (
    "In which country is the city of Bensekrane?",
    "Which sport does Babe Ruth play?",
    "/compare What is the capital of Peru?",
)
EXAMPLES = ("Which planet has the shortest year?", "/compare Who wrote Middlemarch?")
# A message is about what the Sharer has read.
MESSAGE_EXAMPLES = ("/sharer The capital of Albania is Maputo.", "What is the capital of Albania?")
# {Sharer: a sentence on what its pair cannot do}
LIMITS = {
    "atlas": (
        "The tiny models of Atlas answer questions about cities, countries, elements, stars and people. Each "
        "message is asked by itself: these models were not taught to understand one that refers back ('And "
        "what is its capital?')."
    ),
    "google/gemma-3-270m": (
        "These models are small. They answer short questions about a passage (/sharer), often misspell "
        "uncommon names, and know little by themselves."
    ),
}
# Sharers that are asked each message without the earlier ones: after one capital, Atlas' gives it again.
FORGETFUL = ("atlas",)


class Chat:
    """One conversation, and the commands around it. Answers go to standard output."""

    def __init__(
        self,
        model: H2CForCausalLM,
        processor: H2CProcessor,
        max_new_tokens: int,
        read: Callable[[str], str] = input,
        remembers: bool = True,
    ):
        """
        Args:
            read: shows a prompt and returns a message; `input`, or `prompt_session().prompt` in a terminal.
            remembers: whether a message is asked with the earlier ones and their answers.
        """
        self.remembers = remembers
        self.model = model
        self.processor = processor
        self.options = {"max_new_tokens": max_new_tokens}
        self.read = read
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
            print(
                f"{command} needs text: {next(row for row in HELP.splitlines() if row.startswith(command))}"
            )
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
        sharer_messages = [
            *self.sharer_messages,
            *user_turn(with_passage(self.passage, text) if self.passage else text),
        ]
        said = {"role": "assistant", "content": self.answer(messages, sharer_messages)}
        self.messages, self.sharer_messages, self.passage = [*messages, said], [*sharer_messages, said], None
        if not self.remembers:
            self.clear()

    def answer(self, messages: list[dict], sharer_messages: list[dict]) -> str:
        """Print the next message of a conversation while it is written, and return it."""
        inputs = self.processor.apply_chat_template(messages, sharer_messages).to(self.model.device)
        streamer = TextStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        output = self.conversation.generate(**inputs, streamer=streamer, **self.options)
        return self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def compare(self, text: str) -> None:
        batch = Batch(self.model, self.processor, [{"question": text}], "open")
        answers = [
            METHODS[name].generate(batch, do_sample=False, **self.options)[0].strip() for name in COMPARED
        ]
        print(columns([TITLES[name] for name in COMPARED], answers, shutil.get_terminal_size().columns))


class RemoteChat(Chat):
    """A conversation with a server: `h2c serve`, or vLLM with the connector. Uses OpenAI's client."""

    def __init__(self, url: str, max_new_tokens: int, read: Callable[[str], str] = input):
        """
        Raises:
            ValueError: if no server of this kind answers at `url`.
        """
        try:
            import openai
        except ImportError as error:
            raise ValueError(
                f"h2c chat --url needs openai ({error}); install it with: {install('serve')}"
            ) from None
        self.remembers = True  # the server's models are not known
        self.errors, self.url = openai, url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client, self.read = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0), read
        with self.told():
            self.options = {"model": self.client.models.list().data[0].id, "max_tokens": max_new_tokens}
        self.clear()

    def clear(self) -> None:
        self.passage, self.messages, self.sharer_messages = None, [], []

    @contextlib.contextmanager
    def told(self):
        """Turn an error of the client into a ValueError of one sentence."""
        try:
            yield
        except self.errors.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            raise ValueError(
                f"{self.url} answered {error.status_code}: {body.get('message', error.message)}"
            ) from error
        except self.errors.OpenAIError as error:
            raise ValueError(
                f"{self.url} does not answer ({error}); start a server with: h2c serve"
            ) from error

    def answer(self, messages: list[dict], sharer_messages: list[dict]) -> str:
        pieces, fields = [], {"stream": True, "extra_body": {"sharer_messages": sharer_messages}}
        # Leaving the block closes the connection, and the server stops writing.
        with (
            self.told(),
            self.client.chat.completions.create(messages=messages, **fields, **self.options) as stream,
        ):
            for chunk in stream:
                piece = chunk.choices[0].delta.content if chunk.choices else None
                print(piece or "", end="", flush=True)
                pieces.append(piece or "")
        print()
        return "".join(pieces)

    def compare(self, text: str) -> None:
        answers = []
        for name in COMPARED_REMOTELY:
            fields = {"temperature": 0, "extra_body": {"h2c": name == "h2c"}}
            with self.told():
                answered = self.client.chat.completions.create(
                    messages=user_turn(text), **fields, **self.options
                )
            answers.append((answered.choices[0].message.content or "").strip())
        print(
            columns([TITLES[name] for name in COMPARED_REMOTELY], answers, shutil.get_terminal_size().columns)
        )


def columns(titles: list[str], texts: list[str], width: int) -> str:
    """Texts beside each other, each wrapped below its title, in `width` characters."""
    width = max(12, (width + 2) // len(texts) - 2)
    wrapped = [
        [line for part in text.splitlines() for line in textwrap.wrap(part, width) or [""]] for text in texts
    ]
    rows = [titles, ["-" * width] * len(texts), *zip_longest(*wrapped, fillvalue="")]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell in row).rstrip() for row in rows)


def prompt_session():
    """Return a prompt for a terminal: a pasted paragraph is one message, Tab completes commands, the arrows
    recall earlier messages."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.shortcuts import CompleteStyle

    completer = WordCompleter(COMMANDS, sentence=True)
    return PromptSession(
        completer=completer, complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE
    )


def sharer_name(model: H2CForCausalLM) -> str | None:
    """Return the Sharer's id; "atlas" for Atlas' Sharer, which stands in the bridge's own folder."""
    sharer = model.sharer
    if model.config.sharer_model_id != "./sharer" or sharer is None:
        return model.config.sharer_model_id
    sizes = ("hidden_size", "num_hidden_layers", "vocab_size")
    atlas = AutoConfig.from_pretrained(MODELS / "sharer")
    is_atlas = all(getattr(sharer.config, size, None) == getattr(atlas, size) for size in sizes)
    return "atlas" if is_atlas else "./sharer"


def banner(model: H2CForCausalLM, repo: str | None) -> str:
    """Return the first lines of a chat: the bridge and its models, and messages to try."""
    config = model.config
    names = {role: getattr(config, f"{role}_model_id") or "(not named)" for role in ("sharer", "receiver")}
    if repo is None:
        names = {
            "sharer": "the tiny Llama of Atlas, which knows 4,533 facts",
            "receiver": "the tiny Qwen2 of Atlas, which knows none",
        }
    examples = (
        ATLAS_EXAMPLES if repo is None else MESSAGE_EXAMPLES if config.bridge_form == "message" else EXAMPLES
    )
    return "\n".join(
        [
            f"Bridge    {repo or 'Atlas, in the package'}: {model.bridge.num_parameters():,} parameters",
            f"Sharer    {names['sharer']}: reads, writes nothing",
            f"Receiver  {names['receiver']}: answers",
            "",
            *textwrap.wrap(LIMITS.get(sharer_name(model), ""), min(100, shutil.get_terminal_size().columns)),
            "Try:",
            *(f"  {example}" for example in examples),
            "/help lists the commands.",
        ]
    )


def check_alone(options: argparse.Namespace) -> None:
    """Refuse options about a pair beside --url.

    Raises:
        ValueError: naming the first one.
    """
    defaults = parser().parse_args([])
    for name in ("repo", *pair_options(options)):
        if getattr(options, name) != getattr(defaults, name):
            told = "REPO" if name == "repo" else f"--{name}"
            raise ValueError(
                f"--url and {told} are given; expected one of them: the server at {options.url} has a bridge "
                "loaded."
            )


def main(arguments: list[str] | None = None) -> int:
    """`h2c chat`."""
    options = parser().parse_args(arguments)
    if options.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {options.max_new_tokens}; expected at least 1.")
    read = prompt_session().prompt if sys.stdin.isatty() and sys.stdout.isatty() else input
    if options.url is not None:
        check_alone(options)
        if not options.url.startswith(("http://", "https://")):
            raise ValueError(
                f"--url is {options.url!r}; expected http://HOST:PORT, as `h2c serve` prints it."
            )
        chat = RemoteChat(options.url, options.max_new_tokens, read)
        print(
            f"Server    {chat.url}, model {chat.options['model']}\n/help lists the commands; /compare shows "
            "Receiver and H2C."
        )
        chat.run()
        return 0
    logging.disable_progress_bar()
    model, processor = opened(options.repo, **pair_options(options))
    print(banner(model, options.repo))
    remembers = sharer_name(model) not in FORGETFUL
    Chat(model, processor, options.max_new_tokens, read, remembers).run()
    next_commands(f"h2c demo{f' {options.repo}' if options.repo else ''}")
    return 0
