"""`h2c chat` as people use it: in a terminal, and with its input from a pipe."""

import _thread
import contextlib
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from pairs import join, tiny_model

from h2c_hf.apps.chat import Chat, banner, columns, prompt_session
from h2c_hf.cli import main


QUESTION = "In which country is the city of Bensekrane?"
COMMAND = [sys.executable, "-m", "h2c_hf.cli", "chat"]
# What prompt_toolkit writes to move the cursor and to switch modes of the terminal.
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[=>78]|\][^\x07]*\x07)")
PASTE, PASTED = "\x1b[200~", "\x1b[201~"


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *arguments: str):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment,
            start_new_session=True,
            # Its controlling terminal: Ctrl-C reaches it.
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )  # fmt: skip
        os.close(slave)
        self.unread = ""

    def until(self, text: str, seconds: float = 100) -> str:
        """Return the output until `text`, without a terminal's escapes; the rest is for the next call."""
        end = time.monotonic() + seconds
        while text not in (seen := ESCAPES.sub("", self.unread)):
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], (
                f"no {text!r} in {seen!r}"
            )
            try:
                self.unread += os.read(self.master, 4096).decode(errors="ignore")
            except OSError:  # the process has ended
                raise AssertionError(f"no {text!r} in {seen!r}") from None
        before, _, self.unread = seen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture(autouse=True)
def ctrl_c():
    """A shell starts background jobs deaf to Ctrl-C, and so are their children; here it is heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.master)


def test_a_conversation_in_a_terminal(terminal):
    banner = terminal.until(">")
    assert "/help lists the commands" in banner and "tiny Llama of Atlas" in banner and QUESTION in banner
    terminal.type(f"{QUESTION}\r")
    terminal.until("Algeria")
    terminal.until(">")
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.type("\x03")
    terminal.until("(/quit or Ctrl-D ends)")
    terminal.until(">")
    terminal.type("/comp\t")
    terminal.until("/compare")
    terminal.type(f" {QUESTION}\r")
    shown = terminal.until("Algeria").splitlines()
    titles = next(line for line in shown if "text-to-text" in line and "Receiver" in line)
    assert titles.split() == ["Receiver", "text-to-text", "H2C"]
    terminal.until(">")
    terminal.type("exit\r")
    assert "h2c demo" in terminal.until("h2c demo")
    assert terminal.process.wait(20) == 0


def test_atlas_is_asked_each_message_by_itself(terminal):
    """Its Sharer answers a second question of a kind with the first one's answer."""
    terminal.until(">")
    for country, capital in (("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome")):
        terminal.type(f"What is the capital of {country}?\r")
        terminal.until(f" {capital}\r\n")
        terminal.until(">")


def test_a_pasted_paragraph_is_one_message(terminal):
    terminal.until(">")
    terminal.type(f"{PASTE}/sharer The city is in Peru.\nIt is large.\n\n{QUESTION}{PASTED}\r")
    terminal.until("It is large.")
    terminal.until(">")
    terminal.type("/help\r")
    shown = terminal.until("/clear  ")
    assert "Algeria" not in shown, "the question was a part of the passage, not a message"
    terminal.until("\r\n>")
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0


def test_ctrl_c_stops_an_answer_and_keeps_the_chat(terminal):
    terminal.until(">")
    terminal.type(f"/compare {QUESTION}\r")
    time.sleep(0.05)
    terminal.type("\x03")
    terminal.until("\r\n(")  # "(stopped ...", or "(/quit ..." if the answer was there already
    terminal.type(f"{QUESTION}\r")
    terminal.until("Algeria\r\n>")
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("repo", ["/nowhere/bridge", "no/such-bridge"])
def test_a_repo_that_is_not_there_is_told_in_a_sentence(repo, capsys):
    assert main(["chat", repo]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"h2c: The bridge {repo!r} was not loaded: ")


