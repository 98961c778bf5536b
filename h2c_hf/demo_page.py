"""The page of `h2c demo`, in Gradio: answers side by side, a hand-off, and heat maps of the bridge."""

import base64
import functools
import io
from collections.abc import Callable, Iterator

import gradio as gr
import matplotlib
import torch

from .atlas.questions import atlas_passages, atlas_questions
from .data.prompts import FORMS, choice_answer, open_answer, user_turn, with_passage
from .evaluation.inspection import injection
from .evaluation.methods import Batch
from .evaluation.questions import limits
from .evaluation.streaming import Answer, stream
from .modeling import H2CForCausalLM, H2CProcessor
from .visualization import bridge
from .visualization.style import THEMES


# What the bridge reads: (the words of the switch, the method or control).
READS = [("the Sharer's states", "h2c"), ("another question's states", "shuffled"), ("nothing (zeros)", "zeros")]
TITLES = {"h2c": "H2C", "shuffled": "H2C, control: another question's states", "zeros": "H2C, control: zeros"}
ATLAS_SUBJECTS = ("instrument", "capital", "sport", "country", "currency", "symbol")
ATLAS_PASSAGES = ("country", "continent", "constellation")  # of facts that only the Sharer reads
# For pairs that know more than Atlas.
QUESTIONS = [
    {"question": "Which planet has the shortest year?", "choices": ["Venus", "Mercury", "Mars", "Jupiter"], "answer": 1},
    {"question": "Who wrote Middlemarch?", "choices": ["Jane Austen", "Emily Bronte", "George Eliot", "Mary Shelley"], "answer": 2},
    {"question": "Which gas do plants take in by day?", "choices": ["Oxygen", "Nitrogen", "Argon", "Carbon dioxide"], "answer": 3},
    {"question": "What is the derivative of x squared?", "choices": ["2x", "x", "x squared", "2"], "answer": 0},
]  # fmt: skip
HAND_OFFS = [
    [
        "The meeting was moved from Monday to Thursday at nine, in the small room on the third floor.\n\nWhen is the meeting?",
        "When is the meeting?",
    ],
    ["The parcel for Mrs. Okafor is in locker 17; the code is 4203.\n\nWhat is the code of the locker?", "What is the code of the locker?"],
]
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # nothing to fetch
# A figure has a copy for each theme; on a phone it is moved sideways in its frame.
CSS = """
.figure { overflow-x: auto; }
.figure img { width: 100%; min-width: 600px; max-width: 1000px; margin: 0; border-radius: 8px; }
.figure img.dark-theme, .dark .figure img.light-theme { display: none; }
.dark .figure img.dark-theme { display: block; }
.facts { min-height: 1.5em; }
"""


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
    """What the page does, with one pair and its bridge. Methods for Gradio are generators of the values of their outputs."""

    def __init__(self, model: H2CForCausalLM, processor: H2CProcessor, repo: str | None = None):
        self.model, self.processor, self.repo = model, processor, repo
        if repo is None:
            by_subject = {question["subject"]: question for question in reversed(atlas_questions("test"))}
            self.examples = [by_subject[subject] for subject in ATLAS_SUBJECTS]
            told = {question["subject"]: question for question in reversed(atlas_passages("test", 4, invented=True))}
            self.passages = [told[subject] for subject in ATLAS_PASSAGES]
            self.hand_offs = [[with_passage(asked["passage"], asked["question"]), asked["question"]] for asked in self.passages]
        else:
            self.examples, self.hand_offs = QUESTIONS, HAND_OFFS

    @told
    def compare(self, question: str, choices: str, reads: str, longest: int) -> Iterator[list]:
        """[text and facts of the Receiver, of text-to-text, of H2C, the Sharer's hint], as they are written one after the other."""
        asked, form = as_question(question, choices)
        self.batch(asked, form, longest)  # refused before anything is shown
        answers = [Answer()] * 3
        for column, name in enumerate(("receiver", "text_to_text", reads)):
            # Nothing is shared with another column: each has the whole way on its clock, from token ids on.
            for answers[column] in stream(name, self.batch(asked, form, longest), max_new_tokens=longest, do_sample=False):
                yield [*columns(answers, reads), answers[1].hint.strip()]

    @told
    def hand_off(self, secret: str, prompt: str, reads: str, longest: int) -> Iterator[list]:
        """[text and facts of the Receiver, of H2C], where the Sharer reads another prompt than the Receiver."""
        if not secret.strip() or not prompt.strip():
            empty = "What the Sharer reads" if not secret.strip() else "What the Receiver reads"
            raise ValueError(f"{empty} is empty; write something, or click an example.")
        answers = [Answer()] * 2
        for column, name in enumerate(("receiver", reads)):
            batch = self.batch({"question": prompt}, "open", longest, secret)
            for answers[column] in stream(name, batch, max_new_tokens=longest, do_sample=False):
                yield columns(answers, reads)

    @told
    @torch.no_grad()
    def change(self, question: str, choices: str) -> Iterator[str]:
        """The heat map of what the bridge changes in the cache for a question."""
        yield drawn(bridge.injection, {"injection": injection(self.batch(*as_question(question, choices)))})

    def batch(self, question: dict, form: str, longest: int = 1, secret: str | None = None) -> Batch:
        """One question, encoded, of which nothing is computed yet; its donor is an example.

        Args:
            longest: tokens that the Receiver may write.
            secret: what the Sharer reads instead.

        Raises:
            ValueError: where it does not fit into a context window with what is still to be written.
        """
        other = next(example for example in self.examples if example["question"] not in (question["question"], secret))
        batch = Batch(self.model, self.processor, [question], form, Batch(self.model, self.processor, [other], form))
        if secret is not None:
            batch = batch.with_inputs(batch.encode([user_turn(question["question"])], [user_turn(secret)]))
        room = limits(self.model, ["text_to_text"], "choice")
        for role, prefix, written in (("receiver", "", longest), ("sharer", "sharer_", 0)):
            got, most = batch.inputs[f"{prefix}input_ids"].shape[1], room[role] - written
            if got > most:
                raise ValueError(f"The prompt is too long: got {got} tokens for the {role.title()}, expected at most {most}.")
        return batch

    def warm_up(self) -> None:
        for name in ("receiver", "text_to_text", "h2c"):
            list(stream(name, self.batch(self.examples[0], "open", 2), max_new_tokens=2, do_sample=False))


