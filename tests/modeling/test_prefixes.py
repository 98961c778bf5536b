"""Prompts that begin alike, against the same prompts read whole."""

import random

import pytest
import torch
from pairs import VOCABULARY, alone, join, random_pair, text_pair, tiny_model
from reference import plain_logits


SEEDS = range(6)


def shared_prompts(seed: int) -> tuple[dict, dict]:
    """A prefix, and a left-padded batch of prompts that begin with it."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    prefix, inputs, batch = {}, {}, rng.randint(1, 4)
    for name in ("", "sharer_"):
        start = torch.randint(1, VOCABULARY, (1, rng.randint(1, 9)))
        rests = [torch.randint(1, VOCABULARY, (rng.randint(2, 7),)) for _ in range(batch)]
        rows = [torch.cat([start[0], rest]) for rest in rests]
        width = max(map(len, rows))
        prefix[f"{name}input_ids"] = start
        inputs[f"{name}input_ids"] = torch.stack(
            [torch.cat([row.new_zeros(width - len(row)), row]) for row in rows]
        )
        inputs[f"{name}attention_mask"] = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        )
    return prefix, inputs


def generate(model, *args, **inputs):
    kwargs = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(*args, **inputs, **kwargs)
    return output.sequences, torch.stack(output.logits, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_those_of_prompts_that_are_read_whole(seed):
    model, (prefix, inputs) = random_pair(seed), shared_prompts(seed)
    ids, logits = generate(model.prefix_cache(), prefix, **inputs)
    expected_ids, expected = generate(model, **inputs)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
    for row in range(len(ids)):
        single = alone(inputs, row)
        plain = plain_logits(
            model,
            single["input_ids"],
            single["sharer_input_ids"],
            ids[row, inputs["input_ids"].shape[1] : -1],
        )
        torch.testing.assert_close(logits[row], plain, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_kept_changes_no_bit(seed):
    model, (prefix, inputs) = random_pair(seed), shared_prompts(seed)
    keeps, keeps_nothing = model.prefix_cache(), model.prefix_cache(max_bytes=0)
    first, again, without = (generate(cache, prefix, **inputs) for cache in (keeps, keeps, keeps_nothing))
    assert keeps.bytes > 0 and keeps_nothing.bytes == 0
    for other in (again, without):
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


def test_a_prefix_is_read_once_and_the_least_recently_used_goes_first():
    model = random_pair(0)
    prompts = [shared_prompts(seed) for seed in range(3)]
    read = []
    model.sharer.register_forward_pre_hook(lambda module, args, kwargs: read.append(1), with_kwargs=True)
    model.sharer.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )

    def passes(cache, number: int) -> int:
        read.clear()
        cache.bridged_cache(prompts[number][0], **prompts[number][1])
        return len(read)

    cache = model.prefix_cache()
    assert [passes(cache, number) for number in (0, 0, 1, 2, 0, 1)] == [2, 1, 2, 2, 1, 1]
    everything = cache.bytes
    small = model.prefix_cache(max_bytes=everything - 1)
    assert [passes(small, number) for number in (0, 1, 0, 2)] == [2, 2, 1, 2], (
        "the third drives out the second, not used for longest"
    )
    assert small.bytes <= everything - 1
    assert [passes(small, number) for number in (0, 2, 1)] == [1, 1, 2]
    small.clear()
    assert small.bytes == 0 and passes(small, 0) == 2


def test_another_bridge_does_not_change_what_is_kept():
    model, (prefix, inputs) = random_pair(1), shared_prompts(1)
    cache = model.prefix_cache()
    before = generate(cache, prefix, **inputs)
    expected = generate(model.receiver, **{name: inputs[name] for name in ("input_ids", "attention_mask")})
    assert not torch.equal(expected[0], before[0])
    with model.disable_bridge():
        assert torch.equal(generate(cache, prefix, **inputs)[0], expected[0])
    assert torch.equal(generate(cache, prefix, **inputs)[0], before[0])
    torch.nn.init.constant_(model.bridge.gate, -torch.inf)
    assert torch.equal(generate(cache, prefix, **inputs)[0], expected[0])


def test_messages_that_all_conversations_begin_with():
    processor, model = text_pair()
    shared = [{"role": "system", "content": "Answer with a name."}]
    asked = [[*shared, {"role": "user", "content": text}] for text in ("Who?", "Who wrote Emma, and when?")]
    prefix = processor.apply_chat_template(shared, add_generation_prompt=False)
    inputs = processor.apply_chat_template(asked)
    assert prefix["input_ids"].shape[1] > 20
    assert torch.equal(generate(model.prefix_cache(), prefix, **inputs)[0], generate(model, **inputs)[0])


def test_prompts_without_the_prefix_are_refused():
    model, (prefix, inputs) = random_pair(2), shared_prompts(2)
    cache, length = model.prefix_cache(), prefix["input_ids"].shape[1]
    other = {
        **prefix,
        "input_ids": torch.cat([prefix["input_ids"][:, :-1], prefix["input_ids"][:, -1:] % 7 + 50], 1),
    }
    with pytest.raises(
        ValueError,
        match=rf"Prompt 0 in input_ids begins with {length - 1} tokens of the prefix; expected all "
        rf"{length}\.",
    ):
        cache.generate(other, **inputs)
    with pytest.raises(
        ValueError,
        match=r"Prompt \d in sharer_input_ids has \d+ tokens; expected at least 1 more than the prefix's "
        r"\d+\.",
    ):
        cache.generate({**prefix, "sharer_input_ids": inputs["sharer_input_ids"][:1]}, **inputs)
    with pytest.raises(ValueError, match=r"The prefix has sharer_input_ids of None; expected \(1, length\)"):
        cache.generate({"input_ids": prefix["input_ids"]}, **inputs)
    with pytest.raises(
        ValueError, match=r"The prefix has input_ids of shape \(2, \d+\); expected \(1, length\)"
    ):
        cache.generate({**prefix, "input_ids": prefix["input_ids"].expand(2, -1)}, **inputs)
    assert cache.bytes == 0, "refused before anything was read"
    sharer = tiny_model("llama", 1)
    with pytest.raises(ValueError, match="made without the Sharer's weights"):
        type(model).from_pair(sharer.config, tiny_model("llama", 2)).prefix_cache()


def test_a_receiver_with_a_window():
    receiver = tiny_model("mistral", 3, sliding_window=64)
    model, (prefix, inputs) = join(tiny_model("llama", 4), receiver), shared_prompts(4)
    assert torch.equal(generate(model.prefix_cache(), prefix, **inputs)[0], generate(model, **inputs)[0])
