import re
import warnings

import pytest
import torch
from pairs import alone, join, random_inputs, random_pair, tiny_model
from transformers import BitsAndBytesConfig

from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel, H2CForCausalLM


def no_compute(model):
    """The model, failing where a part of it runs: bad input is refused before that."""

    def ran(*args, **kwargs):
        raise AssertionError("a model ran before the input was refused")

    for part in (
        model.sharer,
        model.sharer.base_model,
        model.receiver,
        model.receiver.base_model,
        model.bridge,
    ):
        part.register_forward_pre_hook(ran)
    return model


def pair(**config):
    return join(
        tiny_model("llama", 1, max_position_embeddings=12),
        tiny_model("qwen2", 2, max_position_embeddings=10, **config),
    )


def prompts(length=5, sharer_length=6, batch=2):
    inputs = {}
    for prefix, n in (("", length), ("sharer_", sharer_length)):
        inputs[f"{prefix}input_ids"] = torch.full((batch, n), 7)
        inputs[f"{prefix}attention_mask"] = torch.ones(batch, n, dtype=torch.long)
    return inputs


def right_padded(name):
    inputs = prompts()
    inputs[name][0, -1] = 0
    return inputs


def with_empty_row(name):
    inputs = prompts()
    inputs[name][1] = 0
    return inputs


def without(*names):
    return {name: value for name, value in prompts().items() if name not in names}


