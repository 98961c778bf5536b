"""A look into one question: the bridge's changes of the Receiver's cache, and their effect on the answer.
Plain JSON, for figures."""

from collections.abc import Iterable

import torch

from ..modeling import H2CForCausalLM, H2CProcessor
from ..prompts import LETTERS, choice_prompt, letter_ids, user_turn
from .batch import Batch
from .donors import donor_row
from .methods import METHODS


@torch.no_grad()
def inspect(
    model: H2CForCausalLM,
    processor: H2CProcessor,
    questions: list[dict],
    row: int,
    methods: Iterable[str],
    **shared,
) -> dict[str, dict]:
    """Look into question `row`; the donor of the shuffled control is a question about something else.

    Args:
        shared: `adapter` and `prompts` of `Batch`.

    Returns:
        {"injection": see `injection`, "probability_shift": see `probability_shift`}. A bridge of the message
        form changes no position of the prompt, so it has no "injection".

    Raises:
        ValueError: for fewer than two questions, or a row that is none of them.
    """
    if len(questions) < 2:
        raise ValueError(
            f"The shuffled control needs another question: got {len(questions)}, expected at least 2."
        )
    if not 0 <= row < len(questions):
        raise ValueError(f"There is no question {row}; expected 0 to {len(questions) - 1}.")
    was_training = model.training
    model.eval()
    donor = Batch(model, processor, [questions[donor_row(questions, row)]], **shared)
    batch = Batch(model, processor, [questions[row]], donor=donor, **shared)
    seen = {"probability_shift": probability_shift(batch, methods)}
    if model.config.bridge_form != "message":
        seen["injection"] = injection(batch)
    model.train(was_training)
    return seen


def injection(batch: Batch) -> dict[str, list]:
    """How much the bridge changes the cache of a batch of one.

    Returns:
        {"key", "value": for each Receiver layer |new - old| / |old| (norms over heads and dimensions, no
        unit) of each of the prompt's N - 1 positions, None for a layer that is not bridged; "tokens": the
        text of these positions}.
    """
    old, new = batch.receiver_cache, METHODS["h2c"].cache(batch)
    bridged = {layer for layer, _ in batch.model.bridge.alignment}
    layers = [
        [
            _relative_change(getattr(before, states), getattr(after, states)) if layer in bridged else None
            for states in ("keys", "values")
        ]
        for layer, (before, after) in enumerate(zip(old.layers, new.layers, strict=True))
    ]
    ids = batch.inputs["input_ids"][0, :-1].tolist()
    keys, values = (list(kind) for kind in zip(*layers, strict=True))
    return {
        "key": keys,
        "value": values,
        "tokens": [batch.processor.receiver_tokenizer.decode([token]) for token in ids],
    }


def message_sizes(batch: Batch) -> dict[str, list]:
    """How large the keys and values of a message are beside those of the Receiver's own prompt; batch of one.

    Returns:
        {"key", "value": for each Receiver layer the norm (over heads and dimensions) of each of the message's
        T positions, over the mean norm of the prompt's N - 1 positions; "tokens": the text of the T tokens
        that the Sharer read}.
    """
    own = batch.receiver_cache.get_seq_length()
    sizes = {"key": [], "value": []}
    for layer in METHODS["h2c"].cache(batch).layers:
        for kind, states in (("key", layer.keys), ("value", layer.values)):
            norms = states[0].float().transpose(0, 1).flatten(1).norm(dim=-1)  # (T + N - 1,)
            sizes[kind].append((norms[:-own] / norms[-own:].mean()).tolist())
    ids = batch.inputs["sharer_input_ids"][0].tolist()
    return {**sizes, "tokens": [batch.processor.sharer_tokenizer.decode([token]) for token in ids]}


def _relative_change(old: torch.Tensor, new: torch.Tensor) -> list[float]:
    """(1, heads, positions, head_dim) each -> one number a position."""
    old, new = (states[0].float().transpose(0, 1).flatten(1) for states in (old, new))
    return ((new - old).norm(dim=-1) / old.norm(dim=-1)).tolist()


def probability_shift(batch: Batch, methods: Iterable[str]) -> dict:
    """Return the probability of each letter under each method, in a batch of one.

    Returns:
        {"question", "choices", "expected": the right letter, "methods": {name: [probability, over the whole
        vocabulary, that the answer begins with the letter]}}.
    """
    (question,) = batch.questions
    count, first = len(question["choices"]), user_turn(choice_prompt(question))
    letters = {
        role: letter_ids(
            getattr(batch.processor, f"{role}_tokenizer"), first, count, batch.processor.chat_template_kwargs
        )
        for role in ("receiver", "sharer")
    }
    shares = {
        name: METHODS[name].logits(batch)[0].float().softmax(-1)[letters[METHODS[name].reader]].tolist()
        for name in methods
    }
    return {
        "question": question["question"],
        "choices": question["choices"],
        "expected": LETTERS[question["answer"]],
        "methods": shares,
    }
