"""The message form: the Sharer's tokens as cache positions. What it writes is compared with
`reference.plain_message` in the tests of forward, generate, conversations and prefixes, in which every third
random pair has this form."""

import copy

import pytest
import torch
from pairs import DICTIONARY, alone, join, random_inputs, random_pair, tiny_model
from reference import plain_message
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, TextStreamer

from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel, H2CForCausalLM
from h2c_hf.modeling.message_h2c import message_length, message_mask
from h2c_hf.several_sharers import H2CSeveralSharers


def message_pair(seed: int = 2, **overrides) -> H2CForCausalLM:
    return join(
        tiny_model("llama", seed), tiny_model("qwen2", seed + 1), seed, bridge_form="message", **overrides
    )


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_message_stands_before_the_receivers_own_cache(seed):
    model, inputs = random_pair(seed, "message"), random_inputs(seed)
    cache = model.bridged_cache(**inputs)
    own = model.prefill(inputs["input_ids"], inputs["attention_mask"])
    length = inputs["sharer_input_ids"].shape[1]
    assert message_length(cache) == length
    assert torch.equal(message_mask(cache), inputs["sharer_attention_mask"])
    for layer, before in zip(cache.layers, own.layers, strict=True):
        assert torch.equal(layer.keys[:, :, length:], before.keys)
        assert torch.equal(layer.values[:, :, length:], before.values)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_values_of_a_message_are_those_of_the_plain_formula(seed):
    model, inputs = random_pair(seed, "message"), alone(random_inputs(seed), 0)
    states = model.sharer(inputs["sharer_input_ids"], output_hidden_states=True).hidden_states
    cache, length = model.bridged_cache(**inputs), inputs["sharer_input_ids"].shape[1]
    for layer, (_, values) in zip(cache.layers, plain_message(model, states), strict=True):
        assert torch.allclose(layer.values[:, :, :length], values, atol=1e-4)


@torch.no_grad()
def test_masked_message_leaves_the_receivers_logits():
    model, inputs = message_pair(), alone(random_inputs(3), 0)
    states = model.read(inputs["sharer_input_ids"])
    shut = {
        "sharer_hidden_states": states,
        "sharer_attention_mask": torch.zeros_like(inputs["sharer_attention_mask"]),
    }
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.allclose(
        model(**prompt, **shut).logits[:, -1], model.receiver(**prompt).logits[:, -1], atol=1e-5
    )


@torch.no_grad()
def test_tokens_are_projected_once_for_all_groups(monkeypatch):
    model, inputs = message_pair(token_rank=5, token_hidden_size=9), random_inputs(4)
    monkeypatch.setattr("h2c_hf.modeling.modeling_h2c_bridge.GROUP_ELEMENTS", {"cpu": 1, "cuda": 1})
    calls = []
    model.bridge.message.token_proj.register_forward_hook(lambda *_: calls.append(1))
    first, second = model.bridged_cache(**inputs), model.bridged_cache(**inputs)
    assert len(calls) == 2  # one for each of the two caches
    assert first.message_tokens is None
    assert torch.equal(first.layers[-1].keys, second.layers[-1].keys)


@torch.no_grad()
def test_layers_in_groups_give_the_same_cache(monkeypatch):
    model, inputs = message_pair(token_rank=7), random_inputs(4)
    whole = model.bridged_cache(**inputs)
    monkeypatch.setattr("h2c_hf.modeling.modeling_h2c_bridge.GROUP_ELEMENTS", {"cpu": 1, "cuda": 1})
    assert len(model.bridge.groups(4, 11)) == len(whole.layers)
    for layer, expected in zip(model.bridged_cache(**inputs).layers, whole.layers, strict=True):
        assert torch.allclose(layer.keys, expected.keys, atol=1e-6)
        assert torch.allclose(layer.values, expected.values, atol=1e-6)


@torch.no_grad()
def test_static_cache_generates_the_same_tokens():
    model, inputs = message_pair(), random_inputs(5)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**inputs, **settings)
    assert torch.equal(
        model.generate(**inputs, **settings, cache_implementation="static", disable_compile=True), expected
    )


@torch.no_grad()
def test_assisted_decoding_generates_the_same_tokens():
    model, inputs = message_pair(), alone(random_inputs(6), 0)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**inputs, **settings)
    for assistant in (copy.deepcopy(model.receiver), tiny_model("qwen2", 9)):
        assert torch.equal(model.generate(**inputs, **settings, assistant_model=assistant), expected)


@torch.no_grad()
def test_repetition_penalty_and_streamer_see_no_message():
    """Stock processors and streamers get the prompt's ids: no placeholder is penalised or printed."""
    model, inputs = message_pair(), alone(random_inputs(7), 0)
    seen = []

    class Streamer(TextStreamer):
        def __init__(self):
            pass

        def put(self, value):
            seen.append(value.flatten().tolist())

        def end(self):
            pass

    ids = model.generate(
        **inputs,
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        repetition_penalty=1.3,
        streamer=Streamer(),
    )
    assert [token for part in seen for token in part] == ids[0].tolist()
    assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@torch.no_grad()
def test_message_takes_room_in_the_context_window():
    sharer, receiver = tiny_model("llama", 1), tiny_model("qwen2", 2, max_position_embeddings=20)
    model = join(sharer, receiver, bridge_form="message")
    prompt = torch.ones(1, 12, dtype=torch.long)
    model(prompt, sharer_input_ids=torch.ones(1, 8, dtype=torch.long))
    with pytest.raises(
        ValueError, match="is 21 tokens long with the Sharer's message; the context window of its model is 20"
    ):
        model(prompt, sharer_input_ids=torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="21 tokens long with the Sharer's message"):
        model.conversation().generate(prompt, torch.ones(1, 9, dtype=torch.long), max_new_tokens=1)