EMPTY = "prompt in {}input_ids is empty or too short: got {} tokens, expected at least {} token"
FEWER = {name: value[:1] for name, value in prompts().items() if name.startswith("sharer")}
BAD_PROMPTS = {
    "no_sharer_inputs": (without("sharer_input_ids", "sharer_attention_mask"),
        "sharer_input_ids is missing: got None, expected .*pipeline_class=H2CTextGenerationPipeline"),
    "right_padded": (right_padded("attention_mask"),
        "^input_ids is padded on the right; expected padding on the left"),
    "sharer_right_padded": (right_padded("sharer_attention_mask"),
        "sharer_input_ids is padded on the right; expected padding on"),
    "empty": (prompts(length=0), EMPTY.format("", 0, 2)),
    "kickstart_alone": (prompts(length=1), EMPTY.format("", 1, 2)),
    "sharer_empty": (prompts(sharer_length=0), EMPTY.format("sharer_", 0, 1)),
    "empty_row": (with_empty_row("attention_mask"), EMPTY.format("", 0, 2)),
    "sharer_empty_row": (with_empty_row("sharer_attention_mask"), EMPTY.format("sharer_", 0, 1)),
    "too_long": (prompts(length=11),
        "prompt in input_ids is 11 tokens long; the context window of its model is 10"),
    "sharer_too_long": (prompts(sharer_length=13),
        "sharer_input_ids is 13 tokens long; the context window of its model is 12"),
    "other_batch": ({**prompts(), **FEWER}, "got 1 prompts and the Receiver 2"),
    "mask_shape": ({**prompts(), "attention_mask": torch.ones(2, 4)},
        r"has shape \(2, 4\); expected that of input_ids, \(2, 5"),
    "one_dimension": ({**prompts(), "input_ids": torch.ones(5).long()},
        r"input_ids has shape \(5,\); expected \(batch, length\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PROMPTS)
@pytest.mark.parametrize("method", ["forward", "generate"])
def test_bad_prompts(name, method):
    inputs, message = BAD_PROMPTS[name]
    model = no_compute(pair())
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(**inputs)


def test_the_longest_prompts_that_fit_are_taken():
    inputs = prompts(length=10, sharer_length=12)
    assert pair()(**inputs).logits.shape == (2, 1, 61)
    inputs = prompts(length=14)  # padding does not count against the context window
    inputs["attention_mask"][:, :5] = 0
    assert pair()(**inputs).logits.isfinite().all()


def test_a_prompt_longer_than_a_sliding_window():
    model = join(tiny_model("llama", 1), tiny_model("mistral", 2, sliding_window=4))
    with pytest.raises(
        ValueError, match="5 tokens long, padding included; the Receiver has a sliding window of 4"
    ):
        no_compute(model)(**prompts())


def test_a_prefilled_cache_that_kept_a_window_only():
    model = join(tiny_model("llama", 1), tiny_model("mistral", 2, sliding_window=3))
    cache = model.prefill(prompts(length=6)["input_ids"])
    states = model.read(prompts()["sharer_input_ids"])
    with pytest.raises(ValueError, match="layer 0 has a sliding window and kept 2 of 5 positions"):
        model.bridge(states, cache)


def test_generate_without_a_prompt():
    with pytest.raises(ValueError, match="input_ids is missing: got None, expected the Receiver's prompt"):
        pair().generate(sharer_input_ids=prompts()["sharer_input_ids"])


@pytest.mark.parametrize(
    "labels, message",
    [
        (
            [[-100, -100, -100, 4, 5], [-100, -100, 4, 5, 5]],
            r"All targets must begin in one column.*they begin in columns \[2, 3\]",
        ),
        ([[-100] * 5, [-100] * 5], "All targets must begin in one column.*there is none"),
        (
            [[-100, -100, 4, 5], [-100, -100, 4, 5]],
            r"labels has shape \(2, 4\); expected that of input_ids, \(2, 5\)",
        ),
        ([[4, 4, 4, 4, 5], [4, 4, 4, 4, 5]], "prompt in input_ids is empty or too short: got 0 tokens"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        no_compute(pair())(**prompts(), labels=torch.tensor(labels))


def test_a_cache_that_holds_the_whole_prompt_already():
    model, inputs = random_pair(0), alone(random_inputs(0), 0)
    length = inputs["input_ids"].shape[1]
    cache = model(**inputs).past_key_values
    with pytest.raises(
        ValueError,
        match=f"past_key_values holds {length} positions and the prompt has {length}; expected at least one",
    ):
        model(inputs["input_ids"], inputs["attention_mask"], past_key_values=cache)


@pytest.mark.parametrize(
    "sharer, receiver, field, expected, got",
    [
        ({"hidden_size": 16}, {}, "sharer_hidden_size", 32, 16),
        ({"num_hidden_layers": 4}, {}, "sharer_num_hidden_layers", 3, 4),
        ({}, {"num_hidden_layers": 2}, "receiver_num_hidden_layers", 3, 2),
        ({}, {"num_key_value_heads": 1}, "receiver_num_key_value_heads", 2, 1),
        ({}, {"head_dim": 12}, "receiver_head_dim", 8, 12),
    ],
)
def test_a_bridge_for_other_shapes(sharer, receiver, field, expected, got, tmp_path):
    bridge = pair().bridge
    bridge.save_pretrained(tmp_path)
    models = tiny_model("llama", 1, **sharer), tiny_model("llama", 2, **receiver)
    message = f"does not fit: its {field} is {expected}, and the given model's is {got}"
    with pytest.raises(ValueError, match=message):
        H2CForCausalLM.from_pair(*models, bridge)
    with pytest.raises(ValueError, match=message):
        H2CForCausalLM.from_pretrained(tmp_path, sharer=models[0], receiver=models[1])


def test_a_bridge_and_fields_for_a_new_one():
    model = pair()
    with pytest.raises(
        ValueError, match="Got a bridge, which has its config, and fields for a new one's: dropout"
    ):
        H2CForCausalLM.from_pair(model.sharer, model.receiver, model.bridge, dropout=0.0)


@pytest.mark.parametrize("name", ["device_map", "dtype", "num_heads"])
def test_arguments_that_are_no_fields_of_a_new_bridge(name):
    for make in (
        H2CForCausalLM.from_pair,
        lambda *pair, **more: H2CBridgeConfig.published(*(model.config for model in pair), **more),
    ):
        with pytest.raises(
            ValueError, match=f"Got {name} for a new bridge; expected fields of H2CBridgeConfig"
        ):
            make(tiny_model("llama"), tiny_model("qwen2", 1), **{name: 2})


def test_without_the_two_models():
    with pytest.raises(ValueError, match="needs their weights: use H2CForCausalLM.from_pair"):
        H2CForCausalLM(H2CBridgeConfig())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s, c, m, r: (s[:-1], c, m, r), "Got 3 Sharer hidden states; this bridge expects 4"),
        (
            lambda s, c, m, r: ((*s[:1], None, *s[2:]), c, m, r),
            r"Sharer hidden state 1 is None; this bridge reads \[0, 1, 2\]",
        ),
        (
            lambda s, c, m, r: (tuple(x[..., :30] for x in s), c, m, r),
            "hidden states are 30 wide; this bridge expects 32",
        ),
        (
            lambda s, c, m, r: (tuple(x[:1] for x in s), c, m, r),
            r"keys of shape \(2, 2, 4, 8\); expected \(1, 2, 4, 8\)",
        ),
        (
            lambda s, c, m, r: (s, c, m[:, 1:], r),
            r"sharer_attention_mask has shape \(2, 5\); expected \(2, 6\)",
        ),
        (
            lambda s, c, m, r: (s, c, m, torch.ones(2, 5)),
            r"receiver_attention_mask has shape \(2, 5\); expected \(2, 4\)",
        ),
    ],
)
def test_bad_tensors_for_the_bridge(change, message):
    model, inputs = pair(), prompts()
    given = (
        model.read(inputs["sharer_input_ids"]),
        model.prefill(inputs["input_ids"]),
        inputs["sharer_attention_mask"],
        None,
    )
    with pytest.raises(ValueError, match=message):
        model.bridge(*change(*given))


def test_a_cache_of_another_depth():
    model, other = pair(), pair(num_hidden_layers=2)
    with pytest.raises(ValueError, match="cache has 2 layers; this bridge expects 3"):
        model.bridge(model.read(prompts()["sharer_input_ids"]), other.prefill(prompts()["input_ids"]))


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"num_attention_heads": 3},
            "num_attention_heads is 3, which does not divide the Receiver's flattened width 128",
        ),
        ({"receiver_head_dim": 0}, "receiver_head_dim is 0; expected at least 1"),
        ({"sharer_rank": 0}, "sharer_rank is 0; expected at least 1"),
        ({"update_scale": 0.0}, "update_scale is 0.0; expected more than 0, and finite"),
        ({"layer_alignment": "bottom_up"}, "layer_alignment is 'bottom_up'; expected one of top_down, last"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        H2CBridgeConfig(**fields)


@pytest.mark.parametrize("model_class", [H2CBridgeModel, H2CForCausalLM])
@pytest.mark.parametrize("kept", [0, 100, -40])
def test_a_truncated_weight_file(tmp_path, model_class, kept):
    pair().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(
        ValueError,
        match=f"safetensors file of {re.escape(str(tmp_path))} is truncated or damaged.*fetch or save it "
        "again",
    ):
        model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [H2CBridgeModel, H2CForCausalLM])