def typed(monkeypatch, capsys, chat: Chat, *lines: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    chat.run()
    return capsys.readouterr().out


def test_the_turns_are_those_of_a_conversation(atlas, monkeypatch, capsys):
    model, processor = atlas
    chat, second = Chat(model, processor, 8), "And the city of Zaragoza?"
    assert "Algeria" in typed(monkeypatch, capsys, chat, QUESTION)
    shown = typed(monkeypatch, capsys, chat, second)
    conversation, messages = model.conversation(), []
    for question in (QUESTION, second):
        messages.append({"role": "user", "content": question})
        inputs = processor.apply_chat_template(messages)
        output = conversation.generate(**inputs, max_new_tokens=8)
        messages.append(
            {
                "role": "assistant",
                "content": processor.decode(
                    output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                ),
            }
        )
    assert chat.messages == chat.sharer_messages == messages
    assert shown.splitlines()[0] == f"> {messages[-1]['content']}"


def test_the_commands(atlas, monkeypatch, capsys):
    chat = Chat(*atlas, 8)
    passage = "/sharer The city is in Algeria."
    lines = ["", "/help", "/compare", "/dance", passage, QUESTION, QUESTION, "/quit", QUESTION]
    shown = typed(monkeypatch, capsys, chat, *lines)
    for expected in (
        "/clear              forget",
        "> /compare needs text: /compare QUESTION",
        "There is no command /dance; /help",
    ):
        assert expected in shown
    assert len(chat.messages) == 4, "nothing is read after /quit"
    assert chat.messages[0]["content"] == chat.messages[2]["content"] == QUESTION
    asked = [message["content"] for message in chat.sharer_messages[::2]]
    assert asked == [f"The city is in Algeria.\n\n{QUESTION}", QUESTION], "the passage is read once"
    typed(monkeypatch, capsys, chat, "/clear", QUESTION)
    assert len(chat.messages) == 2


class InterruptedOutput(io.StringIO):
    """Standard output; the user presses Ctrl-C as soon as the answer begins."""

    def write(self, text):
        if "> " not in self.getvalue() or "(stopped" in self.getvalue() + text:
            return super().write(text)
        if text.strip():
            _thread.interrupt_main()
        return super().write(text)


def test_an_answer_that_is_stopped_and_one_that_is_too_long_are_forgotten(atlas, monkeypatch, capsys):
    chat = Chat(*atlas, 300)
    typed(monkeypatch, capsys, chat, QUESTION)
    before = chat.messages
    monkeypatch.setattr(atlas[0].generation_config, "min_new_tokens", 300)  # else it would have ended
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))
    with contextlib.redirect_stdout(InterruptedOutput()) as output:
        chat.run()
    assert "(stopped; that message is forgotten)" in output.getvalue()
    assert chat.messages == before
    monkeypatch.setattr(atlas[0].generation_config, "min_new_tokens", None)
    shown = typed(monkeypatch, capsys, chat, "word " * 600, QUESTION)
    assert (
        "the context window of its model is 512. That message is forgotten" in shown
        and "Traceback" not in shown
    )
    assert len(chat.messages) == 4


@pytest.mark.parametrize(
    ("repo", "form", "example"),
    [
        (None, "rewrite", QUESTION),
        ("user/name", "rewrite", "/compare Who wrote Middlemarch?"),
        ("user/name", "message", "/sharer The"),
    ],
)
def test_the_banner_suggests_what_the_bridge_was_made_for(atlas, monkeypatch, repo, form, example):
    monkeypatch.setattr(atlas[0].config, "bridge_form", form)
    assert f"\n  {example}" in banner(atlas[0], repo)


@pytest.mark.parametrize(
    ("sharer", "limit"),
    [("./sharer", "refers back"), ("google/gemma-3-270m", "misspell"), ("large/model", "")],
)
def test_the_banner_says_what_small_models_cannot_do(atlas, monkeypatch, sharer, limit):
    monkeypatch.setattr(atlas[0].config, "sharer_model_id", sharer)
    shown = banner(atlas[0], "user/name")
    assert limit in shown
    assert ("small" in shown or "tiny" in shown) == bool(limit)


def test_another_sharer_in_the_bridges_folder_is_not_taken_for_atlas():
    model = join(tiny_model("llama"), tiny_model("qwen2", 1), sharer_model_id="./sharer")
    assert "Atlas answer" not in banner(model, "user/name")


@pytest.mark.parametrize(
    ("typed", "completed"), [("/sha", "/sharer "), ("/co", "/compare "), ("/cl", "/clear")]
)
def test_a_completed_command_is_ready_for_its_text(typed, completed):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    (found,) = prompt_session().completer.get_completions(Document(typed), CompleteEvent())
    assert found.text == completed


def test_columns_wrap_below_their_titles():
    text = columns(["one", "two"], ["a b c d e f g h i j", "x\n\ny"], 26)
    assert text.splitlines() == [
        "one           two",
        "------------  ------------",
        "a b c d e f   x",
        "g h i j",
        "              y",
    ]
