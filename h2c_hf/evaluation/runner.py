"""Run methods over questions: sorted by length, in batches, with one Sharer pass and one prefill for all."""

from dataclasses import asdict

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..prompts import FORMS, PROMPTS, Prompts, letter_ids, open_answer
from .answers import exact
from .batch import Batch, conversation
from .donors import donor_row
from .methods import METHODS
from .progress import Progress, fingerprint


MAX_ANSWER_TOKENS = 24


@torch.no_grad()
def evaluate(
    model: H2CForCausalLM,
    processor: H2CProcessor,
    questions: list[dict],
    methods: list[str],
    form: str = "choice",
    batch_size: int = 64,
    adapter: H2CBridgeModel | None = None,
    prompts: Prompts = PROMPTS,
    progress: Progress | None = None,
    lora: PreTrainedModel | None = None,
    answer_tokens: int = MAX_ANSWER_TOKENS,
    draft_tokens: int | None = None,
) -> dict[str, dict]:
    """Ask every method every question.

    Args:
        questions: in the columns of `cais/mmlu`; see `Batch` for more that they may hold. They need not have
            as many choices: each is answered with one of its own letters.
        methods: names in `h2c_hf.evaluation.methods.METHODS`.
        form: "choice", the best-scored letter; or "open", the whole text, greedily written, through the
            model's end token. It is right if it is one of the question's `answers` (see
            `h2c_hf.evaluation.answers`); without these, if it is the right choice's text.
        adapter, prompts, lora: see `Batch`.
        answer_tokens: of the form "open": a text that has not ended after so many tokens is cut.
        draft_tokens: see `Batch`.
        progress: keeps finished batches, and knows how many processes share them.

    Returns:
        {method: {"predictions": list of letter indices or texts, "correct": bool array, "scores": list of its
        letters' logits or None, "cut_texts": how many texts of the Sharer ran on to their limit}}, in the
        order of `questions`. Of the shuffled control also "donors": the row of the question whose states each
        question got, which is about something else and has another answer.

    Raises:
        ValueError: for an unknown method, no questions, or no donor for one.
    """
    check(questions, methods, form, adapter)
    progress = progress or Progress()
    letters = {}
    if form == "choice":
        first = conversation(questions[0], form, prompts=prompts)
        count = max(len(question["choices"]) for question in questions)
        letters = {
            role: letter_ids(
                getattr(processor, f"{role}_tokenizer"), first, count, processor.chat_template_kwargs
            )
            for role in ("receiver", "sharer")
        }
    parts = batches(questions, form, batch_size)
    results = {
        name: {"predictions": [None] * len(questions), "scores": [None] * len(questions), "cut_texts": 0}
        for name in methods
    }
    donors = [
        [donor_row(questions, row, part) for row in part] if "shuffled" in methods else [] for part in parts
    ]

    def compute(number: int) -> dict:
        rows, giving = parts[number], donors[number]
        shared = {"adapter": adapter, "prompts": prompts, "lora": lora, "draft_tokens": draft_tokens}
        batch = Batch(model, processor, [questions[row] for row in rows], form, **shared)
        if set(giving) <= set(rows):
            batch.donor_rows = [rows.index(row) for row in giving] or None
        else:  # nobody in the batch can give; the Sharer reads these as well
            batch.donor = Batch(model, processor, [questions[row] for row in giving], form, **shared)
        return {
            "rows": rows,
            "answers": {name: answer(METHODS[name], batch, letters, answer_tokens) for name in methods},
        }

    def right_answer(row: int, prediction: int | str) -> bool:
        if form == "choice":
            return prediction == questions[row]["answer"]
        answers = questions[row].get("answers")
        return exact(prediction, answers) if answers else prediction == open_answer(questions[row])

    asked = {
        "questions": questions, "methods": methods, "form": form, "batch_size": batch_size,
        "prompts": asdict(prompts), "bridge": fingerprint(model.bridge), "adapter": fingerprint(adapter),
        "letters": letters, "donors": donors, "answer_tokens": answer_tokens, "draft_tokens": draft_tokens,
        "lora": fingerprint(lora), "chat_template_kwargs": processor.chat_template_kwargs,
    }  # fmt: skip
    records, right = [], dict.fromkeys(methods, 0)
    was_training = model.training
    model.eval()
    with tqdm(
        total=len(questions), desc=f"evaluate ({form})", unit="question", disable=progress.rank > 0
    ) as bar:
        for record in progress.each(asked, len(parts), compute):
            records.append(record)
            bar.update(len(record["rows"]))
            for name in methods:
                pairs = zip(record["rows"], record["answers"][name]["predictions"], strict=True)
                right[name] += sum(right_answer(row, prediction) for row, prediction in pairs)
            # A bar that is not shown does not count.
            answered = sum(len(record["rows"]) for record in records)
            bar.set_postfix({name: f"{right[name] / answered:.3f}" for name in methods})
    model.train(was_training)
    for record in progress.gather(records):
        for name, answers in record["answers"].items():
            results[name]["cut_texts"] += answers["cut_texts"]
            for row, prediction, scores in zip(
                record["rows"], answers["predictions"], answers["scores"], strict=True
            ):
                results[name]["predictions"][row], results[name]["scores"][row] = prediction, scores
    for result in results.values():
        result["correct"] = np.array(
            [right_answer(row, prediction) for row, prediction in enumerate(result["predictions"])], bool
        )
    if "shuffled" in methods:
        given = {
            row: donor
            for part, giving in zip(parts, donors, strict=True)
            for row, donor in zip(part, giving, strict=True)
        }
        results["shuffled"]["donors"] = [given[row] for row in range(len(questions))]
    return results


def answer(
    method, batch: Batch, letters: dict[str, list[int]], tokens: int = MAX_ANSWER_TOKENS
) -> dict[str, list | int]:
    """A method's answers to a batch: the best-scored letter's index and every letter's logit; or the text."""
    before = batch.cut_texts
    if batch.form == "choice":
        logits = method.logits(batch)[:, letters[method.reader]].float()
        scores = [
            row[: len(question["choices"])] for row, question in zip(logits, batch.questions, strict=True)
        ]
        found = {
            "predictions": [int(row.argmax()) for row in scores],
            "scores": [row.tolist() for row in scores],
        }
    else:
        texts = method.generate(batch, max_new_tokens=tokens, do_sample=False)
        found = {"predictions": [text.strip() for text in texts], "scores": [None] * len(texts)}
    return {**found, "cut_texts": batch.cut_texts - before}


def batches(questions: list[dict], form: str, batch_size: int) -> list[list[int]]:
    """Row numbers in batches of near-equal size, shortest questions first (little padding, none alone)."""
    order = sorted(range(len(questions)), key=lambda row: prompt_length(questions[row], form))
    return [part.tolist() for part in np.array_split(order, -(-len(order) // batch_size))]


def prompt_length(question: dict, form: str) -> int:
    """Characters of all that is read."""
    prompt, _ = FORMS[form]
    return len(question.get("passage", "")) + sum(
        len(prompt(asked)) for asked in [*question.get("shots", []), question]
    )


def check(questions: list[dict], methods: list[str], form: str, adapter: H2CBridgeModel | None) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"There is no method {unknown[0]!r}; expected one of {', '.join(METHODS)}.")
    if "adapter" in methods and adapter is None:
        raise ValueError(
            "The adapter control needs a bridge trained with --blank_sharer true: got none, expected "
            "adapter: DIR."
        )
    if not questions:
        raise ValueError("There are no questions: got 0, expected at least 1.")
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}.")
