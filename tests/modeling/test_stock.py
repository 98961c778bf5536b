"""What someone who knows transformers expects of any model: its arguments, methods and settings."""

import copy
import pickle

import pytest
import torch
from pairs import alone, join, random_inputs, random_pair, tiny_model
from transformers import (
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    StaticCache,
    WatermarkDetector,
    WatermarkingConfig,
)

from h2c_hf.modeling import H2CBridgeModel, H2CForCausalLM
from h2c_hf.several_sharers import H2CSeveralSharers


GREEDY = {"max_new_tokens": 5, "do_sample": False}
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def prompt(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 61, (1, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "sharer_input_ids": ids[:, :6]}


# Rotary embeddings that change with the length, and Receivers that drop their cache there


def phi(longrope: bool, model_class=Phi3ForCausalLM, config_class=Phi3Config):
    torch.manual_seed(3)
    rope = {"rope_type": "default", "rope_theta": 1e4}
    if longrope:
        rope |= {
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 8, "short_mscale": 1.0, "long_mscale": 1.0,
        }  # fmt: skip
    more = {"num_local_experts": 2} if model_class is PhimoeForCausalLM else {}
    config = config_class(
        **SIZES, **more, max_position_embeddings=64, original_max_position_embeddings=8, rope_parameters=rope
    )
    return join(tiny_model("llama", 1), model_class(config).eval())


@pytest.mark.parametrize("classes", [(Phi3ForCausalLM, Phi3Config), (PhimoeForCausalLM, PhimoeConfig)])
def test_a_receiver_that_drops_its_cache_keeps_the_bridged_one(classes):
    model = phi(False, *classes)
    inputs = prompt(6)
    output = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    labels = output.sequences.clone()
    labels[:, :6] = -100
    with torch.no_grad():
        logits = model(output.sequences, sharer_input_ids=inputs["sharer_input_ids"], labels=labels).logits[
            0, :-1
        ]
    # From position 8 on, the Receiver alone before.
    assert torch.allclose(torch.cat(output.logits), logits, atol=1e-4)
    with model.disable_bridge():  # alone, it does as it does
        assert torch.equal(
            model.generate(inputs["input_ids"], **GREEDY),
            model.receiver.generate(inputs["input_ids"], **GREEDY),
        )


@pytest.mark.parametrize("classes", [(Phi3ForCausalLM, Phi3Config), (PhimoeForCausalLM, PhimoeConfig)])
def test_a_text_that_crosses_the_longrope_limit_is_refused(classes):
    model = phi(True, *classes)
    message = "crosses 8, where Phi.*ForCausalLM changes its rotary embedding"
    for inputs, more in ((prompt(6), 5), (prompt(9), 1)):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, max_new_tokens=more)
    with pytest.raises(ValueError, match=message):
        model(**prompt(9))
    labels = prompt(12)["input_ids"].clone()
    labels[:, :6] = -100
    with pytest.raises(ValueError, match=message):
        model(**prompt(12), labels=labels)
    for inputs in (prompt(4), prompt(12)):  # on one side of it
        output = model.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
        with torch.no_grad():
            assert torch.allclose(output.logits[0], model(**inputs).logits[:, -1], atol=1e-4)


# Two names for one argument


def test_a_cache_under_both_names_is_refused():
    model, inputs = random_pair(0), alone(random_inputs(0), 0)
    cache = model.bridged_cache(**inputs)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="Got cache and past_key_values; expected one"):
            call(**receiver, cache=cache, past_key_values=cache)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "sharer_hidden_states"])
def test_wrappers_refuse_a_cache_under_either_name(name):
    model, inputs = random_pair(0), alone(random_inputs(0), 0)
    given = {name: model.bridged_cache(**inputs)}
    sharer = {key: value for key, value in inputs.items() if key.startswith("sharer_")}
    several, ids = H2CSeveralSharers({"a": model}), inputs["input_ids"]
    prefix = {key: value[:, :1] for key, value in inputs.items() if key.endswith("input_ids")}
    for call in (
        lambda: several(ids, sharers={"a": sharer}, **given),
        lambda: several.generate(ids, sharers={"a": sharer}, **given),
        lambda: model.conversation().generate(ids, inputs["sharer_input_ids"], **given),
        lambda: model.prefix_cache().generate(prefix, ids, inputs["sharer_input_ids"], **given),
    ):
        with pytest.raises(ValueError, match=f"{name} is given; expected none"):
            call()


