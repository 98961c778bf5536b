import pytest
import torch
from pairs import alone, join, random_inputs, random_pair, tiny_model
from reference import plain_bridge

from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel, modeling_h2c_bridge


def run_bridge(model, inputs):
    """The bridge's inputs, and the cache it makes of them."""
    states = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"])
    cache = model.prefill(inputs["input_ids"], inputs["attention_mask"])
    with torch.no_grad():
        bridged = model.bridge(
            states, cache, inputs["sharer_attention_mask"], inputs["attention_mask"][:, :-1]
        )
    return states, cache, bridged


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_plain_bridge_row_by_row(seed):
    model, inputs = random_pair(seed, "rewrite"), random_inputs(seed)
    states, cache, bridged = run_bridge(model, inputs)
    for row in range(len(inputs["input_ids"])):
        tokens, read = inputs["attention_mask"][row, :-1].bool(), inputs["sharer_attention_mask"][row].bool()
        row_states = [state[row : row + 1, read] for state in states]
        keys = [layer.keys[row : row + 1][:, :, tokens] for layer in cache.layers]
        values = [layer.values[row : row + 1][:, :, tokens] for layer in cache.layers]
        expected_keys, expected_values = plain_bridge(model.bridge, row_states, keys, values)
        for layer, key, value in zip(bridged.layers, expected_keys, expected_values, strict=True):
            torch.testing.assert_close(layer.keys[row : row + 1][:, :, tokens], key, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(layer.values[row : row + 1][:, :, tokens], value, atol=1e-5, rtol=1e-5)


def test_equals_the_plain_bridge_where_both_widths_are_the_same():
    receiver = tiny_model("llama", num_key_value_heads=4)
    model, inputs = join(tiny_model("llama", 1), receiver), random_inputs(0, batch=1)
    assert model.config.sharer_hidden_size == model.config.receiver_size
    states, cache, bridged = run_bridge(model, alone(inputs, 0))
    keys, values = plain_bridge(
        model.bridge, states, [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
    )
    for layer, key, value in zip(bridged.layers, keys, values, strict=True):
        torch.testing.assert_close(layer.keys, key, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.values, value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_cache_that_came_in_is_left_as_it_was(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    states = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"])
    cache = model.prefill(inputs["input_ids"], inputs["attention_mask"])
    before = [(layer.keys, layer.keys.clone(), layer.values, layer.values.clone()) for layer in cache.layers]
    bridged = model.bridge(states, cache, inputs["sharer_attention_mask"], inputs["attention_mask"][:, :-1])
    bridged.update(torch.ones_like(bridged.layers[0].keys), torch.ones_like(bridged.layers[0].values), 0)
    for layer, (keys, keys_copy, values, values_copy) in zip(cache.layers, before, strict=True):
        assert layer.keys is keys and layer.values is values
        assert torch.equal(keys, keys_copy) and torch.equal(values, values_copy)


@pytest.mark.parametrize("seed", range(4))
def test_padding_of_the_receiver_is_not_rewritten_and_padding_of_the_sharer_not_read(seed):
    model, inputs = random_pair(seed, "rewrite"), random_inputs(seed)
    states, cache, bridged = run_bridge(model, inputs)
    padding = inputs["attention_mask"][:, :-1] == 0
    other = tuple(
        torch.where(inputs["sharer_attention_mask"][..., None].bool(), state, 100.0) for state in states
    )
    with torch.no_grad():
        again = model.bridge(other, cache, inputs["sharer_attention_mask"], inputs["attention_mask"][:, :-1])
    for layer, was, same in zip(bridged.layers, cache.layers, again.layers, strict=True):
        assert torch.equal(layer.keys.transpose(1, 2)[padding], was.keys.transpose(1, 2)[padding])
        torch.testing.assert_close(layer.values, same.values)
    assert not torch.equal(bridged.layers[-1].keys, cache.layers[-1].keys)


@pytest.mark.parametrize("seed", range(4))
def test_shut_gates_leave_the_cache_to_the_bit(seed):
    model, inputs = random_pair(seed, "rewrite"), random_inputs(seed)
    torch.nn.init.constant_(model.bridge.gate, -torch.inf)
    _, cache, bridged = run_bridge(model, inputs)
    for layer, was in zip(bridged.layers, cache.layers, strict=True):
        assert torch.equal(layer.keys, was.keys) and torch.equal(layer.values, was.values)


def test_layers_are_aligned_from_the_top():
    config = H2CBridgeConfig(sharer_num_hidden_layers=2, receiver_num_hidden_layers=5)
    assert config.alignment == [(3, 0), (4, 1)]
    config = H2CBridgeConfig(sharer_num_hidden_layers=5, receiver_num_hidden_layers=2)
    assert config.alignment == [(0, 3), (1, 4)]
    config = H2CBridgeConfig(sharer_num_hidden_layers=5, receiver_num_hidden_layers=2, layer_alignment="last")
    assert config.alignment == [(0, 4), (1, 5)]


def test_layers_below_the_sharers_depth_are_not_rewritten():
    model = join(tiny_model("llama", num_hidden_layers=2), tiny_model("qwen2", num_hidden_layers=4))
    _, cache, bridged = run_bridge(model, random_inputs(0))
    changed = [
        not torch.equal(layer.keys, was.keys) for layer, was in zip(bridged.layers, cache.layers, strict=True)
    ]
    assert changed == [False, False, True, True]


def test_gate_values_by_receiver_layer():
    model = join(tiny_model("llama", num_hidden_layers=2), tiny_model("llama", num_hidden_layers=3))
    with torch.no_grad():
        model.bridge.gate.copy_(torch.tensor([0.0, torch.inf, -torch.inf, 0.0]))
    assert model.bridge.gate_values() == {"key": [None, 0.5, 0.0], "value": [None, 1.0, 0.5]}


def test_dropout_in_training_only():
    model, inputs = random_pair(0), random_inputs(0)
    first, second = (run_bridge(model, inputs)[2].layers[-1].keys for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (run_bridge(model, inputs)[2].layers[-1].keys for _ in range(2))
    assert not torch.equal(first, second)


def test_a_new_bridge_is_initialised_as_its_config_says():
    config = H2CBridgeConfig.published(tiny_model("llama").config, tiny_model("qwen2").config, gate_init=-2.0)
    bridge = H2CBridgeModel(config)
    assert bridge.gate.tolist() == [-2.0] * 6
    bound = (6 / (config.sharer_hidden_size + 2 * config.receiver_size)) ** 0.5
    assert 0.9 * bound < bridge.kv_proj.weight.abs().max() <= bound
    assert bridge.norm_sharer.weight.eq(1).all() and bridge.ffn_in.bias.eq(0).all()
    assert not torch.equal(bridge.q_proj.weight[0], bridge.q_proj.weight[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_stay_in_fp32_when_loaded_in_half_precision_and_that_dtype_is_what_is_saved(tmp_path, dtype):
    random_pair(0).bridge.save_pretrained(tmp_path / "fp32")
    bridge = H2CBridgeModel.from_pretrained(tmp_path / "fp32", dtype=dtype)
    assert bridge.gate.dtype == torch.float32
    assert {name: p.dtype for name, p in bridge.named_parameters() if name != "gate"} == {
        name: dtype for name, _ in bridge.named_parameters() if name != "gate"
    }
    bridge.save_pretrained(tmp_path / "half")
    again = H2CBridgeModel.from_pretrained(tmp_path / "half")
    assert again.dtype == dtype and again.gate.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(bridge.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "make, most, small", [(H2CBridgeConfig.published, 16, 10), (H2CBridgeConfig.from_pair, 8, 5)]
)
def test_a_new_config_takes_the_largest_number_of_heads_that_fits(make, most, small):
    sharer = tiny_model("llama").config
    assert make(sharer, tiny_model("llama").config).num_attention_heads == most
    assert (
        make(sharer, tiny_model("llama", num_key_value_heads=1, head_dim=10).config).num_attention_heads
        == small
    )


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_folded_bridge_gives_the_same(seed, tmp_path):
    model, inputs = random_pair(seed, "rewrite"), random_inputs(seed)
    expected, gates = model(**inputs).logits, model.gate_values()
    before = [parameter.clone() for parameter in model.bridge.parameters()]
    for _ in range(2):  # a second time changes nothing
        model.bridge.fold()
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert model.gate_values() == gates
    assert (
        sum(not torch.equal(old, new) for old, new in zip(before, model.bridge.parameters(), strict=True))
        == 8
    )
    for use in (
        lambda: model.train(),
        lambda: model.save_pretrained(tmp_path),
        lambda: model.bridge.load_state_dict({}),
    ):
        with pytest.raises(ValueError, match="folded, which is for inference alone"):
            use()
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_layers_give_what_all_give_together(seed, monkeypatch):
    model, inputs = random_pair(seed), random_inputs(seed)
    results = []
    for elements in (2**30, 1):
        monkeypatch.setitem(modeling_h2c_bridge.GROUP_ELEMENTS, "cpu", elements)
        assert len(model.bridge.groups(1, 10)) == (1 if elements > 1 else len(model.bridge.alignment))
        logits = model(**inputs).logits
        logits.sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.bridge.parameters())])
        model.zero_grad()
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_in_place_the_same_cache_is_rewritten(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    states, cache, bridged = run_bridge(model, inputs)
    with torch.no_grad():
        masks = inputs["sharer_attention_mask"], inputs["attention_mask"][:, :-1]
        assert model.bridge(states, cache, *masks, in_place=True) is cache
    for layer, expected in zip(cache.layers, bridged.layers, strict=True):
        assert torch.equal(layer.keys, expected.keys) and torch.equal(layer.values, expected.values)


def test_a_norm_of_states_far_from_zero():
    """The deviation is computed from sums, which lose digits where the mean is large against it."""
    states = (
        torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([[1.0], [100.0], [0.05]])
        + 5
    )
    for shifted in (states, states.bfloat16()):
        expected = (shifted.double().var(-1, correction=0) + 1e-5).rsqrt()
        torch.testing.assert_close(
            modeling_h2c_bridge.inverse_deviation(shifted).double(), expected, rtol=2e-3, atol=0
        )


@pytest.mark.parametrize("folded", [False, True])
def test_compiles_as_one_graph_for_any_length(folded):
    torch._dynamo.reset()
    model = random_pair(1)
    if folded:
        model.bridge.fold()
    compiled = torch.compile(model.bridge, fullgraph=True, dynamic=True, backend="eager")
    graphs = []
    for seed in range(2, 12):
        inputs = random_inputs(seed)
        states, cache, bridged = run_bridge(model, inputs)
        with torch.no_grad():
            got = compiled(states, cache, inputs["sharer_attention_mask"], inputs["attention_mask"][:, :-1])
        for layer, expected in zip(got.layers, bridged.layers, strict=True):
            torch.testing.assert_close(layer.keys, expected.keys)
            torch.testing.assert_close(layer.values, expected.values)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # A few at first, where sizes happen to be equal (as many prompts as heads, say), which torch takes for a
    # rule until it sees another.
    assert graphs[-6:] == graphs[-1:] * 6 and graphs[-1] - graphs[0] <= 3, (
        "another length needs no other graph"
    )
