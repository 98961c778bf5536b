"""The data behind the figures of one question, against plain loops and single passes."""

import json
import random

import pytest
import torch
from pairs import join, tiny_model

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.evaluation.donors import donor_row
from h2c_hf.evaluation.inspection import inspect
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.prompts import choice_prompt, letter_ids, user_turn


QUESTIONS = atlas_questions("validation")[:9]


@pytest.fixture(scope="module")
def wide_pair(atlas):
    """Atlas' processor over random models, of five layers and of three, so that two are not bridged."""
    _, processor = atlas
    sizes = {role: len(getattr(processor, f"{role}_tokenizer")) for role in ("sharer", "receiver")}
    sharer = tiny_model("llama", vocab_size=sizes["sharer"], num_hidden_layers=3)
    receiver = tiny_model("qwen2", seed=1, vocab_size=sizes["receiver"], num_hidden_layers=5)
    return join(sharer, receiver, num_attention_heads=4), processor


def plain_change(old: torch.Tensor, new: torch.Tensor, position: int) -> float:
    """|new - old| / |old| of one position of (1, heads, positions, head_dim), number by number."""
    difference = size = 0.0
    for head in range(old.shape[1]):
        for before, after in zip(
            old[0, head, position].tolist(), new[0, head, position].tolist(), strict=True
        ):
            difference += (after - before) ** 2
            size += before**2
    return (difference / size) ** 0.5


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_injected_change_is_that_of_a_plain_loop(atlas, wide_pair, seed):
    row = random.Random(seed).randrange(len(QUESTIONS))
    for model, processor in (atlas, wide_pair):
        seen = inspect(model, processor, QUESTIONS, row, ["h2c"])["injection"]
        inputs = processor.apply_chat_template(user_turn(choice_prompt(QUESTIONS[row])))
        old, new = model.prefill(inputs["input_ids"], inputs["attention_mask"]), model.bridged_cache(**inputs)
        assert seen["tokens"] == [
            processor.receiver_tokenizer.decode([token]) for token in inputs["input_ids"][0, :-1]
        ]
        unbridged = len(old.layers) - len(model.bridge.alignment)
        assert len(seen["key"]) == len(seen["value"]) == len(old.layers)
        for layer in range(len(old.layers)):
            if layer < unbridged:
                assert seen["key"][layer] is seen["value"][layer] is None
                continue
            for kind, states in (("key", "keys"), ("value", "values")):
                before, after = (getattr(cache.layers[layer], states) for cache in (old, new))
                expected = [plain_change(before, after, position) for position in range(len(seen["tokens"]))]
                assert seen[kind][layer] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_probabilities_are_those_of_single_passes(atlas):
    model, processor = atlas
    row = 4
    seen = inspect(model, processor, QUESTIONS, row, ["receiver", "h2c", "sharer", "shuffled"])[
        "probability_shift"
    ]
    question = QUESTIONS[row]
    assert (seen["question"], seen["choices"]) == (question["question"], question["choices"])
    assert seen["expected"] == "ABCD"[question["answer"]]
    inputs, other = (
        processor.apply_chat_template(user_turn(choice_prompt(q)))
        for q in (question, QUESTIONS[donor_row(QUESTIONS, row)])
    )
    states = {name: other[name] for name in ("sharer_input_ids", "sharer_attention_mask")}
    logits = {
        "receiver": model.receiver(input_ids=inputs["input_ids"]).logits,
        "h2c": model(**inputs).logits,
        "sharer": model.sharer(input_ids=inputs["sharer_input_ids"]).logits,
        "shuffled": model(**{**inputs, **states}).logits,
    }
    assert list(seen["methods"]) == list(logits)
    for name, values in logits.items():
        tokenizer = getattr(processor, "sharer_tokenizer" if name == "sharer" else "receiver_tokenizer")
        scores = values[0, -1].double().exp()
        expected = [
            float(scores[token] / scores.sum())
            for token in letter_ids(tokenizer, user_turn(choice_prompt(question)))
        ]
        assert seen["methods"][name] == pytest.approx(expected, abs=1e-5)


def test_every_method_answers_and_the_model_is_left_as_it_was(atlas):
    model, processor = atlas
    names = [name for name in METHODS if name not in ("adapter", "skyline", "lora", "text_to_text_draft")]
    model.train()
    try:
        seen = inspect(model, processor, QUESTIONS, 0, names)
        assert model.training
        assert json.loads(json.dumps(seen)) == seen
        assert list(seen["probability_shift"]["methods"]) == names
        assert seen == inspect(model, processor, QUESTIONS, 0, names)  # no dropout
    finally:
        model.eval()


def test_bad_requests_are_refused(atlas):
    with pytest.raises(ValueError, match="got 1, expected at least 2"):
        inspect(*atlas, QUESTIONS[:1], 0, ["h2c"])
    with pytest.raises(ValueError, match="no question 9; expected 0 to 8"):
        inspect(*atlas, QUESTIONS, 9, ["h2c"])
