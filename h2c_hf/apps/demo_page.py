"""The page of `h2c demo`, in Gradio: answers side by side, a hand-off, and heat maps of the bridge."""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator

import gradio as gr
import torch

from ..atlas.questions import atlas_passages, atlas_questions
from ..evaluation.batch import Batch
from ..evaluation.inspection import injection, message_sizes
from ..evaluation.questions import limits
from ..evaluation.streaming import Answer, stream
from ..modeling import H2CForCausalLM, H2CProcessor
from ..prompts import FORMS, choice_answer, open_answer
from ..visualization import bridge
from .demo_cards import CONTROLS, CSS, cards, drawn


# In this order: the slowest column comes late.
COMPUTED = ("receiver", "h2c", "sharer", "text_to_text", *CONTROLS)
ATLAS_SUBJECTS = ("country", "capital", "sport", "symbol")
ATLAS_PASSAGES = ("country", "continent", "constellation")  # of facts that only the Sharer reads
# For pairs that know more than Atlas.
QUESTIONS = [
    {"question": "Which planet has the shortest year?",
     "choices": ["Venus", "Mercury", "Mars", "Jupiter"], "answer": 1},
    {"question": "Who wrote Middlemarch?",
     "choices": ["Jane Austen", "Emily Bronte", "George Eliot", "Mary Shelley"], "answer": 2},
    {"question": "Which gas do plants take in by day?",
     "choices": ["Oxygen", "Nitrogen", "Argon", "Carbon dioxide"], "answer": 3},
    {"question": "What is the derivative of x squared?",
     "choices": ["2x", "x", "x squared", "2"], "answer": 0},
]  # fmt: skip
# (passage, question, right answer)
HAND_OFFS = [
    [
        "The meeting was moved from Monday to Thursday at nine, in the small room on the third floor.",
        "When is the meeting?",
        "Thursday at nine",
    ],
    [
        "The parcel for Mrs. Okafor is in locker 17; the code is 4203.",
        "What is the code of the locker?",
        "4203",
    ],
]
# Nothing to fetch.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def told(method: Callable) -> Callable:
    """A visitor's mistake as a sentence in the page."""

    @functools.wraps(method)
    def generator(*args):
        try:
            yield from method(*args)
        except ValueError as error:
            gr.Warning(str(error))  # a `gr.Error` would also write "Error" into every output
            yield gr.skip()

    return generator


class Demo:
    """The actions of the page, with one pair. Methods for Gradio generate the values of their outputs."""

    def __init__(self, model: H2CForCausalLM, processor: H2CProcessor, repo: str | None = None):
        self.model, self.processor, self.repo = model, processor, repo
        self.writes_message = model.config.bridge_form == "message"
        self.newest: dict[str, int] = {}  # by visitor, the number of the last run that was begun or stopped
        self.numbers = itertools.count()
        # For a real pair one statement and texts of another kind; the tiny models read only statements of
        # this kind.
        told = {
            question["subject"]: question
            for question in reversed(atlas_passages("test", 1 if repo else 4, invented=True))
        }
        passages = [told[subject] for subject in ATLAS_PASSAGES]
        self.hand_offs = [[asked["passage"], asked["question"], open_answer(asked)] for asked in passages]
        if repo is None:
            by_subject = {question["subject"]: question for question in reversed(atlas_questions("test"))}
            self.examples = [by_subject[subject] for subject in ATLAS_SUBJECTS]
        else:
            self.examples, self.hand_offs = QUESTIONS, [*self.hand_offs[:2], *HAND_OFFS]

    def begin(self, request: gr.Request) -> tuple[str, int]:
        """Return the visitor and the number of a new run; their older runs end. (Gradio's `cancels` would
        also end a run that is begun while it cancels: an example clicked right after Stop.)"""
        visitor, number = request.session_hash, next(self.numbers)
        self.newest[visitor] = number
        return visitor, number

    @told
    def compare(
        self, question: str, choices: str, expected: str, longest: int, run: tuple[str, int] | None = None
    ) -> Iterator[str]:
        """The cards of all methods and controls, as their answers are written one after the other.

        Args:
            run: from `begin`; the answers end when the visitor begins another. None: they are written to the
                end.
        """
        asked, form = as_question(question, choices)
        other = next(example for example in self.examples if example["question"] != asked["question"])
        yield from self.answers(asked, other, form, expected, longest, run)

    @told
    def hand_off(
        self, passage: str, question: str, expected: str, longest: int, run: tuple[str, int] | None = None
    ) -> Iterator[str]:
        """The same, for a passage that only the Sharer reads."""
        asked = as_hand_off(passage, question)
        other = next(one for one in self.hand_offs if one[0] != asked["passage"])
        yield from self.answers(
            asked, {**asked, "passage": other[0], "question": other[1]}, "open", expected, longest, run
        )

    def answers(
        self,
        asked: dict,
        other: dict,
        form: str,
        expected: str,
        longest: int,
        run: tuple[str, int] | None = None,
    ) -> Iterator[str]:
        for shown in self.all_answers(asked, other, form, expected, longest):
            if run is not None and self.newest[run[0]] != run[1]:
                return
            yield shown

    def all_answers(self, asked: dict, other: dict, form: str, expected: str, longest: int) -> Iterator[str]:
        self.batch(asked, other, form, longest)  # refused before anything is shown
        answers: dict[str, Answer] = {}
        yield cards(answers, expected, form)  # what an earlier question left is gone at once
        for name in COMPUTED:
            # Nothing is shared with another card: each has the whole way on its clock, from token ids on.
            batch = self.batch(asked, other, form, longest)
            for answer in stream(name, batch, max_new_tokens=longest, do_sample=False):
                answers[name] = answer
                yield cards(answers, expected, form)

    @told
    @torch.no_grad()
    def change(self, question: str, choices: str) -> Iterator[str]:
        """Yield the heat map of the bridge's changes of the cache for a question."""
        asked, form = as_question(question, choices)
        yield drawn(bridge.injection, {"injection": injection(self.batch(asked, asked, form))})

    @told
    @torch.no_grad()
    def written(self, passage: str, question: str) -> Iterator[str]:
        """Yield the heat map of the message that the bridge writes for a passage and a question."""
        asked = as_hand_off(passage, question)
        yield drawn(bridge.message, {"message": message_sizes(self.batch(asked, asked, "open"))})

    def batch(self, question: dict, other: dict, form: str, longest: int = 1) -> Batch:
        """One question, encoded, of which nothing is computed yet.

        Args:
            other: the question whose states the control gets instead.
            longest: tokens that a model may write.

        Raises:
            ValueError: if it does not fit into a context window with the answer.
        """
        batch = Batch(
            self.model, self.processor, [question], form, Batch(self.model, self.processor, [other], form)
        )
        room = limits(self.model, ["text_to_text"], "choice")
        for role, prefix in (("receiver", ""), ("sharer", "sharer_")):
            got, most = batch.inputs[f"{prefix}input_ids"].shape[1], room[role] - longest
            if got > most:
                raise ValueError(
                    f"The prompt is too long: got {got} tokens for the {role.title()}, expected at most "
                    f"{most}."
                )
        return batch

    def warm_up(self) -> None:
        asked, other = self.examples[:2]
        for name in COMPUTED:
            list(stream(name, self.batch(asked, other, "open", 2), max_new_tokens=2, do_sample=False))


