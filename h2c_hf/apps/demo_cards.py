"""The HTML of the demo page: a card for each method's answer, and figures in the page's theme."""

import base64
import html
import io
from collections.abc import Callable

import matplotlib

from ..evaluation.answers import plain
from ..evaluation.streaming import Answer
from ..visualization.style import THEMES
from ..wording import LETTERS


# The cards of a tab: {method or control: (title, what it is)}.
COMPARED = {
    "receiver": ("Receiver", "the small model alone"),
    "text_to_text": ("Text-to-text", "the Receiver reads a hint that the Sharer writes"),
    "h2c": ("H2C", "the Receiver, through the bridge; no word is passed"),
    "sharer": ("Sharer", "the large model alone"),
}
CONTROLS = {
    "shuffled": ("Another question's states", "the Sharer read something else"),
    "zeros": ("Zeros", "the bridge reads nothing"),
    "noise": ("Noise", "the bridge reads random numbers"),
}
CONTROLS_TEXT = (
    "Controls: the same bridge without what the Sharer knows of this question. A right answer here is luck."
)
# A figure has a copy for each theme; on a phone it is moved sideways in its frame.
CSS = """
.cards { display: grid; gap: 8px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.cards + .cards { margin-top: 8px; }
.card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px 12px; \
overflow-wrap: anywhere; }
.card.h2c { border: 2px solid var(--color-accent); }
.card .title { font-weight: 600; }
.card .what, .card .facts, .card .hint { font-size: 0.8em; color: var(--body-text-color-subdued); }
.card .answer { min-height: 1.6em; margin: 4px 0; white-space: pre-wrap; font-size: 1.1em; }
.right { color: #009E73; } .wrong { color: #D55E00; }
.dark .right { color: #3fd0a4; } .dark .wrong { color: #ff8a3d; }
.group { margin: 10px 0 4px; font-size: 0.9em; }
.figure { overflow-x: auto; }
.figure img { width: 100%; min-width: 600px; max-width: 1000px; margin: 0; border-radius: 8px; }
.figure img.dark-theme, .dark .figure img.light-theme { display: none; }
.dark .figure img.dark-theme { display: block; }
.gradio-container { padding-top: 8px !important; }
@media (max-width: 500px) {
  .gradio-container .prose h2 { font-size: 1.15em; }
  .card.h2c { order: -1; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); }
}
"""


def is_right(text: str, expected: str, form: str) -> bool | None:
    """Return whether an answer is the expected one, without case, punctuation and articles; None if unknown.

    By letter, the letter decides; in words, the answer holds the expected words.
    """
    if not expected.strip():
        return None
    if form == "choice" and (letter := expected.strip().partition(".")[0]) in LETTERS:
        return text.strip().partition(".")[0] == letter
    return f" {plain(expected)} " in f" {plain(text)} "


def cards(answers: dict[str, Answer], expected: str, form: str) -> str:
    """HTML of the methods' cards, and of the controls' below."""
    rows = []
    for row in (COMPARED, CONTROLS):
        parts = (card(name, *titles, answers.get(name), expected, form) for name, titles in row.items())
        rows.append(f'<div class="cards">{"".join(parts)}</div>')
    return f'{rows[0]}<div class="group">{CONTROLS_TEXT}</div>{rows[1]}'


MARKS = {True: '<span class="right">✓</span>', False: '<span class="wrong">✗</span>'}


def card(name: str, title: str, what: str, answer: Answer | None, expected: str, form: str) -> str:
    text = answer.text.strip() if answer else ""
    mark = MARKS.get(is_right(text, expected, form), "") if text else ""
    hint = (
        f'<div class="hint">The Sharer wrote: {html.escape(answer.hint.strip())}</div>'
        if answer and answer.hint
        else ""
    )
    return (
        f'<div class="card {name}"><div class="title">{html.escape(title)}</div>'
        f'<div class="what">{html.escape(what)}</div>'
        f'<div class="answer">{mark} <span class="text">{html.escape(text)}</span></div>{hint}'
        f'<div class="facts">{facts(answer) if answer else ""}</div></div>'
    )


def facts(answer: Answer) -> str:
    parts = []
    if answer.first_token is not None:
        parts.append(f"first token {1000 * answer.first_token:,.0f} ms")
    if answer.tokens_per_second is not None:
        parts.append(f"then {answer.tokens_per_second:,.0f} tokens/s")
    return " · ".join(parts)


def drawn(figure: Callable, report: dict) -> str:
    """A figure of `h2c_hf.visualization`, once for each theme of the page."""
    images = []
    for name, theme in THEMES.items():
        written = io.BytesIO()
        with matplotlib.rc_context(theme.settings):
            figure(report, theme).savefig(written, format="svg")
        data = base64.b64encode(written.getvalue()).decode()
        images.append(
            f'<img class="{name}-theme" alt="{figure.__doc__}" src="data:image/svg+xml;base64,{data}">'
        )
    return f'<div class="figure">{"".join(images)}</div>'
