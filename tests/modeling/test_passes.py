"""The Sharer's states go to the bridge as they come: the same cache, to the bit, as from all at once, and
none is kept for longer."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pairs import VOCABULARY, join, random_inputs, random_pair, tiny_model

from h2c_hf.modeling import modeling_h2c_bridge, passes_h2c


def assert_same(cache, expected):
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        assert torch.equal(layer.keys, other.keys) and torch.equal(layer.values, other.values)


def from_kept_states(model, inputs):
    states = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"])
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "sharer_attention_mask")}
    return model.bridged_cache(**given, sharer_hidden_states=states)


@pytest.mark.parametrize("elements", [1, 2**22])
@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_the_cache_is_that_of_all_states_at_once(seed, elements, monkeypatch):
    model, inputs = random_pair(seed), random_inputs(seed)
    monkeypatch.setitem(modeling_h2c_bridge.GROUP_ELEMENTS, "cpu", elements)
    expected = from_kept_states(model, inputs)
    monkeypatch.setattr(type(model), "read", None)  # which keeps all states
    assert_same(model.bridged_cache(**inputs), expected)
    prefilled = model.prefill(inputs["input_ids"], inputs["attention_mask"])
    before = [layer.keys.clone() for layer in prefilled.layers]
    assert_same(model.bridged_cache(**inputs, receiver_cache=prefilled), expected)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(prefilled.layers, before, strict=True))


@torch.no_grad()
def test_no_more_states_are_alive_than_the_groups_that_wait_for_them_read(monkeypatch):
    monkeypatch.setitem(modeling_h2c_bridge.GROUP_ELEMENTS, "cpu", 1)
    model = join(tiny_model("llama", num_hidden_layers=6), tiny_model("qwen2", 1, num_hidden_layers=5))
    inputs = random_inputs(0)
    alive = []

    def watch(_, args):
        alive.append([index for index, state in enumerate(args[0]) if state is not None])

    model.bridge.register_forward_pre_hook(watch)
    model.bridged_cache(**inputs)
    assert alive == [[index] for _, index in model.bridge.alignment]


def test_states_wait_for_the_group_whose_turn_it_is():
    rewritten = []
    groups = {(0, 1): [3], (1, 3): [0, 2], (3, 4): [2]}
    take = passes_h2c.in_groups(groups, lambda group, states: rewritten.append((group, dict(states))))
    for index, expected in (
        (0, []),
        (2, []),
        (3, [((0, 1), {0: "a", 2: "c", 3: "d"}), ((1, 3), {0: "a", 2: "c"}), ((3, 4), {2: "c"})]),
    ):
        take(index, "abcd"[index])
        assert rewritten == expected


@torch.no_grad()
def test_threads_that_share_the_sharer_do_not_see_each_others_states():
    model = random_pair(3)
    inputs = [random_inputs(seed, batch=2) for seed in range(4)]
    expected = [from_kept_states(model, each) for each in inputs]

    @torch.no_grad()  # a setting of each thread
    def cache(each):
        return model.bridged_cache(**each)

    with ThreadPoolExecutor(4) as pool:
        for number, made in enumerate(pool.map(cache, inputs * 10)):
            assert_same(made, expected[number % 4])
    assert not any(layer._forward_pre_hooks for layer in model.sharer.base_model.layers)


@torch.no_grad()
def test_a_sharer_that_is_not_built_as_most_are_hands_its_states_over_at_the_end(monkeypatch):
    model, inputs = random_pair(2), random_inputs(2)
    expected = model.bridged_cache(**inputs)
    backbone = model.sharer.base_model
    monkeypatch.setattr(backbone, "forward", backbone.forward)  # as accelerate's hooks do
    assert_same(model.bridged_cache(**inputs), expected)


def test_where_something_is_trained_the_states_are_kept():
    model = random_pair(1).train()
    inputs = random_inputs(1)
    cache = model.bridged_cache(**inputs)
    sum(layer.keys.sum() for layer in cache.layers).backward()
    assert all(
        parameter.grad is not None
        for name, parameter in model.bridge.named_parameters()
        if name.startswith("ffn_out")
    )


@torch.no_grad()
def test_the_sharers_config_may_ask_for_outputs_of_its_own():
    model = join(tiny_model("llama", num_hidden_layers=4), tiny_model("qwen2", 1))
    ids = torch.randint(1, VOCABULARY, (1, 6))
    model.sharer.set_attn_implementation("eager")
    model.sharer.config.output_attentions = model.sharer.config.output_hidden_states = True
    for _ in range(3):
        model.bridged_cache(ids, sharer_input_ids=ids)
    hooks = [len(layer._forward_hooks) for layer in model.sharer.base_model.layers]
    assert hooks == [1] * 4, "transformers' own, once"


def test_a_layer_is_watched_however_it_is_called():
    class Layer(torch.nn.Module):
        def forward(self, hidden_states):
            return hidden_states + 1

    layer, taken, states = Layer(), [], torch.zeros(1, 2)
    watching = passes_h2c.watched(layer, taken.append)
    assert torch.equal(watching(states), states + 1) and torch.equal(
        watching(hidden_states=states), states + 1
    )
    layer(states)
    assert [state is states for state in taken] == [True, True]


@torch.no_grad()
def test_a_compiled_bridge_is_compiled_once_and_used(monkeypatch):
    monkeypatch.setitem(modeling_h2c_bridge.GROUP_ELEMENTS, "cpu", 1)
    model = join(tiny_model("llama", num_hidden_layers=4), tiny_model("qwen2", 1))
    inputs = random_inputs(0)
    compiled = []
    expected = model.bridged_cache(**inputs)

    def backend(graph, _):
        compiled.append(graph)
        return graph

    model.bridge.compile(backend=backend, fullgraph=True, dynamic=True)
    for _ in range(2):
        cache = model.bridged_cache(**inputs)
    assert len(compiled) == 1
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        torch.testing.assert_close(
            (layer.keys, layer.values), (other.keys, other.values), atol=1e-5, rtol=1e-4
        )