def test_a_pickled_weight_file(tmp_path, model_class):
    model = pair()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.bridge.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match="no model.safetensors. Pickled weights .* are not loaded; expected safetensors"
    ):
        model_class.from_pretrained(tmp_path, use_safetensors=False)


def test_a_weight_file_without_some_of_the_weights(tmp_path):
    model = pair()
    state = {name: tensor for name, tensor in model.bridge.state_dict().items() if name != "gate"}
    model.bridge.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="lack 1 of the bridge's 17 tensors: gate"):
        H2CBridgeModel.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="config.json|nowhere"):
        H2CBridgeModel.from_pretrained(tmp_path / "nowhere")


def test_base_models_that_no_one_names(tmp_path):
    model = pair()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config names no sharer_model_id; pass sharer=MODEL_OR_ID"):
        H2CForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config names no receiver_model_id; pass receiver=MODEL_OR_ID"):
        H2CForCausalLM.from_pretrained(tmp_path, sharer=model.sharer)


@pytest.mark.parametrize("name", ["./../elsewhere", "./a/b", "./", "./.hidden"])
def test_a_base_model_outside_the_bridges_folder(tmp_path, name):
    model = pair()
    model.config.sharer_model_id = name
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=f"sharer_model_id is '{re.escape(name)}'; './name' must name a folder directly inside",
    ):
        H2CForCausalLM.from_pretrained(tmp_path)


def test_a_quantization_config_for_everything(tmp_path):
    with pytest.raises(ValueError, match="use sharer_quantization_config"):
        H2CForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))


@pytest.mark.parametrize("role", ["sharer", "receiver"])
def test_another_revision_of_a_base_model(tmp_path, role):
    model = pair()
    setattr(model.config, f"{role}_revision", "aaaa")
    model.save_pretrained(tmp_path)
    models = {"sharer": model.sharer, "receiver": model.receiver}
    with warnings.catch_warnings():  # where nothing is known of the given model, or it is the right one
        warnings.simplefilter("error")
        H2CForCausalLM.from_pretrained(tmp_path, **models, strict_revisions=True)
        models[role].config._commit_hash = "aaaa"
        H2CForCausalLM.from_pretrained(tmp_path, **models, strict_revisions=True)
    models[role].config._commit_hash = "bbbb"
    message = f"The {role} is at revision bbbb; this bridge was trained on aaaa"
    with pytest.warns(UserWarning, match=message):
        H2CForCausalLM.from_pretrained(tmp_path, **models)
    with pytest.raises(ValueError, match=message):
        H2CForCausalLM.from_pretrained(tmp_path, **models, strict_revisions=True)
    with pytest.warns(UserWarning, match=message):
        H2CForCausalLM.from_pair(model.sharer, model.receiver, model.bridge)
    with pytest.raises(ValueError, match=message):
        H2CForCausalLM.from_pair(model.sharer, model.receiver, model.bridge, strict_revisions=True)
