"""Drafts: the bridge gets what stock `generate` writes row by row and a plain forward reads again."""

import pytest
import torch
from pairs import alone, random_inputs, random_pair

from h2c_hf.modeling import H2CForCausalLM


TOKENS = 5
ENDS = list(range(1, 61, 4))  # random models reach one of them soon: drafts of unequal lengths


@torch.no_grad()
def plain_drafts(model: H2CForCausalLM, inputs: dict, **settings) -> list[torch.Tensor]:
    """The Sharer's prompt and draft of each row, (1, length), by stock greedy decoding of the row alone."""
    rows = []
    for row in range(len(inputs["sharer_input_ids"])):
        ids = alone(inputs, row)["sharer_input_ids"]
        written = model.sharer.generate(ids, max_new_tokens=TOKENS, do_sample=False, **settings)
        new = [
            token
            for token in written[0, ids.shape[1] :].tolist()
            if token not in settings.get("eos_token_id", ())
        ]
        rows.append(torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1))
    return rows


@pytest.mark.parametrize("settings", [{}, {"eos_token_id": ENDS, "pad_token_id": 0}], ids=["all", "ended"])
@pytest.mark.parametrize("seed", range(6))
def test_ids_and_hidden_states_are_those_of_each_row_read_alone(seed, settings):
    model, inputs = random_pair(seed), random_inputs(seed)
    draft = model.draft(inputs["sharer_input_ids"], inputs["sharer_attention_mask"], TOKENS, **settings)
    expected = plain_drafts(model, inputs, **settings)
    assert draft.sharer_input_ids.shape[1] == max(ids.shape[1] for ids in expected), (
        "no padding but what the longest row needs"
    )
    for row, ids in enumerate(expected):
        kept = draft.sharer_attention_mask[row].bool()
        assert torch.equal(draft.sharer_input_ids[row, kept], ids[0])
        assert draft.lengths[row] == ids.shape[1] - inputs["sharer_attention_mask"][row].sum()
        assert kept[-1] or not kept.any(), "padded on the left"
        with torch.no_grad():
            states = model.sharer(ids, output_hidden_states=True).hidden_states
        for found, state in zip(draft.sharer_hidden_states, states, strict=True):
            assert torch.allclose(found[row, kept], state[0], atol=2e-4)


def test_some_drafts_of_these_tests_end_early_and_some_do_not():
    lengths = [
        length
        for seed in range(6)
        for length in random_pair(seed).draft(
            random_inputs(seed)["sharer_input_ids"], random_inputs(seed)["sharer_attention_mask"], TOKENS,
            eos_token_id=ENDS, pad_token_id=0,
        ).lengths.tolist()
    ]  # fmt: skip
    assert min(lengths) < TOKENS and max(lengths) == TOKENS


@pytest.mark.parametrize("seed", range(6))
def test_generate_with_a_draft_is_generate_on_the_drafted_prompts(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    options = {"max_new_tokens": 6, "do_sample": False}
    found = model.generate(**inputs, sharer_max_new_tokens=TOKENS, **options)
    ids, mask, _, _ = model.draft(inputs["sharer_input_ids"], inputs["sharer_attention_mask"], TOKENS)
    assert torch.equal(
        found, model.generate(**{**inputs, "sharer_input_ids": ids, "sharer_attention_mask": mask}, **options)
    )
    for row in range(len(found)):
        single = alone(inputs, row)
        one = model.generate(**single, sharer_max_new_tokens=TOKENS, **options)
        assert torch.equal(one[0, single["input_ids"].shape[1] :], found[row, inputs["input_ids"].shape[1] :])


def test_a_draft_matters_and_forward_takes_it():
    model, inputs = random_pair(2), random_inputs(2)
    draft = model.draft(inputs["sharer_input_ids"], inputs["sharer_attention_mask"], TOKENS)
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        read = model(
            **prompt,
            sharer_attention_mask=draft.sharer_attention_mask,
            sharer_hidden_states=draft.sharer_hidden_states,
        ).logits
        again = model(
            **prompt,
            sharer_input_ids=draft.sharer_input_ids,
            sharer_attention_mask=draft.sharer_attention_mask,
        ).logits
        without = model(**inputs).logits
    assert torch.allclose(read, again, atol=1e-3)
    assert not torch.allclose(read, without, atol=1e-2)


def test_the_setting_is_saved_with_the_generation_config(tmp_path):
    model, inputs = random_pair(0), random_inputs(0)
    expected = model.generate(**inputs, sharer_max_new_tokens=3, max_new_tokens=4, do_sample=False)
    model.generation_config.sharer_max_new_tokens = 3
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
    model.save_pretrained(tmp_path)
    loaded = H2CForCausalLM.from_pretrained(tmp_path, sharer=model.sharer, receiver=model.receiver)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
    plain = loaded.generate(**inputs, sharer_max_new_tokens=0, max_new_tokens=4, do_sample=False)
    assert torch.equal(plain, random_pair(0).generate(**inputs, max_new_tokens=4, do_sample=False))


def test_a_sampled_draft_depends_on_the_seed_alone():
    model, inputs = random_pair(1), random_inputs(1)
    drafts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drafts.append(
            model.draft(
                inputs["sharer_input_ids"], inputs["sharer_attention_mask"], TOKENS, do_sample=True
            ).sharer_input_ids
        )
    assert torch.equal(drafts[0], drafts[1]) and not torch.equal(drafts[0], drafts[2])


def test_nothing_is_read_twice():
    model, inputs = random_pair(0), random_inputs(0)
    lengths = []
    hook = model.sharer.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1])
    )
    model.generate(**inputs, sharer_max_new_tokens=TOKENS, max_new_tokens=2, do_sample=False)
    hook.remove()
    assert lengths == [inputs["sharer_input_ids"].shape[1], *[1] * TOKENS]


def refused(match: str, call):
    with pytest.raises(ValueError, match=match):
        call()


def test_what_cannot_be_is_refused_in_one_sentence():
    model, inputs = random_pair(0), random_inputs(0)
    ids, mask = inputs["sharer_input_ids"], inputs["sharer_attention_mask"]
    refused(
        "sharer_max_new_tokens is 0; expected a number of tokens, at least 1",
        lambda: model.draft(ids, mask, 0),
    )
    refused("expected one sequence for each prompt", lambda: model.draft(ids, mask, 2, num_beams=2))
    refused("padded on the right", lambda: model.draft(ids, mask.flip(1), 2))
    longest = int(mask.sum(1).max())
    refused(
        f"is {longest + 300} tokens long with a draft of 300; the context window of its model is 256",
        lambda: model.draft(ids, mask, 300),
    )
    cache = model.bridged_cache(**inputs)
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    read_already = "sharer_max_new_tokens is 2, and the Sharer has read its prompt already"
    refused(read_already, lambda: model.generate(**prompt, past_key_values=cache, sharer_max_new_tokens=2))
    refused(
        read_already,
        lambda: model.generate(**prompt, sharer_hidden_states=model.read(ids), sharer_max_new_tokens=2),
    )
