"""What a bridge may have that the published one has not. Against the plain form, in batches, with padding and
in every mode: see the pairs of odd seeds in the other tests (`pairs.random_pair`)."""

import json

import pytest
import torch
from pairs import join, random_inputs, random_pair, tiny_model
from transformers import LlamaConfig, Qwen2Config

from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel, H2CForCausalLM


OPTIONS = {
    "recency_bias": True,
    "start_shut": True,
    "update_scale": 4.0,
    "sharer_rank": 6,
    "num_attention_heads": 4,
}
LLAMA = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
QWEN = Qwen2Config(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)


def test_published_is_the_original_projects_form_and_takes_overrides():
    config = H2CBridgeConfig.published(dropout=0.0)
    assert (config.num_attention_heads, config.ffn_multiplier, config.gate_init, config.layer_alignment) == (
        16,
        4,
        1.0,
        "top_down",
    )
    assert (
        config.recency_bias,
        config.start_shut,
        config.update_scale,
        config.sharer_rank,
        config.dropout,
    ) == (False, False, 1, None, 0)
    with torch.device("meta"):
        assert H2CBridgeModel(H2CBridgeConfig.published(LLAMA, QWEN)).num_parameters() == 58_669_104
    with pytest.raises(ValueError, match="does not divide"):
        H2CBridgeConfig.published(LLAMA, QWEN, num_attention_heads=3)


def test_a_new_bridge_for_the_reference_pair_has_fewer_than_30_million_parameters():
    assert H2CBridgeConfig.from_pair(LLAMA, QWEN).bridge_form == "message"
    config = H2CBridgeConfig.from_pair(LLAMA, QWEN, bridge_form="rewrite")
    assert (config.num_attention_heads, config.recency_bias, config.sharer_rank, config.dropout) == (
        8,
        True,
        128,
        0.1,
    )
    with torch.device("meta"):
        assert H2CBridgeModel(config).num_parameters() < 30_000_000
        assert H2CBridgeModel(H2CBridgeConfig.from_pair(LLAMA, QWEN)).num_parameters() < 30_000_000
    other = H2CBridgeConfig.from_pair(
        LLAMA, QWEN, bridge_form="rewrite", recency_bias=False, sharer_rank=None, num_attention_heads=16
    )
    assert other.to_diff_dict() == H2CBridgeConfig.published(LLAMA, QWEN).to_diff_dict()


def test_a_config_of_before_there_were_options_is_the_published_form(tmp_path):
    config = H2CBridgeConfig.published(LLAMA, QWEN)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for name in ("recency_bias", "start_shut", "update_scale", "sharer_rank"):
        del values[name]
    path.write_text(json.dumps(values))
    assert H2CBridgeConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_shut_start_is_the_receiver_to_the_bit(seed):
    joined, inputs = random_pair(seed), random_inputs(seed)
    config = H2CBridgeConfig.published(
        joined.sharer.config, joined.receiver.config, **{**OPTIONS, "num_attention_heads": 1}
    )
    model = H2CForCausalLM(config, joined.sharer, joined.receiver).eval()
    assert torch.equal(
        model(**inputs).logits,
        model(**inputs, cache=model.prefill(inputs["input_ids"], inputs["attention_mask"])).logits,
    )
    torch.nn.init.normal_(model.bridge.ffn_out.weight)
    other = model(**inputs, cache=model.prefill(inputs["input_ids"], inputs["attention_mask"])).logits
    assert not torch.equal(model(**inputs).logits, other)


def test_a_shut_start_learns():
    model, inputs = join(tiny_model("llama"), tiny_model("qwen2", 1), **OPTIONS), random_inputs(0)
    bridge = H2CBridgeModel(model.config)
    states, cache = model.read(inputs["sharer_input_ids"]), model.prefill(inputs["input_ids"])
    sum(layer.keys.sum() + layer.values.square().sum() for layer in bridge(states, cache).layers).backward()
    assert bridge.ffn_out.weight.grad.abs().amax((1, 2)).min() > 0


def test_what_is_scaled_and_folded_adds_the_same():
    model, inputs = join(tiny_model("llama"), tiny_model("qwen2", 1), **OPTIONS), random_inputs(0)
    with torch.no_grad():
        before = model(**inputs).logits
        model.bridge.fold()
        torch.testing.assert_close(model(**inputs).logits, before, atol=1e-4, rtol=1e-4)


def test_options_are_saved_and_loaded(tmp_path):
    model, inputs = join(tiny_model("llama"), tiny_model("qwen2", 1), **OPTIONS), random_inputs(0)
    model.save_pretrained(tmp_path)
    again = H2CForCausalLM.from_pretrained(tmp_path, sharer=model.sharer, receiver=model.receiver)
    assert {name: getattr(again.config, name) for name in OPTIONS} == OPTIONS
    kwargs = {**inputs, "max_new_tokens": 5, "do_sample": False, "num_beams": 2}
    assert torch.equal(again.generate(**kwargs), model.generate(**kwargs))


def test_a_shared_projection_of_the_receivers_width_spares_more_than_half_of_the_reference_bridge():
    with torch.device("meta"):
        bridge = H2CBridgeModel(H2CBridgeConfig.published(LLAMA, QWEN, sharer_rank=128))
    assert bridge.num_parameters() == 24 * (4096 * (2 + 128) + 128) + 48 * 198_273 == 22_299_696