def as_question(question: str, choices: str) -> tuple[dict, str]:
    """A question as the evaluation has them, and its form. Choices are separated by ";" or one a line."""
    if not question.strip():
        raise ValueError("The question is empty; write one, or click an example.")
    lines = [line.strip() for line in choices.replace(";", "\n").splitlines() if line.strip()]
    asked, form = {"question": question.strip(), "choices": lines}, "choice" if lines else "open"
    FORMS[form][0](asked)  # refuses more choices than there are letters
    return asked, form


def as_hand_off(passage: str, question: str) -> dict:
    """A question with a passage that only the Sharer reads, as the evaluation has them."""
    if not passage.strip() or not question.strip():
        empty = "The text for the Sharer" if not passage.strip() else "The question"
        raise ValueError(f"{empty} is empty; write something, or click an example.")
    return {"question": question.strip(), "choices": [], "passage": passage.strip()}


def page(demo: Demo) -> gr.Blocks:
    # Or the clocks would measure one another.
    one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1}
    at_once = {"queue": False, "show_progress": "hidden"}
    shown = {"show_progress": "hidden", **one_at_a_time}
    rows = [example_row(example, by_letter=n % 2 == 1) for n, example in enumerate(demo.examples)]
    with gr.Blocks(title="Hidden-to-Cache", analytics_enabled=False) as blocks:
        run = gr.State()
        gr.Markdown(introduction(demo))
        # A message is about what the Sharer has read: the hand-off comes first.
        with gr.Tabs(selected="hand_off" if demo.writes_message else "compare"):
            with gr.Tab("Compare", id="compare"):
                # Shown below the examples: on a phone, a click should need no scrolling.
                question = gr.Textbox(
                    rows[0][0],
                    label="Question (Enter asks)",
                    lines=1,
                    max_lines=6,
                    render=False,
                    elem_id="question",
                )
                choices = gr.Textbox(
                    label="Choices, separated by ; (none: an answer in words)",
                    lines=1,
                    max_lines=6,
                    render=False,
                )
                expected = gr.Textbox(rows[0][2], label="Right answer, if you know it", lines=1, render=False)
                examples = gr.Examples(
                    rows,
                    [question, choices, expected],
                    label="Examples",
                    example_labels=[row[0] for row in rows],
                )
                question.render()
                ask, stop = buttons()
                answers = gr.HTML(cards({}, "", "open"), elem_id="answers")
                with gr.Row():
                    choices.render()
                    expected.render()
                longest = gr.Slider(1, 256, value=64, step=1, label="Tokens at most")
                inputs = [question, choices, expected, longest, run]
                begun = [
                    gr.on(
                        [ask.click, question.submit, choices.submit, expected.submit],
                        demo.begin,
                        None,
                        run,
                        **at_once,
                    ),
                    examples.load_input_event.then(demo.begin, None, run, **at_once),
                    *([] if demo.writes_message else [blocks.load(demo.begin, None, run, **at_once)]),
                ]
                for event in begun:
                    event.then(demo.compare, inputs, answers, **shown)
                stop.click(demo.begin, None, run, **at_once)
            with gr.Tab("Hand-off", id="hand_off"):
                gr.Markdown(HAND_OFF_TEXT + (ATLAS_HAND_OFF_TEXT if demo.repo is None else ""))
                passage = gr.Textbox(
                    demo.hand_offs[0][0],
                    label="Text that only the Sharer reads",
                    lines=3,
                    max_lines=12,
                    render=False,
                )
                asked = gr.Textbox(
                    demo.hand_offs[0][1],
                    label="Question that both read (Enter asks)",
                    lines=1,
                    max_lines=6,
                    render=False,
                )
                known = gr.Textbox(
                    demo.hand_offs[0][2], label="Right answer, if you know it", lines=1, render=False
                )
                examples = gr.Examples(
                    demo.hand_offs,
                    [passage, asked, known],
                    label="Examples",
                    example_labels=[row[1] for row in demo.hand_offs],
                )
                passage.render()
                asked.render()
                ask, stop = buttons()
                handed = gr.HTML(cards({}, "", "open"), elem_id="handed")
                known.render()
                inputs = [passage, asked, known, longest, run]
                begun = [
                    gr.on([ask.click, asked.submit, known.submit], demo.begin, None, run, **at_once),
                    examples.load_input_event.then(demo.begin, None, run, **at_once),
                    *([blocks.load(demo.begin, None, run, **at_once)] if demo.writes_message else []),
                ]
                for event in begun:
                    event.then(demo.hand_off, inputs, handed, **shown)
                stop.click(demo.begin, None, run, **at_once)
            with gr.Tab("Inside") as inside:
                if demo.writes_message:
                    gr.Markdown(MESSAGE_TEXT)
                else:
                    gr.Markdown(GATES_TEXT)
                    gr.HTML(drawn(bridge.gate_map, {"gates": demo.model.gate_values()}))
                    gr.Markdown(CHANGE_TEXT)
                changed = gr.HTML(elem_id="injection", min_height=200)
                look, fields = (
                    (demo.written, [passage, asked])
                    if demo.writes_message
                    else (demo.change, [question, choices])
                )
                inside.select(look, fields, changed, **one_at_a_time)
    return blocks


