"""Base models with adapters of PEFT."""

import pytest
import torch
from pairs import random_inputs, randomize, tiny_model

from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.modeling.loading_h2c import load_magnitudes


peft = pytest.importorskip("peft")

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def folders(tmp_path):
    """A Sharer, a Receiver, and a LoRA for the Receiver that changes its logits."""
    tiny_model("llama", 1).save_pretrained(tmp_path / "sharer")
    tiny_model("qwen2", 2).save_pretrained(tmp_path / "receiver")
    base = H2CForCausalLM.from_pair(str(tmp_path / "sharer"), str(tmp_path / "receiver")).receiver
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "lora")
    return tmp_path


def with_lora(folders):
    receiver = tiny_model("qwen2", 2)
    receiver.config._name_or_path = str(folders / "receiver")
    return peft.PeftModel.from_pretrained(receiver, folders / "lora")


def logits(model):
    with torch.no_grad():
        return model(**random_inputs(0)).logits


def test_an_adapters_repo_as_the_receiver_survives_saving(folders):
    model = H2CForCausalLM.from_pair(str(folders / "sharer"), str(folders / "lora")).eval()
    randomize(model.bridge)
    assert model.config.receiver_model_id == str(folders / "lora")
    model.save_pretrained(folders / "bridge")
    assert torch.equal(logits(H2CForCausalLM.from_pretrained(folders / "bridge")), logits(model))
    plain = H2CForCausalLM.from_pretrained(folders / "bridge", receiver=str(folders / "receiver"))
    assert not torch.allclose(logits(plain), logits(model), atol=1e-2)


def test_dora_is_loaded_as_peft_loads_it(folders):
    """transformers 5.24 leaves the magnitudes random: each load is another model."""
    base = H2CForCausalLM.from_pair(str(folders / "sharer"), str(folders / "receiver")).receiver
    adapted = peft.get_peft_model(
        base,
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, use_dora=True),
    )
    magnitudes = [parameter for name, parameter in adapted.named_parameters() if "magnitude" in name]
    for parameter in magnitudes:
        parameter.data += torch.rand_like(parameter)
    adapted.save_pretrained(folders / "dora")
    receiver = tiny_model("qwen2", 2)
    expected = peft.PeftModel.from_pretrained(receiver, folders / "dora").eval()
    ids = random_inputs(0)["input_ids"]
    model = H2CForCausalLM.from_pair(str(folders / "sharer"), str(folders / "dora")).eval()
    assert len(magnitudes) == 6 and torch.equal(
        model.receiver(input_ids=ids).logits, expected(input_ids=ids).logits
    )
    (folders / "dora" / "adapter_model.safetensors").rename(folders / "dora" / "elsewhere.safetensors")
    with pytest.raises(
        ValueError,
        match="magnitudes of the DoRA adapters in '.*dora' were not loaded for "
        "model.layers.0.self_attn.q_proj;",
    ):
        load_magnitudes(model.receiver, folders / "dora")


def test_a_peft_model_is_taken_and_refused_when_saving(folders):
    with pytest.warns(UserWarning, match="The receiver has adapters"):
        model = H2CForCausalLM.from_pair(str(folders / "sharer"), with_lora(folders)).eval()
    randomize(model.bridge)
    for name in (str(folders / "receiver"), None):
        model.config.receiver_model_id = name
        with pytest.raises(ValueError, match=f"The receiver has adapters, and receiver_model_id is {name!r}"):
            model.save_pretrained(folders / "bridge")
    model.config.receiver_model_id = str(folders / "lora")
    model.save_pretrained(folders / "bridge")
    assert torch.equal(logits(H2CForCausalLM.from_pretrained(folders / "bridge")), logits(model))
    assert torch.equal(
        logits(H2CForCausalLM.from_pretrained(folders / "bridge", receiver=with_lora(folders))), logits(model)
    )


@pytest.mark.filterwarnings("ignore:The receiver has adapters")
def test_adapters_that_know_no_base_model_of_this_name_are_refused(folders):
    added = H2CForCausalLM.from_pair(str(folders / "sharer"), str(folders / "receiver"))
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), added.receiver)
    moved = H2CForCausalLM.from_pair(str(folders / "sharer"), with_lora(folders))
    moved.receiver.peft_config["default"].base_model_name_or_path = "where/it/was/trained"
    for model in (added, moved):
        with pytest.raises(
            ValueError,
            match="The receiver has adapters, and receiver_model_id is '.*receiver', which names the model "
            "without",
        ):
            model.save_pretrained(folders / "bridge")


@pytest.mark.filterwarnings("ignore:The receiver has adapters")
def test_a_peft_model_generates_with_an_assistant_and_trains(folders):
    model = H2CForCausalLM.from_pair(tiny_model("llama", 1), with_lora(folders)).eval()
    randomize(model.bridge)
    for seed in range(6):
        inputs = random_inputs(seed, 1)
        plain = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=tiny_model("qwen2", 2)), plain)
    labels = torch.full_like(plain, -100)
    labels[:, inputs["input_ids"].shape[1] :] = plain[:, inputs["input_ids"].shape[1] :]
    full = {"input_ids": plain, "sharer_input_ids": inputs["sharer_input_ids"], "labels": labels}
    with torch.no_grad():
        assert torch.allclose(model(**full, skip_logits=True).loss, model(**full).loss)


def test_adapters_outside_the_layers_are_refused():
    receiver = peft.get_peft_model(
        tiny_model("qwen2", 2), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="which is no part of its layers; expected adapters such as LoRA"):
        H2CForCausalLM.from_pair(tiny_model("llama", 1), receiver)
