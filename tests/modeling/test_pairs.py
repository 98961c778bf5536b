import json

import pytest
import torch
from pairs import alone, join, random_inputs, random_pair, tiny_model
from reference import plain_decode, plain_logits
from torch import nn
from transformers import BitsAndBytesConfig, DynamicCache

from h2c_hf.modeling import H2CForCausalLM


PAIRS = {
    "llama_to_qwen2": (("llama", {}), ("qwen2", {})),
    "llama_to_llama": (("llama", {}), ("llama", {"num_hidden_layers": 2, "hidden_size": 24, "head_dim": 6})),
    "qwen2_to_gemma2": (("qwen2", {}), ("gemma2", {"head_dim": 24})),
    "qwen2_to_gemma3": (("qwen2", {}), ("gemma3", {"head_dim": 20, "num_key_value_heads": 1})),
    "shallow_sharer": (("llama", {"num_hidden_layers": 1}), ("qwen2", {"num_hidden_layers": 4})),
    "deep_sharer": (("qwen2", {"num_hidden_layers": 6}), ("llama", {"num_hidden_layers": 2})),
    "sliding_window": (("llama", {}), ("mistral", {"sliding_window": 16})),
    "sliding_and_full": (("llama", {}), ("gemma2", {"sliding_window": 16, "head_dim": 8})),
    "sliding_sharer": (("mistral", {"sliding_window": 4}), ("llama", {})),
}


@pytest.mark.parametrize("name", PAIRS)
def test_families(name):
    (sharer, sharer_config), (receiver, receiver_config) = PAIRS[name]
    model = join(tiny_model(sharer, 1, **sharer_config), tiny_model(receiver, 2, **receiver_config))
    inputs = random_inputs(3)
    # 12 tokens: with the prompt more than the sliding window, which bounds the prompt and not the text.
    new = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for row in range(len(new)):
        single = alone(inputs, row)
        plain = single["input_ids"], single["sharer_input_ids"]
        assert torch.equal(new[row], plain_decode(model, *plain, 12))
        with torch.no_grad():
            torch.testing.assert_close(
                model(**single).logits[0], plain_logits(model, *plain, []), atol=1e-4, rtol=1e-5
            )


def test_a_prompt_that_just_fits_into_the_sliding_window():
    inputs = random_inputs(3)
    length = inputs["input_ids"].shape[1]
    model = join(tiny_model("llama", 1), tiny_model("mistral", 2, sliding_window=length))
    wide = join(model.sharer, tiny_model("mistral", 2, sliding_window=None))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, wide(**inputs).logits)


def test_the_shape_of_the_receivers_cache_is_read_from_its_config():
    config = join(
        tiny_model("qwen2", num_hidden_layers=5), tiny_model("gemma3", head_dim=20, num_key_value_heads=1)
    ).config
    assert (config.sharer_hidden_size, config.sharer_num_hidden_layers) == (32, 5)
    assert (
        config.receiver_num_hidden_layers,
        config.receiver_num_key_value_heads,
        config.receiver_head_dim,
    ) == (3, 1, 20)


@pytest.mark.parametrize(
    "sharer, bridge, receiver",
    [
        ("bfloat16", "float32", "float32"),
        ("float32", "float32", "bfloat16"),
        ("bfloat16", "bfloat16", "float32"),
    ],
)
def test_dtypes(sharer, bridge, receiver):
    sharer, bridge, receiver = (getattr(torch, name) for name in (sharer, bridge, receiver))
    model, inputs = random_pair(0), random_inputs(0)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.sharer.to(sharer), model.bridge.to(bridge), model.receiver.to(receiver)
        outputs = model(**inputs)
    assert outputs.logits.dtype == receiver
    assert {layer.keys.dtype for layer in outputs.past_key_values.layers} == {receiver}
    assert nn.functional.cosine_similarity(outputs.logits.float(), expected, -1).min() > 0.95
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    model.train()(**inputs).logits.sum().backward()
    assert model.bridge.q_proj.weight.grad.dtype == bridge


def test_the_saved_dtype_is_the_bridges_and_not_the_sharers(tmp_path):
    model = H2CForCausalLM.from_pair(tiny_model("llama").bfloat16(), tiny_model("qwen2").half())
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_the_two_models_come_through_assembly_untouched():
    sharer, receiver = tiny_model("llama", 1), tiny_model("qwen2", 2)
    # Not one that transformers made, nor one that it knows as initialised.
    receiver.lm_head = nn.Linear(32, 61)
    before = {
        (i, name): tensor.clone()
        for i, model in enumerate((sharer, receiver))
        for name, tensor in model.state_dict().items()
    }
    model = join(sharer, receiver)
    assert model.sharer is sharer and model.receiver is receiver
    for i, part in enumerate((model.sharer, model.receiver)):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, before[i, name]), name