@pytest.mark.parametrize("form", ["rewrite", "message"])
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_an_empty_cache_is_filled_with_the_bridged_one(form, name):
    """Not by the Receiver alone, as if the Sharer had not been given."""
    model, inputs = random_pair(0, form), random_inputs(0)
    cache = DynamicCache(config=model.receiver.config)
    with torch.no_grad():
        outputs = model(**inputs, **{name: cache})
        assert torch.equal(outputs.logits, model(**inputs).logits)
    assert outputs.past_key_values is cache
    for more in ({}, {"sharer_max_new_tokens": 2}):
        filled = model.generate(**inputs, **GREEDY, **more, **{name: DynamicCache()})
        assert torch.equal(filled, model.generate(**inputs, **GREEDY, **more))
    with pytest.raises(ValueError, match="sharer_input_ids is missing"):
        model.generate(inputs["input_ids"], inputs["attention_mask"], **{name: DynamicCache()})
    with pytest.raises(ValueError, match="has a StaticLayer; a bridge rewrites a DynamicCache"):
        model.generate(
            **inputs, **GREEDY, **{name: StaticCache(config=model.receiver.config, max_cache_len=64)}
        )


# Settings and methods


def test_a_receivers_own_kind_of_cache_is_passed_over_as_stock_does():
    receiver = tiny_model("gemma2", 2)
    receiver.generation_config.cache_implementation = "hybrid"
    model, inputs = join(tiny_model("llama", 1), receiver), random_inputs(0)
    assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 5
    with pytest.raises(ValueError, match="cache_implementation is 'hybrid'"):
        model.generate(**inputs, **GREEDY, cache_implementation="hybrid")


def test_the_config_answers_as_the_receivers(tmp_path):
    model = random_pair(0)
    receiver = model.receiver.config
    model.save_pretrained(tmp_path)
    for config in (
        model.config,
        model.config.get_text_config(),
        H2CBridgeModel.from_pretrained(tmp_path).config,
    ):
        for name in (
            "vocab_size",
            "num_hidden_layers",
            "hidden_size",
            "max_position_embeddings",
            "eos_token_id",
            "pad_token_id",
        ):
            assert getattr(config, name) == getattr(receiver, name)


def test_transition_scores_are_the_receivers():
    model, inputs = random_pair(0), random_inputs(0)
    output = model.generate(**inputs, **GREEDY, output_scores=True, return_dict_in_generate=True)
    scores = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    assert torch.equal(
        scores,
        model.receiver.compute_transition_scores(output.sequences, output.scores, normalize_logits=True),
    )


def test_a_watermark_is_detected_with_the_models_config():
    model, inputs = join(tiny_model("llama", 1), tiny_model("qwen2", 2, bos_token_id=1)), random_inputs(0)
    watermark = WatermarkingConfig(bias=20.0, seeding_scheme="lefthash")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False, watermarking_config=watermark)
    new = output[:, inputs["input_ids"].shape[1] :]
    assert WatermarkDetector(model.config, "cpu", watermark)(new).all()


def test_embeddings_cannot_be_resized_and_stay_as_they_are():
    model = random_pair(0)
    assert (
        model.resize_token_embeddings()
        is model.resize_token_embeddings(61)
        is model.receiver.get_input_embeddings()
    )
    for arguments in ({"new_num_tokens": 70}, {"pad_to_multiple_of": 64}):
        with pytest.raises(
            ValueError, match="the Receiver's embeddings have 61; a base model is not saved with the bridge"
        ):
            model.resize_token_embeddings(**arguments)
    assert model.receiver.get_input_embeddings().weight.shape[0] == model.receiver.config.vocab_size == 61