@torch.no_grad()
def test_message_and_prompt_must_fit_a_sliding_window():
    receiver = tiny_model(
        "gemma3",
        2,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        head_dim=8,
    )
    model = join(tiny_model("llama", 1), receiver, bridge_form="message")
    prompt = torch.randint(1, 60, (1, 9))
    inputs = {"input_ids": prompt, "sharer_input_ids": torch.randint(1, 60, (1, 7))}
    step = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert torch.allclose(step.logits[0], model(**inputs).logits[:, -1], atol=1e-5)
    with pytest.raises(ValueError, match="sliding window of 16"):
        model(prompt, sharer_input_ids=torch.randint(1, 60, (1, 8)))


@torch.no_grad()
def test_two_sharers_messages_stand_one_before_the_other():
    receiver = tiny_model("qwen2", 3)
    models = {
        name: join(tiny_model("llama", seed), receiver, seed, bridge_form="message")
        for name, seed in (("one", 1), ("two", 2))
    }
    several, inputs = H2CSeveralSharers(models), random_inputs(8)
    other = random_inputs(9, batch=len(inputs["input_ids"]))
    sharers = {
        "one": inputs,
        "two": {name: value for name, value in other.items() if name.startswith("sharer")},
    }
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    cache = several.bridged_cache(**prompt, sharers=sharers)
    lengths = [given["sharer_input_ids"].shape[1] for given in (inputs, sharers["two"])]
    assert message_length(cache) == sum(lengths)
    first = models["one"].bridged_cache(**inputs)
    assert torch.equal(cache.layers[1].keys[:, :, lengths[1] :], first.layers[1].keys)
    ids = several.generate(**prompt, sharers=sharers, max_new_tokens=3, do_sample=False, pad_token_id=0)
    logits = several(**prompt, sharers=sharers).logits
    assert torch.equal(ids[:, inputs["input_ids"].shape[1]], logits[:, -1].argmax(-1))


@pytest.mark.parametrize("kept", [set(), DICTIONARY], ids=["linear", "dictionary"])
def test_only_the_messages_parameters_get_gradients(kept):
    model, inputs = message_pair(token_rank=5, token_hidden_size=9 if kept else None), random_inputs(10)
    labels = torch.full_like(inputs["input_ids"], -100)
    target = torch.randint(1, 60, (len(labels), 3))
    ids = torch.cat([inputs["input_ids"], target], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(target)], 1)
    sharer = {name: inputs[name] for name in inputs if name.startswith("sharer")}
    model.train()
    losses = [
        model(
            input_ids=ids,
            attention_mask=mask,
            labels=torch.cat([labels, target], 1),
            skip_logits=skip,
            **sharer,
        ).loss
        for skip in (False, True)
    ]
    assert torch.allclose(*losses, atol=1e-5)
    losses[0].backward()
    moved = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert moved == {name for name, _ in model.named_parameters() if name.startswith("bridge.")} - {
        f"bridge.{name}" for name in kept
    }


@pytest.mark.filterwarnings("ignore:The bridge's config names no")
def test_dictionary_stays_frozen(tmp_path):
    """In a loaded bridge, and after a switch of all parameters."""
    model = message_pair(token_rank=5, token_hidden_size=9)
    model.save_pretrained(tmp_path)
    for bridge in (
        H2CBridgeModel.from_pretrained(tmp_path),
        model.bridge.requires_grad_(False).requires_grad_(True),
    ):
        assert {
            name for name, parameter in bridge.named_parameters() if not parameter.requires_grad
        } == DICTIONARY


@torch.no_grad()
def test_message_bridge_survives_saving(tmp_path):
    sharer, receiver = tiny_model("llama", 1), tiny_model("qwen2", 2)
    model = join(sharer, receiver, bridge_form="message", token_rank=6)
    inputs = random_inputs(11)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=True, sharer=sharer, receiver=receiver
    )
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_gpt2_has_no_rotation_and_takes_a_message():
    torch.manual_seed(0)
    receiver = GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    ).eval()
    model = H2CForCausalLM.from_pair(tiny_model("llama", 1), receiver, bridge_form="message")
    assert model.config.receiver_rope_parameters is None
    assert model.bridge.frequencies(0) is None
    inputs = random_inputs(12)
    batch = model(**inputs).logits
    for row in range(len(batch)):
        assert torch.allclose(model(**alone(inputs, row)).logits[0], batch[row], atol=1e-4)


def test_parameters_of_the_reference_pair():
    shapes = {
        "sharer_hidden_size": 4096,
        "sharer_num_hidden_layers": 32,
        "receiver_num_hidden_layers": 24,
        "receiver_head_dim": 64,
    }
    config = H2CBridgeConfig(bridge_form="message", token_rank=256, receiver_num_key_value_heads=2, **shapes)
    with torch.device("meta"):
        assert H2CBridgeModel(config).num_parameters() < 30_000_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_rank": None}, "token_rank is None; expected both"),
        ({"token_rank": 49}, "token_rank is 49; .* Receiver, 48"),
    ],
)
def test_dictionary_of_an_impossible_width_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        H2CBridgeConfig(
            bridge_form="message", token_hidden_size=8, hidden_size=48, num_attention_heads=1, **fields
        )


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="bridge_form is 'append'; expected one of rewrite, message"):
        H2CBridgeConfig(bridge_form="append")