HAND_OFF_TEXT = "Only the Sharer reads the text; what the answer holds of it came through the bridge. "
ATLAS_HAND_OFF_TEXT = (
    "The examples are real names with invented values, which nobody can know who has not read them. The tiny "
    "models of Atlas read statements of this kind only; to paste text of your own, start the page with a "
    "real pair: `h2c demo REPO`."
)
GATES_TEXT = (
    "**The gates.** Bright cells are layers in which the bridge changes much of the Receiver's cache; at 0 a "
    "layer stays as it was."
)
CHANGE_TEXT = (
    "**What the bridge changed for the question under *Compare*.** Each column is a token of the prompt, "
    "each row a layer of the Receiver: look for the tokens whose keys and values changed most."
)

MESSAGE_TEXT = (
    "**What the bridge wrote for the text and the question under *Hand-off*.** Each column is a token that "
    "the Sharer read, each row a layer of the Receiver: bright cells are keys and values that are large "
    "beside those of the Receiver's own prompt (1)."
)


def introduction(demo: Demo) -> str:
    config = demo.model.config
    what = (
        "The Sharer knows 4,533 facts and writes nothing; the Receiver knows none and answers. *Click an "
        "example:*"
        if demo.repo is None
        else f"Bridge `{demo.repo}`: Sharer `{config.sharer_model_id}`, Receiver "
        f"`{config.receiver_model_id}`. *Click an example:*"
    )
    return f"## Hidden-to-Cache: a large model thinks for a small one\n{what}"


def example_row(example: dict, by_letter: bool) -> list[str]:
    """Return question, choices and right answer as the page's fields hold them."""
    if by_letter:
        return [
            example["question"],
            "; ".join(example["choices"]),
            f"{choice_answer(example)}. {open_answer(example)}",
        ]
    return [example["question"], "", open_answer(example)]


def buttons() -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button("Ask", variant="primary", scale=3, min_width=100), gr.Button(
            "Stop", scale=1, min_width=80
        )


def serve(demo: Demo, host: str | None = None, port: int | None = None, share: bool = False) -> None:
    """Open the page, and stay until Ctrl-C.

    Args:
        host, port: by default those of Gradio, which a Space sets in the environment.
        share: make a public link through Gradio's servers.
    """
    demo.warm_up()
    blocks = page(demo)
    blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        css=CSS,
        theme=THEME,
        ssr_mode=False,
        prevent_thread_lock=True,
    )
    try:
        threading.Event().wait()
    finally:
        blocks.close()
