"""Several bridges on one loaded model: swapped, switched off, and otherwise as if there were one."""

import warnings

import pytest
import torch
from pairs import join, random_inputs, random_pair, tiny_model
from safetensors.torch import load_file
from test_forward import with_targets

from h2c_hf.modeling import H2CForCausalLM


def save_another(model, folder, seed=1, **fields) -> H2CForCausalLM:
    """Another bridge for the same pair, with other weights and `fields` of its config, saved."""
    other = join(model.sharer, model.receiver, seed, **fields)
    other.save_pretrained(folder)
    return other


@pytest.fixture
def two(tmp_path):
    """A model with a second bridge loaded, "other", and a model that has that one alone."""
    model = join(tiny_model("llama", 1), tiny_model("qwen2", 2))
    other = save_another(model, tmp_path / "other", ffn_multiplier=2, dropout=0.25)
    model.load_bridge(tmp_path / "other", bridge_name="other")
    return model, other


@torch.no_grad()
def test_the_active_bridge_answers_and_the_other_is_as_if_it_were_not_there(two):
    model, other = two
    inputs, options = random_inputs(0), {"max_new_tokens": 6, "do_sample": False}
    first, second = model(**inputs).logits, other(**inputs).logits
    assert torch.equal(first, join(model.sharer, model.receiver)(**inputs).logits), (
        "loading makes no bridge active"
    )
    assert not torch.allclose(first, second)
    assert (model.active_bridge, model.bridge_names) == ("default", ["default", "other"])
    model.set_bridge("other")
    assert (model.active_bridge, sorted(model.bridge_names)) == ("other", ["default", "other"])
    assert torch.equal(model(**inputs).logits, second)
    assert torch.equal(model.generate(**inputs, **options), other.generate(**inputs, **options))
    model.set_bridge("other")
    model.set_bridge("default")
    assert torch.equal(model(**inputs).logits, first)