def test_continuous_batching_is_refused_in_a_sentence():
    with pytest.raises(
        NotImplementedError,
        match="Continuous batching fills a paged cache, and a bridge rewrites a DynamicCache",
    ):
        random_pair(0).generate_batch([[1, 2, 3]])


def test_the_decoder_is_the_receivers():
    model = random_pair(0)
    assert model.get_decoder() is model.receiver.model


def test_set_embeddings_are_the_receivers():
    model = random_pair(0)
    embeddings, head = torch.nn.Embedding(61, 8), torch.nn.Linear(8, 61)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is model.receiver.get_input_embeddings() is embeddings
    assert model.get_output_embeddings() is model.receiver.get_output_embeddings() is head


@pytest.mark.parametrize("name", ["inputs_embeds", "position_ids"])
def test_what_the_model_makes_itself_is_refused(name):
    model, inputs = random_pair(0), random_inputs(0)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=f"{name} is given; expected"):
            call(**inputs, **{name: torch.zeros(1)})
    with pytest.raises(ValueError, match="input_ids is missing: got None"):
        model(sharer_input_ids=inputs["sharer_input_ids"])


def test_what_is_no_tensor_is_named():
    """Stock has generation config, logits processors and stopping criteria in places after the prompt."""
    model, inputs = random_pair(0), random_inputs(0)
    ids, sharer_ids = inputs["input_ids"], inputs["sharer_input_ids"]
    for arguments, name in (
        ((inputs,), "input_ids is a dict"),
        (
            (ids, GenerationConfig(**GREEDY), LogitsProcessorList()),
            "sharer_input_ids is a LogitsProcessorList",
        ),
        ((ids.tolist(), None, sharer_ids), "input_ids is a list"),
    ):
        with pytest.raises(ValueError, match=f"{name}; expected a tensor"):
            model.generate(*arguments)
    single, several = alone(inputs, 0), H2CSeveralSharers({"a": model})
    with pytest.raises(ValueError, match="sharer_input_ids is a GenerationConfig; expected a tensor"):
        model.conversation().generate(single["input_ids"], GenerationConfig(**GREEDY))
    with pytest.raises(ValueError, match="input_ids is missing: got None"):
        several.generate(None)
    assert torch.equal(several.generate(ids, GenerationConfig(**GREEDY)), several.generate(ids, **GREEDY))


def test_a_generation_config_in_the_second_place():
    model, inputs = random_pair(0), alone(random_inputs(0), 0)
    ids, sharer_ids = inputs["input_ids"], inputs["sharer_input_ids"]
    config = GenerationConfig(**GREEDY)
    assert torch.equal(
        model.generate(ids, config, sharer_input_ids=sharer_ids), model.generate(**inputs, **GREEDY)
    )
    with pytest.raises(ValueError, match="Got two generation configs"):
        model.generate(ids, config, sharer_input_ids=sharer_ids, generation_config=config)


def test_hidden_states_as_the_config_asks():
    model, inputs = random_pair(0), random_inputs(0)
    model.config.output_hidden_states = True
    with torch.no_grad():
        outputs = model(**inputs)
    assert len(outputs.hidden_states) == model.receiver.config.num_hidden_layers + 1