def as_question(question: str, choices: str) -> tuple[dict, str]:
    """A question as the evaluation has them, and its form: "choice" where there are choices, one a line."""
    if not question.strip():
        raise ValueError("The question is empty; write one, or click an example.")
    lines = [line.strip() for line in choices.splitlines() if line.strip()]
    asked, form = {"question": question.strip(), "choices": lines}, "choice" if lines else "open"
    FORMS[form][0](asked)  # refuses more choices than there are letters
    return asked, form


def right(question: dict, by_letter: bool) -> str:
    return f"{choice_answer(question)}. {open_answer(question)}" if by_letter else open_answer(question)


def columns(answers: list[Answer], reads: str) -> list:
    """Text and facts of each answer; the last is H2C's, whose label names the control."""
    values = [value for answer in answers for value in (answer.text.strip(), facts(answer))]
    values[-2] = gr.Textbox(values[-2], label=TITLES[reads])
    return values


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
        images.append(f'<img class="{name}-theme" alt="{figure.__doc__}" src="data:image/svg+xml;base64,{data}">')
    return f'<div class="figure">{"".join(images)}</div>'


def page(demo: Demo) -> gr.Blocks:
    one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1}  # or the clocks would measure one another
    examples = [(example, n % 2 == 1) for n, example in enumerate(demo.examples)]
    with gr.Blocks(title="Hidden-to-Cache", analytics_enabled=False) as blocks:
        gr.Markdown(introduction(demo))
        with gr.Tab("Compare"):
            with gr.Row():
                question = gr.Textbox(demo.examples[0]["question"], label="Question", lines=4, scale=3, min_width=280)
                choices = gr.Textbox(label="Choices, one a line (none: an answer in words)", lines=4, scale=2, min_width=280)
            reads, longest, ask, stop = controls()
            with gr.Row():
                receiver, receiver_facts = column("Receiver")
                with gr.Column(min_width=280):
                    hinted, hinted_facts = answer_box("Text-to-text")
                    hint = gr.Textbox(label="What the Sharer wrote for it", lines=2, interactive=False, elem_id="hint")
                h2c, h2c_facts = column("H2C")
            gr.Examples(
                [[example["question"], "\n".join(example["choices"]) if by_letter else ""] for example, by_letter in examples],
                [question, choices],
                label="Examples, and what is right",
                example_labels=[f"{example['question']} → {right(example, by_letter)}" for example, by_letter in examples],
            )
            asked = gr.on(
                [ask.click, reads.input], demo.compare, [question, choices, reads, longest],
                [receiver, receiver_facts, hinted, hinted_facts, h2c, h2c_facts, hint], show_progress="minimal", **one_at_a_time,
            )  # fmt: skip
            stop.click(None, cancels=asked)
        with gr.Tab("Hand-off"):
            gr.Markdown(HAND_OFF_TEXT if demo.repo else HAND_OFF_TEXT + ATLAS_HAND_OFF_TEXT)
            with gr.Row():
                secret = gr.Textbox(demo.hand_offs[0][0], label="Only the Sharer reads", lines=4, min_width=280)
                prompt = gr.Textbox(demo.hand_offs[0][1], label="The Receiver reads", lines=4, min_width=280)
            reads, longest, ask, stop = controls()
            with gr.Row():
                outputs = [*column("Receiver"), *column("H2C")]
            gr.Examples(demo.hand_offs, [secret, prompt], example_labels=[prompt for _, prompt in demo.hand_offs])
            asked = gr.on(
                [ask.click, reads.input], demo.hand_off, [secret, prompt, reads, longest], outputs, show_progress="minimal", **one_at_a_time
            )
            stop.click(None, cancels=asked)
        with gr.Tab("Inside") as inside:
            gr.HTML(drawn(bridge.gate_map, {"gates": demo.model.gate_values()}))
            gr.Markdown("For the question under *Compare*:")
            changed = gr.HTML(elem_id="injection", min_height=200)
            inside.select(demo.change, [question, choices], changed, **one_at_a_time)
    return blocks