# Switched off


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_without_the_bridge_forward_is_the_receivers_to_the_bit(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    forced, _, _ = with_targets(inputs, seed)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    positions = {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    forced_positions = {"position_ids": (forced["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    model.sharer.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the Sharer was run"))
    with model.disable_bridge():
        outputs, targets = model(**inputs), model(**forced)
        assert torch.equal(model(**receiver).logits, outputs.logits), "the Sharer's inputs may be left out"
        unpadded = model(inputs["input_ids"][-1:]).logits
        skipped = model(**forced, skip_logits=True).loss
    assert torch.equal(outputs.logits, model.receiver(**receiver, **positions).logits[:, -1:])
    assert torch.equal(unpadded, model.receiver(inputs["input_ids"][-1:]).logits[:, -1:])
    whole = model.receiver(**{name: forced[name] for name in (*receiver, "labels")}, **forced_positions)
    assert torch.equal(targets.logits, whole.logits[:, -6:])
    assert torch.equal(targets.loss, whole.loss)
    torch.testing.assert_close(skipped, whole.loss)
    assert outputs.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]


GENERATION = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "prompt_lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("mode", GENERATION)
def test_without_the_bridge_generate_is_the_receivers_to_the_bit(mode):
    model, inputs = random_pair(3), random_inputs(3, batch=1 if mode == "prompt_lookup" else None)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {
        "max_new_tokens": 6,
        "return_dict_in_generate": True,
        "output_logits": mode != "beams",
        **GENERATION[mode],
    }
    torch.manual_seed(0)
    expected = model.receiver.generate(**receiver, **options)
    torch.manual_seed(0)
    with model.disable_bridge():
        got = model.generate(**inputs, **options)
    assert torch.equal(got.sequences, expected.sequences)
    if mode != "beams":
        assert all(map(torch.equal, got.logits, expected.logits))
    assert not torch.equal(
        model.generate(**inputs, **options).sequences[:, -6:], expected.sequences[:, -6:]
    ), "the bridge is back"


@torch.no_grad()
def test_the_bridge_comes_back_after_an_error_and_from_the_outermost_of_nested_blocks():
    model, inputs = random_pair(0), random_inputs(0)
    expected = model(**inputs).logits
    with pytest.raises(RuntimeError, match="stop"), model.disable_bridge():
        raise RuntimeError("stop")
    assert torch.equal(model(**inputs).logits, expected)
    with model.disable_bridge():
        without = model(**inputs).logits
        with model.disable_bridge():
            pass
        assert torch.equal(model(**inputs).logits, without)
    assert torch.equal(model(**inputs).logits, expected)


def test_without_the_bridge_bad_prompts_are_refused_still():
    model, inputs = random_pair(0), random_inputs(0)
    with model.disable_bridge(), pytest.raises(ValueError, match="input_ids is padded on the right"):
        model(inputs["input_ids"].flip(1), inputs["attention_mask"].flip(1))


# All else is of the active bridge alone


def test_the_state_and_what_is_saved_are_of_the_active_bridge_alone(two, tmp_path):
    model, other = two
    keys = join(model.sharer, model.receiver).state_dict().keys()
    assert model.state_dict().keys() == keys and dict(model.named_parameters()).keys() == keys
    model.set_bridge("other")
    assert model.state_dict().keys() == keys
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == {f"bridge.{name}" for name in other.bridge.state_dict()}
    assert all(
        torch.equal(saved[f"bridge.{name}"], tensor) for name, tensor in other.bridge.state_dict().items()
    )
    again = H2CForCausalLM.from_pretrained(tmp_path / "saved", sharer=model.sharer, receiver=model.receiver)
    assert (again.config.ffn_multiplier, again.config.dropout) == (2, 0.25)
    inputs = random_inputs(0)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, other(**inputs).logits)


def test_moving_the_model_moves_all(two):
    model, _ = two
    model.to(torch.float64)
    for name in ("other", "default"):
        model.set_bridge(name)
        assert {tensor.dtype for tensor in model.bridge.state_dict().values()} == {torch.float64}
    model.bridge.to("meta")
    model.to("meta")
    model.set_bridge("other")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_a_bridge_is_loaded_in_the_dtype_of_the_active_one_or_as_asked(two, tmp_path):
    model, _ = two
    model.bridge.to(torch.bfloat16)
    model.load_bridge(tmp_path / "other", "like the active one")
    model.load_bridge(tmp_path / "other", "as asked", dtype=torch.float32)
    for name, dtype in (("like the active one", torch.bfloat16), ("as asked", torch.float32)):
        model.set_bridge(name)
        assert model.bridge.dtype == dtype and model.bridge.gate.dtype == torch.float32


def test_the_active_bridge_alone_trains(two):
    model, _ = two
    forced, _, _ = with_targets(random_inputs(0), 0)
    model.train()
    default = model.bridge
    for name in ("default", "other", "default"):
        model.set_bridge(name)
        idle = default if name == "other" else model._idle_bridges["other"]
        assert model.bridge.training and not idle.training and not model.receiver.training
        assert all(parameter.requires_grad for parameter in model.bridge.parameters())
        assert not any(parameter.requires_grad for parameter in idle.parameters())
        model(**forced).loss.backward()
        assert all(parameter.grad is not None for parameter in model.bridge.parameters())
    model.set_bridge("other")
    model.eval()
    model.set_bridge("default")
    assert not model.bridge.training


# What is refused


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        (
            (("llama", {"hidden_size": 64}), ("qwen2", {})),
            "its sharer_hidden_size is 64, and the given model's is 32",
        ),
        (
            (("llama", {}), ("qwen2", {"num_hidden_layers": 2})),
            "its receiver_num_hidden_layers is 2, and the given model's is 3",
        ),
    ],
)
def test_a_bridge_of_other_shapes_is_refused_with_both_numbers_before_its_weights_are_read(
    two, tmp_path, bases, message
):
    model, _ = two
    join(*(tiny_model(family, **config) for family, config in bases)).save_pretrained(tmp_path / "wrong")
    (tmp_path / "wrong" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        model.load_bridge(tmp_path / "wrong", "wrong")
    assert model.bridge_names == ["default", "other"]


@pytest.mark.parametrize("role", ["sharer", "receiver"])
def test_a_bridge_for_other_models_is_refused_with_both_names(two, tmp_path, role):
    model, _ = two
    save_another(model, tmp_path / "wrong", **{f"{role}_model_id": "someone/else"})
    setattr(model.config, f"{role}_model_id", "someone/model")
    with pytest.raises(
        ValueError, match=f"trained for the {role} someone/else, and the active one for someone/model"
    ):
        model.load_bridge(tmp_path / "wrong", "wrong")


@pytest.mark.parametrize("name", ["./sharer", "/models/sharer", None, "../sharer", "~/sharer"])
def test_a_folder_does_not_tell_which_model_it_is(two, tmp_path, name):
    model, _ = two
    save_another(model, tmp_path / "moved", sharer_model_id=name)
    model.config.sharer_model_id = "someone/model"
    model.load_bridge(tmp_path / "moved", "moved")
    assert "moved" in model.bridge_names


def test_another_revision_of_a_base_model_is_told_of_or_refused(two, tmp_path):
    model, _ = two
    save_another(model, tmp_path / "later", receiver_revision="b" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_bridge(tmp_path / "later", "revision not known")
    model.receiver.config._commit_hash = "a" * 40
    message = f"The receiver is at revision {'a' * 40}; this bridge was trained on {'b' * 40}"
    with pytest.warns(UserWarning, match=message):
        model.load_bridge(tmp_path / "later", "later")
    with pytest.raises(ValueError, match=message):
        model.load_bridge(tmp_path / "later", "strict", strict_revisions=True)
    assert model.bridge_names == ["default", "other", "revision not known", "later"]


def test_beside_a_sharer_that_is_not_in_memory_its_recorded_revision_counts(tmp_path):
    sharer, receiver = tiny_model("llama", 1), tiny_model("qwen2", 2)
    save_another(join(sharer, receiver), tmp_path / "later", sharer_revision="b" * 40)
    model = H2CForCausalLM.from_pair(sharer.config, receiver, sharer_revision="a" * 40)
    with pytest.raises(
        ValueError, match=f"The sharer is at revision {'a' * 40}; this bridge was trained on {'b' * 40}"
    ):
        model.load_bridge(tmp_path / "later", "later", strict_revisions=True)


def test_names_that_are_taken_or_unknown_are_refused(two, tmp_path):
    model, _ = two
    for name in ("default", "other"):
        with pytest.raises(
            ValueError, match=f"There is a bridge '{name}' already; expected a name other than default, other"
        ):
            model.load_bridge(tmp_path / "other", name)
    with pytest.raises(ValueError, match="There is no bridge 'third'; expected one of default, other"):
        model.set_bridge("third")