def test_train_reaches_the_bridge_alone():
    model = random_pair(0).train()
    assert model.training and model.bridge.training
    assert not any(module.training for part in (model.sharer, model.receiver) for module in part.modules())
    assert not any(module.training for module in model.eval().modules())


def test_from_a_bridged_cache_the_receiver_answers_in_eval_mode_too():
    model = join(tiny_model("llama", 1), tiny_model("qwen2", 2, attention_dropout=0.5))
    inputs = random_inputs(0)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    answers = []
    for _ in range(2):
        with torch.no_grad():
            caches = [model.bridged_cache(**inputs) for _ in range(2)]
            model.receiver.train()
            logits = model(**receiver, past_key_values=caches[0]).logits
            model.receiver.train()
            answers.append(
                (
                    logits,
                    model.generate(**receiver, past_key_values=caches[1], max_new_tokens=8, do_sample=False),
                )
            )
    assert all(torch.equal(first, second) for first, second in zip(*answers, strict=True))


@pytest.mark.parametrize("part", ["", "receiver", "sharer", "bridge"])
def test_sharer_and_receiver_stay_frozen_and_in_eval_mode(part):
    dropping = {"attention_dropout": 0.5}
    model = join(tiny_model("llama", 1, **dropping), tiny_model("qwen2", 2, **dropping), dropout=0.0)
    inputs = random_inputs(0)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.get_submodule(part).train()
        assert torch.equal(model(**inputs).logits, expected)
        model.get_submodule(part).train()
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert not model.sharer.training and not model.receiver.training
    assert not any(module.training for part in (model.sharer, model.receiver) for module in part.modules())
    assert torch.equal(tokens, model.eval().generate(**inputs, max_new_tokens=4, do_sample=False))
    assert {
        name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad
    } == {"bridge"}


def test_on_the_meta_device():
    with torch.device("meta"):
        model = H2CForCausalLM.from_pair(tiny_model("llama"), tiny_model("qwen2"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    states = tuple(torch.empty(2, 5, 32, device="meta") for _ in range(4))
    cache = DynamicCache()
    for layer in range(3):
        cache.update(torch.empty(2, 2, 6, 8, device="meta"), torch.empty(2, 2, 6, 8, device="meta"), layer)
    assert model.bridge(states, cache).layers[0].keys.shape == (2, 2, 5 + 6, 8)  # the message stands first


def test_a_sharer_in_nf4_through_bitsandbytes(tmp_path):
    sharer, receiver = tiny_model("llama", 1, hidden_size=64, intermediate_size=64), tiny_model("qwen2", 2)
    sharer.save_pretrained(tmp_path / "sharer")
    join(sharer, receiver).save_pretrained(tmp_path / "bridge")
    model = H2CForCausalLM.from_pretrained(
        tmp_path / "bridge", sharer=str(tmp_path / "sharer"), receiver=receiver,
        sharer_quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )  # fmt: skip
    assert type(model.sharer.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert model.sharer.config.quantization_config.bnb_4bit_quant_type == "nf4"
    assert model.dtype == torch.float32

    inputs = random_inputs(0)
    new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    single = alone(inputs, 0)
    assert torch.equal(new[0], plain_decode(model, single["input_ids"], single["sharer_input_ids"], 4))

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1
    )
    targets = torch.full((len(inputs["input_ids"]), 1), 5)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), targets], 1)
    whole = {"input_ids": torch.cat([inputs["input_ids"], targets], 1)}
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(targets)], 1)
    model(**{**inputs, **whole}, labels=labels).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("bridge.")}

    model.save_pretrained(tmp_path / "again")
    loaded = H2CForCausalLM.from_pretrained(tmp_path / "again", sharer=model.sharer, receiver=receiver)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)


@pytest.mark.gpu
@pytest.mark.parametrize("sharer, receiver", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
@torch.no_grad()
def test_devices(sharer, receiver):
    model, inputs = random_pair(0), random_inputs(0)
    expected, tokens = model(**inputs).logits, model.generate(**inputs, max_new_tokens=4, do_sample=False)
    model = H2CForCausalLM.from_pair(model.sharer.to(sharer), model.receiver.to(receiver), model.bridge)
    assert model.device.type == model.bridge.device.type == receiver
    outputs = model(**inputs)
    assert outputs.logits.device.type == receiver
    torch.testing.assert_close(outputs.logits.cpu(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False).cpu(), tokens)
    placed = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    assert torch.equal(model.generate(**placed, max_new_tokens=4, do_sample=False).cpu(), tokens)