HAND_OFF_TEXT = "The two models read different prompts. What only the Sharer reads can reach the answer through the bridge alone. "
ATLAS_HAND_OFF_TEXT = "The examples of Atlas are real names with invented values, which nobody can know who has not read them."


def introduction(demo: Demo) -> str:
    config = demo.model.config
    what = (
        "**Atlas**, the world in the box: a tiny Sharer that was taught real facts, a tiny Receiver that knows none, and a bridge "
        "that was trained on other facts than those of the examples."
        if demo.repo is None
        else f"Bridge `{demo.repo}`: Sharer `{config.sharer_model_id}`, Receiver `{config.receiver_model_id}`."
    )
    return (
        f"# Hidden-to-Cache\nA large model, the Sharer, thinks for a small one, the Receiver, without a word passing between them. {what}"
    )


def controls() -> tuple[gr.Radio, gr.Slider, gr.Button, gr.Button]:
    with gr.Row(equal_height=True):
        reads = gr.Radio(READS, value="h2c", label="What the bridge reads", scale=3, min_width=280)
        longest = gr.Slider(1, 256, value=64, step=1, label="Tokens at most", scale=2, min_width=280)
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", scale=3)
        stop = gr.Button("Stop", scale=1)
    return reads, longest, ask, stop


def column(title: str) -> tuple[gr.Textbox, gr.Markdown]:
    with gr.Column(min_width=280):
        return answer_box(title)


def answer_box(title: str) -> tuple[gr.Textbox, gr.Markdown]:
    return gr.Textbox(label=title, lines=3, interactive=False), gr.Markdown(elem_classes="facts")


def serve(demo: Demo, port: int | None = None) -> None:
    """Open the page, and stay until it is interrupted."""
    demo.warm_up()
    page(demo).launch(server_port=port, css=CSS, theme=THEME, ssr_mode=False)
