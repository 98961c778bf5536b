"""The methods on the Atlas pair that ships: each against a plain way to the same figure, one question at a time."""

import numpy as np
import pytest
import torch

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.data.prompts import choice_prompt, hint_prompt, letter_ids, user_turn
from h2c_hf.evaluation.latency import time_to_first_token
from h2c_hf.evaluation.methods import METHODS, Batch
from h2c_hf.evaluation.runner import batches, evaluate


QUESTIONS = atlas_questions("validation")[:24]


@torch.no_grad()
def plain_logits(name: str, model, processor, question: dict, before: dict) -> torch.Tensor:
    """The method, written out for one question (and the one before it), with nothing shared or batched."""
    inputs = processor.apply_chat_template(user_turn(choice_prompt(question)))
    if name == "receiver":
        return model.receiver(input_ids=inputs["input_ids"]).logits[0, -1]
    if name == "sharer":
        return model.sharer(input_ids=inputs["sharer_input_ids"]).logits[0, -1]
    if name == "h2c":
        return model(**inputs).logits[0, -1]
    if name == "zeros":
        states = tuple(torch.zeros_like(state) for state in model.read(inputs["sharer_input_ids"]))
        return model(inputs["input_ids"], sharer_hidden_states=states).logits[0, -1]
    if name == "shuffled":
        other = processor.apply_chat_template(user_turn(choice_prompt(before)))["sharer_input_ids"]
        return model(inputs["input_ids"], sharer_input_ids=other).logits[0, -1]
    asked = processor.apply_chat_template(user_turn(hint_prompt(question)))["sharer_input_ids"]
    written = model.sharer.generate(input_ids=asked, max_new_tokens=48, do_sample=False)[0, asked.shape[1] :]
    hint = processor.sharer_tokenizer.decode(written, skip_special_tokens=True)
    hinted = processor.apply_chat_template(user_turn(choice_prompt(question, hint)))
    return model.receiver(input_ids=hinted["input_ids"]).logits[0, -1]


@pytest.mark.parametrize("name", ["receiver", "sharer", "h2c", "text_to_text", "zeros", "shuffled"])
@torch.no_grad()
def test_a_batched_method_answers_as_it_does_alone(atlas, name):
    model, processor = atlas
    logits = METHODS[name].logits(Batch(model, processor, QUESTIONS))
    expected = torch.stack([plain_logits(name, model, processor, q, QUESTIONS[row - 1]) for row, q in enumerate(QUESTIONS)])
    same = [torch.allclose(*pair, atol=1e-3, rtol=1e-4) for pair in zip(logits, expected, strict=True)]
    # A hint that runs on to its limit passes near-ties, where a batch and a single prompt may write different words.
    assert same.count(False) <= (2 if name == "text_to_text" else 0)


