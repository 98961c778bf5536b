"""Runs methods over questions: sorted by length, in batches, one Sharer pass and one Receiver prefill a batch for all."""

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.prompts import choice_prompt, letter_ids, open_answer, user_turn
from ..modeling import H2CForCausalLM, H2CProcessor
from .methods import METHODS, PROMPTS, Batch


MAX_ANSWER_TOKENS = 24


@torch.no_grad()
def evaluate(
    model: H2CForCausalLM,
    processor: H2CProcessor,
    questions: list[dict],
    methods: list[str],
    form: str = "choice",
    batch_size: int = 64,
) -> dict[str, dict]:
    """Ask every method every question.

    Args:
        questions: in the columns of `cais/mmlu`, all with as many choices.
        methods: names in `h2c_hf.evaluation.methods.METHODS`.
        form: "choice", the best-scored letter; or "open", the whole text, greedily written, compared exactly.

    Returns:
        {method: {"predictions": list of letter indices or texts, "correct": bool array}}, in the order of `questions`.

    Raises:
        ValueError: for an unknown method, no questions, or questions with different numbers of choices.
    """
    check(questions, methods)
    count = len(questions[0]["choices"])
    first = user_turn(choice_prompt(questions[0]))
    letters = {role: letter_ids(getattr(processor, f"{role}_tokenizer"), first, count) for role in ("receiver", "sharer")}
    predictions = {name: [None] * len(questions) for name in methods}
    correct = {name: np.zeros(len(questions), bool) for name in methods}

    was_training = model.training
    model.eval()
    with tqdm(total=len(questions), desc=f"evaluate ({form})", unit="question") as bar:
        for rows in batches(questions, form, batch_size):
            batch = Batch(model, processor, [questions[row] for row in rows], form)
            for name in methods:
                for row, answer in zip(rows, answers(METHODS[name], batch, letters), strict=True):
                    expected = questions[row]["answer"] if form == "choice" else open_answer(questions[row])
                    predictions[name][row], correct[name][row] = answer, answer == expected
            bar.update(len(rows))
            bar.set_postfix({name: f"{correct[name].sum() / bar.n:.3f}" for name in methods})
    model.train(was_training)
    return {name: {"predictions": predictions[name], "correct": correct[name]} for name in methods}


def answers(method, batch: Batch, letters: dict[str, list[int]]) -> list:
    """A method's answers to a batch: the index of the best-scored letter, or the text."""
    if batch.form == "choice":
        return method.logits(batch)[:, letters[method.reader]].argmax(-1).tolist()
    return [text.strip() for text in method.generate(batch, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)]


def batches(questions: list[dict], form: str, batch_size: int) -> list[list[int]]:
    """Row numbers in batches of near-equal size, shortest questions first (little padding, none left alone)."""
    order = sorted(range(len(questions)), key=lambda row: len(PROMPTS[form](questions[row])))
    return [part.tolist() for part in np.array_split(order, -(-len(order) // batch_size))]


def check(questions: list[dict], methods: list[str]) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"There is no method {unknown[0]!r}; expected one of {', '.join(METHODS)}.")
    if not questions:
        raise ValueError("There are no questions: got 0, expected at least 1.")
    counts = sorted({len(question["choices"]) for question in questions})
    if len(counts) != 1:
        raise ValueError(f"All questions must have as many choices; got {counts}.")