def test_attention_implementations_by_model(tmp_path):
    model, inputs = join(tiny_model("llama", 1), tiny_model("qwen2", 2)), random_inputs(0)
    for role in ("sharer", "receiver"):
        getattr(model, role).save_pretrained(tmp_path / role)
        setattr(model.config, f"{role}_model_id", str(tmp_path / role))
    model.save_pretrained(tmp_path / "bridge")
    loaded = H2CForCausalLM.from_pretrained(tmp_path / "bridge", attn_implementation={"sharer": "eager"})
    assert (loaded.sharer.config._attn_implementation, loaded.receiver.config._attn_implementation) == (
        "eager",
        "sdpa",
    )
    loaded.set_attn_implementation({"receiver": "eager"})
    assert (loaded.sharer.config._attn_implementation, loaded.receiver.config._attn_implementation) == (
        "eager",
        "eager",
    )
    loaded.set_attn_implementation("sdpa")
    assert (loaded.sharer.config._attn_implementation, loaded.receiver.config._attn_implementation) == (
        "sdpa",
        "sdpa",
    )
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-4)
    with pytest.raises(
        ValueError, match="Got a setting for vision; expected one for sharer, receiver or both"
    ):
        loaded.set_attn_implementation({"vision": "sdpa"})
    given = H2CForCausalLM.from_pretrained(
        tmp_path / "bridge", receiver=loaded.receiver, attn_implementation="eager"
    )
    for part in (given, given.sharer, given.receiver):
        assert part.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "arguments",
    [{"sharer_kwargs": {"dtype": "auto"}}, {"sharer_quantization_config": object()}, {"device_map": "auto"}],
)
def test_arguments_to_load_a_model_that_is_loaded_are_refused(tmp_path, arguments):
    model = random_pair(0)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected either\.|and both base models are loaded already; expected None"
    ):
        H2CForCausalLM.from_pretrained(tmp_path, sharer=model.sharer, receiver=model.receiver, **arguments)


def test_a_state_of_the_batch_before_is_not_taken_over():
    """Qwen2-VL keeps `rope_deltas`, one a row."""
    torch.manual_seed(3)
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**SIZES, "max_position_embeddings": 64, "rope_parameters": rope}
    receiver = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).eval()
    model = join(tiny_model("llama", 1), receiver)
    for inputs in (random_inputs(0, 2), alone(random_inputs(1, 2), 0), random_inputs(2, 3)):
        output = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        with torch.no_grad():
            assert torch.allclose(output.logits[0], model(**inputs).logits[:, -1], atol=1e-4)


def test_assisted_hidden_states_are_one_position_for_each_token():
    model = join(tiny_model("llama", 1), tiny_model("qwen2", 2))
    inputs = alone(random_inputs(0), 0)
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_hidden_states": True,
    }
    plain = model.generate(**inputs, **options)
    # The assistant says the same as the bridged model for a while, then not.
    assistant = copy.deepcopy(model.receiver)
    assisted = model.generate(**inputs, **options, assistant_model=assistant)
    assert torch.equal(assisted.sequences, plain.sequences)
    for got, expected in zip(assisted.hidden_states, plain.hidden_states, strict=False):
        for layer, expected_layer in zip(got, expected, strict=True):
            assert torch.allclose(layer, expected_layer, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_is_pickled_after_it_generated(family):
    """GPT-2 is not built as most are: its own forward, which installs hooks, returns hidden states."""
    torch.manual_seed(1)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    model = join(tiny_model("llama", 1) if family == "llama" else gpt2, tiny_model("qwen2", 2))
    inputs = random_inputs(0)
    output = model.generate(**inputs, **GREEDY)
    model.generate(**inputs, **GREEDY, sharer_max_new_tokens=2)
    assert torch.equal(pickle.loads(pickle.dumps(model)).generate(**inputs, **GREEDY), output)


def test_the_gate_stays_in_fp32_from_a_config():
    pair = random_pair(0)
    model = H2CBridgeModel._from_config(pair.config, dtype=torch.bfloat16)
    assert (model.gate.dtype, model.q_proj.weight.dtype) == (torch.float32, torch.bfloat16)
    # "gate" would be in the base models' "gate_proj" too.
    assert pair._keep_in_fp32_modules_strict == {"bridge.gate"}
    assert not random_pair(0, "message")._keep_in_fp32_modules_strict


def test_a_bridge_from_a_state_dict():
    bridge = random_pair(0).bridge
    loaded = H2CBridgeModel.from_pretrained(None, config=bridge.config, state_dict=bridge.state_dict())
    assert all(torch.equal(tensor, bridge.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    pair = H2CForCausalLM.from_pretrained(
        None,
        config=bridge.config,
        state_dict=bridge.state_dict(),
        sharer=random_pair(0).sharer,
        receiver=random_pair(0).receiver,
    )
    with torch.no_grad():
        assert torch.equal(pair(**random_inputs(0)).logits, random_pair(0)(**random_inputs(0)).logits)