@torch.no_grad()
def test_a_scored_letter_is_the_first_generated_token(atlas):
    model, processor = atlas
    letters = letter_ids(processor.receiver_tokenizer, user_turn(choice_prompt(QUESTIONS[0])))
    batch = Batch(model, processor, QUESTIONS)
    scored = METHODS["h2c"].logits(batch)
    output = model.generate(**batch.inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    torch.testing.assert_close(output.logits[0][:, letters], scored[:, letters], atol=1e-4, rtol=1e-4)


def kept(states):
    """Those of a Sharer's states that were read: the others are None."""
    return [state for state in states if state is not None]


@pytest.mark.parametrize(("name", "blanked"), [("zeros", 0.0), ("shuffled", None)])
@torch.no_grad()
def test_a_control_reads_no_state_of_its_own_question(atlas, name, blanked):
    model, processor = atlas
    batch = Batch(model, processor, QUESTIONS[:6])
    own, mask = METHODS["h2c"].states(batch)
    states, control_mask = METHODS[name].states(batch)
    assert [state is None for state in states] == [state is None for state in own]
    for state, original in zip(kept(states), kept(own), strict=True):
        if blanked is not None:
            assert (state == blanked).all()
        else:
            torch.testing.assert_close(state, torch.cat([original[-1:], original[:-1]]))
    if name == "shuffled":
        torch.testing.assert_close(control_mask, torch.cat([mask[-1:], mask[:-1]]))


@torch.no_grad()
def test_noise_has_the_moments_of_the_states(atlas):
    model, processor = atlas
    batch = Batch(model, processor, QUESTIONS)
    own, mask = METHODS["h2c"].states(batch)
    noise, _ = METHODS["noise"].states(batch)
    for state, drawn in zip(kept(own), kept(noise), strict=True):
        assert not torch.equal(state, drawn)
        real, made = state[mask.bool()], drawn[mask.bool()]
        torch.testing.assert_close(made.mean(0), real.mean(0), atol=0.3 * real.std().item(), rtol=0)
        torch.testing.assert_close(made.std(0), real.std(0), atol=0.1, rtol=0.2)


def test_a_batch_of_one_cannot_be_shuffled(atlas):
    model, processor = atlas
    with pytest.raises(ValueError, match="got a batch of 1, expected at least 2"):
        METHODS["shuffled"].states(Batch(model, processor, QUESTIONS[:1]))


def test_results_come_in_the_order_of_the_questions(atlas):
    model, processor = atlas
    results = evaluate(model, processor, QUESTIONS, ["receiver", "sharer"], batch_size=5)
    backwards = evaluate(model, processor, QUESTIONS[::-1], ["receiver", "sharer"], batch_size=7)
    for name, result in results.items():
        assert result["predictions"] == backwards[name]["predictions"][::-1]
        assert result["correct"].tolist() == [p == q["answer"] for p, q in zip(result["predictions"], QUESTIONS, strict=True)]


def test_the_open_form_is_compared_exactly(atlas):
    model, processor = atlas
    result = evaluate(model, processor, QUESTIONS, ["sharer"], form="open")["sharer"]
    expected = [question["choices"][question["answer"]] for question in QUESTIONS]
    assert result["correct"].tolist() == [p == e for p, e in zip(result["predictions"], expected, strict=True)]
    assert result["correct"].mean() > 0.8


def test_batches_hold_every_question_once_and_leave_none_alone():
    for size in (5, 8, 23):
        rows = batches(QUESTIONS, "choice", size)
        assert sorted(row for part in rows for row in part) == list(range(len(QUESTIONS)))
        assert all(2 <= len(part) <= size for part in rows)


def test_bad_requests_are_refused(atlas):
    with pytest.raises(ValueError, match="no method 'telepathy'; expected one of receiver"):
        evaluate(*atlas, QUESTIONS, ["telepathy"])
    with pytest.raises(ValueError, match="got 0, expected at least 1"):
        evaluate(*atlas, [], ["receiver"])
    odd = [*QUESTIONS, {**QUESTIONS[0], "choices": ["yes", "no"]}]
    with pytest.raises(ValueError, match=r"got \[2, 4\]"):
        evaluate(*atlas, odd, ["receiver"])


def test_every_method_is_timed(atlas):
    times = time_to_first_token(*atlas, QUESTIONS[:4], list(METHODS))
    assert set(times) == set(METHODS)
    for row in times.values():
        assert 0 < row["ttft_ms_median"] <= row["ttft_ms_p90"]


def test_wrong_letters_and_a_random_bridge_gain_nothing(atlas):
    """A broken set-up must show in the figures, not hide in them."""
    model, processor = atlas
    questions = atlas_questions("test")[:400]
    weights = {name: parameter.clone() for name, parameter in model.bridge.state_dict().items()}
    torch.manual_seed(0)
    try:
        for parameter in model.bridge.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        results = evaluate(model, processor, questions, ["h2c", "zeros"], batch_size=128)
    finally:
        model.bridge.load_state_dict(weights)
    gain = results["h2c"]["correct"].mean() - results["zeros"]["correct"].mean()
    assert abs(gain) < 0.06
    assert np.abs(results["h2c"]["correct"].mean() - 0.25) < 0.08
