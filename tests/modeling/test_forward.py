import copy

import pytest
import torch
import torch.nn.functional as F
from pairs import DICTIONARY, FAMILIES, VOCABULARY, alone, join, random_inputs, random_pair, tiny_model
from reference import plain_logits

from h2c_hf.modeling import H2CForCausalLM, loss_h2c, passes_h2c


SEEDS = range(6)


def with_targets(inputs, seed):
    """The inputs with targets of random lengths, padded on the right, and labels."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(inputs["input_ids"])
    targets = torch.randint(1, VOCABULARY, (batch, 5), generator=generator)
    lengths = torch.randint(1, 6, (batch,), generator=generator)
    lengths[-1] = 5
    mask = (torch.arange(5)[None] < lengths[:, None]).long()
    labels = torch.cat(
        [torch.full_like(inputs["input_ids"], -100), torch.where(mask.bool(), targets, -100)], 1
    )
    return {
        **inputs, "labels": labels,
        "input_ids": torch.cat([inputs["input_ids"], targets * mask], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], mask], 1),
    }, targets, lengths  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_shut_gates_give_the_receivers_logits_to_the_bit(seed):
    model, inputs = random_pair(seed, "rewrite"), random_inputs(seed)
    torch.nn.init.constant_(model.bridge.gate, -torch.inf)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model.receiver(
        ids[:, :-1], attention_mask=mask[:, :-1], position_ids=position_ids[:, :-1], use_cache=True
    ).past_key_values
    expected = model.receiver(
        ids[:, -1:], attention_mask=mask, position_ids=position_ids[:, -1:], past_key_values=cache
    ).logits
    assert torch.equal(model(**inputs).logits, expected)
    whole = model.receiver(ids, attention_mask=mask, position_ids=position_ids).logits[:, -1:]
    torch.testing.assert_close(expected, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_left_padded_batch_answers_as_each_example_alone(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    together = model(**inputs).logits
    assert together.shape == (len(inputs["input_ids"]), 1, VOCABULARY)
    for row, logits in enumerate(together):
        torch.testing.assert_close(logits, model(**alone(inputs, row)).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_teacher_forced_logits_are_those_of_the_plain_method_step_by_step(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    forced, targets, lengths = with_targets(inputs, seed)
    with torch.no_grad():
        outputs = model(**forced)
    assert outputs.logits.shape[1] == 6
    for row, (target, length) in enumerate(zip(targets, lengths, strict=True)):
        single = alone(inputs, row)
        expected = plain_logits(model, single["input_ids"], single["sharer_input_ids"], target[:length])
        torch.testing.assert_close(outputs.logits[row, : length + 1], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_teacher_forced_logits_are_those_of_generate(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    generated = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    new = generated.sequences[:, inputs["input_ids"].shape[1] :]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), new], 1)
    with torch.no_grad():
        forced = model(
            **{**inputs, "input_ids": generated.sequences, "attention_mask": mask}, labels=labels
        ).logits
    torch.testing.assert_close(forced[:, :-1], torch.stack(generated.logits, 1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_is_the_mean_over_targets(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    forced, targets, lengths = with_targets(inputs, seed)
    with torch.no_grad():
        outputs, counted = model(**forced), model(**forced, num_items_in_batch=torch.tensor(7))
    losses = [
        F.cross_entropy(outputs.logits[row, :n], targets[row, :n], reduction="sum")
        for row, n in enumerate(lengths)
    ]
    torch.testing.assert_close(outputs.loss, sum(losses) / lengths.sum())
    torch.testing.assert_close(counted.loss, sum(losses) / 7)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("items", [None, 7, torch.tensor(11)])
def test_the_loss_without_logits_is_the_loss(family, items, monkeypatch):
    monkeypatch.setattr(loss_h2c, "ROWS", 4)
    model = join(tiny_model("llama"), tiny_model(family, 1), dropout=0.0).train()
    batch, _, lengths = with_targets(random_inputs(0), 0)
    assert lengths.sum() > 8, "several groups of rows"
    losses, gradients = [], []
    for skip_logits in (False, True):
        outputs = model(**batch, num_items_in_batch=items, skip_logits=skip_logits)
        assert (outputs.logits is None) == skip_logits
        (3 * outputs.loss).backward()
        losses.append(outputs.loss)
        gradients.append([parameter.grad for parameter in model.bridge.parameters()])
        model.zero_grad()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_parameter_of_the_bridge_gets_a_gradient_and_no_other(seed):
    model, inputs = random_pair(seed).train(), random_inputs(seed)
    frozen = {name for name, parameter in model.bridge.named_parameters() if not parameter.requires_grad}
    assert frozen == (DICTIONARY if model.config.token_hidden_size else set())
    model(**with_targets(inputs, seed)[0]).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("bridge.") and name.removeprefix("bridge.") not in frozen:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            blocks = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]
            assert blocks.abs().amax(1).gt(0).all(), name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_a_cache_that_is_bridged_already(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    expected = model(**inputs).logits
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    cache = model.bridged_cache(**inputs)
    assert torch.equal(model(**receiver, past_key_values=copy.deepcopy(cache)).logits, expected)
    only_new = model(
        inputs["input_ids"][:, -1:], inputs["attention_mask"], past_key_values=copy.deepcopy(cache)
    ).logits
    assert torch.equal(only_new, expected)
    outputs = model(**receiver, past_key_values=cache)
    message = inputs["sharer_input_ids"].shape[1] if model.config.bridge_form == "message" else 0
    assert outputs.past_key_values.get_seq_length() == message + inputs["input_ids"].shape[1]


@torch.no_grad()
def test_hidden_states_and_a_prefilled_cache_in_place_of_their_inputs():
    model, inputs = random_pair(0), random_inputs(0)
    states = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"])
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "sharer_attention_mask")}
    assert torch.equal(model(**given, sharer_hidden_states=states).logits, model(**inputs).logits)
    prefilled = model.prefill(inputs["input_ids"], inputs["attention_mask"])
    first = model.bridged_cache(**given, sharer_hidden_states=states, receiver_cache=prefilled)
    assert torch.equal(first.layers[-1].keys, model.bridged_cache(**inputs).layers[-1].keys)


@torch.no_grad()
def test_only_the_states_that_are_asked_for_are_kept():
    model, inputs = random_pair(0), random_inputs(0)
    every = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"])
    some = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"], model.bridge.read_layers)
    assert len(some) == len(every) and not all(state is None for state in some)
    for index, (state, whole) in enumerate(zip(some, every, strict=True)):
        assert state is None if index not in model.bridge.read_layers else torch.equal(state, whole)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "sharer_attention_mask")}
    assert torch.equal(model(**given, sharer_hidden_states=some).logits, model(**inputs).logits)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_the_sharer_reads_rows_of_like_lengths_together(seed, monkeypatch):
    model, inputs, widths = random_pair(seed), random_inputs(seed, batch=6), []
    ids, mask = inputs["sharer_input_ids"], inputs["sharer_attention_mask"]
    whole = model.read(ids, mask)
    monkeypatch.setitem(passes_h2c.PASS_TOKENS, "cpu", 8)
    model.sharer.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    read = model.read(ids, mask)
    assert (
        len(widths) > 1
        and sum(rows for rows, _ in widths) == 6
        and widths == sorted(widths, key=lambda shape: shape[1])
    )
    for state, expected in zip(read, whole, strict=True):
        torch.testing.assert_close(state[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)
    widths.clear()
    model.read(ids, torch.ones_like(mask))
    assert widths == [ids.shape], "without padding there is nothing to spare"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_sharer_stops_after_the_last_layer_that_is_read(family):
    sharer = tiny_model(family, 1, num_hidden_layers=4)
    model, ids, ran = join(sharer, tiny_model("qwen2")), torch.randint(1, VOCABULARY, (2, 7)), []
    for index, layer in enumerate(sharer.base_model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    for layers, work in (
        ([2], [0, 1]),
        ([0], [0]),
        ([1, 3], [0, 1, 2]),
        ([4], [0, 1, 2, 3]),
        (None, [0, 1, 2, 3]),
        ([2], [0, 1]),
    ):
        ran.clear()
        read = model.read(ids, None, layers)
        assert ran == work and len(read) == 5
        whole = sharer.base_model(ids, output_hidden_states=True).hidden_states
        for index in range(5):
            assert (
                read[index] is None
                if layers and index not in layers
                else torch.equal(read[index], whole[index])
            )


@torch.no_grad()
def test_the_sharers_config_stands_for_a_sharer_that_is_not_in_memory():
    model, inputs = random_pair(0), random_inputs(0)
    without = H2CForCausalLM.from_pair(model.sharer.config, model.receiver, model.bridge)
    assert without.sharer is None and without.train().bridge.training
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "sharer_attention_mask")}
    states = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"])
    without.eval()
    assert torch.equal(without(**given, sharer_hidden_states=states).logits, model(**inputs).logits)
    with pytest.raises(
        ValueError,
        match="made without the Sharer's weights: expected sharer_hidden_states, got sharer_input_ids",
    ):
        without(**inputs)


@torch.no_grad()
def test_masks_may_be_left_out_and_outputs_asked_for_as_of_any_model():
    model, inputs = random_pair(0), alone(random_inputs(0), 0)
    ids = {name: inputs[name] for name in ("input_ids", "sharer_input_ids")}
    outputs = model(**ids, use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, model(**inputs).logits)
    assert (
        outputs.past_key_values is None
        and len(outputs.hidden_states) == model.config.receiver_num_hidden_layers + 1
    )
    assert torch.equal(model(**ids, return_dict=False)[0], outputs.logits)


@torch.no_grad()
def test_the_sharers_prompt_matters():
    model, inputs = random_pair(0), random_inputs(0)
    other = {**inputs, "sharer_input_ids": inputs["sharer_input_ids"].flip(0)}
    other["sharer_attention_mask"] = inputs["sharer_attention_mask"].flip(0)
    assert (model(**inputs).logits - model(**other).logits).abs().max() > 0.1


@pytest.mark.gpu
def test_on_a_gpu_with_both_passes_side_by_side():
    """Each model's pass on its own stream, many times: memory is reused while the other still runs."""
    model = random_pair(0).to("cuda")
    inputs = {name: tensor.to("cuda") for name, tensor in random_inputs(0).items()}
    prefilled = model.prefill(inputs["input_ids"], inputs["attention_mask"])  # on the one stream
    expected = [layer.keys for layer in model.bridged_cache(**inputs, receiver_cache=prefilled).layers]
    for _ in range(200):
        for layer, keys in zip(model.bridged_cache(**inputs).layers, expected, strict=True):
            torch.testing.assert_close(layer.keys, keys)
