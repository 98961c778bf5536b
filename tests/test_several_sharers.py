"""Several Sharers into one Receiver: exact sums, any Sharer off, joint training, saving."""

import random

import pytest
import torch
from pairs import VOCABULARY, alone, join, random_inputs, tiny_model
from transformers import GenerationConfig, Trainer, TrainingArguments
from transformers.generation.streamers import BaseStreamer

from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.several_sharers import H2CSeveralSharers


# Families, sizes and vocabularies differ.
WIDTHS = {"a": ("llama", 32, 3), "b": ("qwen2", 24, 5), "c": ("mistral", 16, 1)}


def several(seed: int = 0, count: int = 3, receiver: str | None = None) -> H2CSeveralSharers:
    receiver = tiny_model(
        receiver or ["qwen2", "gemma2", "llama"][seed % 3], seed, num_hidden_layers=2 + seed % 3
    )
    models = {}
    for number, (name, (family, width, layers)) in enumerate(list(WIDTHS.items())[:count]):
        vocabulary = VOCABULARY + 10 * number
        sharer = tiny_model(
            family, seed + number, hidden_size=width, num_hidden_layers=layers, vocab_size=vocabulary
        )
        models[name] = join(
            sharer, receiver, seed + number, num_attention_heads=2, recency_bias=bool(number % 2)
        )
    return H2CSeveralSharers(models).eval()


def inputs_for(model: H2CSeveralSharers, seed: int = 0, batch: int = 3) -> dict:
    """The Receiver's inputs, and each Sharer's, of different lengths, named as a processor names them."""
    made = {name: random_inputs(seed + 10 * number, batch) for number, name in enumerate(model.models)}
    first = random_inputs(seed + 99, batch)
    return {**{name: first[name] for name in ("input_ids", "attention_mask")}, "sharers": made}


def sharer_part(inputs: dict, name: str) -> dict:
    return {key: value for key, value in inputs["sharers"][name].items() if key.startswith("sharer_")}


def receiver_part(inputs: dict) -> dict:
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def row_alone(inputs: dict, row: int) -> dict:
    sharers = {name: alone(given, row) for name, given in inputs["sharers"].items()}
    kept = inputs["attention_mask"][row].bool()
    return {
        **{name: inputs[name][row, kept][None] for name in ("input_ids", "attention_mask")},
        "sharers": sharers,
    }


def states(cache) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


# What it computes


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_sum_is_the_receivers_cache_and_what_every_bridge_adds(seed):
    model = several(seed)
    inputs = inputs_for(model, seed)
    prompt = receiver_part(inputs)
    on = random.Random(seed).sample(list(model.models), 2 + seed % 2)
    positions = (prompt["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, :-1]
    own = states(
        model.models["a"]
        .receiver(
            prompt["input_ids"][:, :-1],
            attention_mask=prompt["attention_mask"][:, :-1],
            position_ids=positions,
        )
        .past_key_values
    )
    expected = [tensor.clone() for tensor in own]
    for name in on:
        for total, before, after in zip(
            expected,
            own,
            states(model.models[name].bridged_cache(**prompt, **sharer_part(inputs, name))),
            strict=True,
        ):
            total += after - before
    got = states(model.bridged_cache(**prompt, sharers={name: inputs["sharers"][name] for name in on}))
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(WIDTHS))
@torch.no_grad()
def test_one_sharer_alone_is_its_own_model_to_the_bit(name):
    model = several(1)
    inputs = inputs_for(model, 1)
    single, given = model.models[name], {name: inputs["sharers"][name]}
    own = {**receiver_part(inputs), **sharer_part(inputs, name)}
    assert torch.equal(model(**receiver_part(inputs), sharers=given).logits, single(**own).logits)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(
        model.generate(**receiver_part(inputs), sharers=given, **options), single.generate(**own, **options)
    )
    for other in set(model.models) - {name}:  # given, but switched off
        with model.models[other].disable_bridge():
            assert torch.equal(
                model(**receiver_part(inputs), sharers={**given, other: inputs["sharers"][other]}).logits,
                single(**own).logits,
            )


@pytest.mark.parametrize("sharers", [None, {}])
@torch.no_grad()
def test_without_a_sharer_the_receiver_answers_alone_to_the_bit(sharers):
    model = several(2)
    inputs = receiver_part(inputs_for(model, 2))
    receiver = model.models["a"].receiver
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for base in (single.sharer for single in model.models.values()):
        base.base_model.register_forward_pre_hook(lambda *_: pytest.fail("a Sharer was run"))
    assert torch.equal(
        model(**inputs, sharers=sharers).logits, receiver(**inputs, position_ids=positions).logits[:, -1:]
    )
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, sharers=sharers, **options), receiver.generate(**inputs, **options)
    )
    only = inputs["input_ids"][:1, -1:]  # a prompt of one token, which no bridge could rewrite
    assert torch.equal(model(only).logits, receiver(only).logits)


@torch.no_grad()
def test_a_left_padded_batch_answers_as_each_example_alone():
    model = several(3)
    inputs = inputs_for(model, 3)
    logits, options = model(**inputs).logits, {"max_new_tokens": 5, "do_sample": False}
    tokens = model.generate(**inputs, **options)[:, -5:]
    for row in range(3):
        single = row_alone(inputs, row)
        torch.testing.assert_close(model(**single).logits[0], logits[row], atol=1e-4, rtol=1e-4)
        assert torch.equal(model.generate(**single, **options)[0, -5:], tokens[row])


@torch.no_grad()
def test_teacher_forced_logits_are_those_of_generation():
    model = several(4)
    inputs = inputs_for(model, 4)
    output = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    length = inputs["input_ids"].shape[1]
    labels = output.sequences.clone()
    labels[:, :length] = -100
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(labels[:, length:])], 1)
    forced = model(output.sequences, mask, inputs["sharers"], labels=labels)
    torch.testing.assert_close(forced.logits[:, :-1], torch.stack(output.logits, 1), atol=1e-4, rtol=1e-4)
    expected = torch.nn.functional.cross_entropy(
        forced.logits[:, :-1].flatten(0, 1), labels[:, length:].flatten()
    )
    torch.testing.assert_close(forced.loss, expected)
    skipped = model(output.sequences, mask, inputs["sharers"], labels=labels, skip_logits=True)
    torch.testing.assert_close(skipped.loss, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["beams", "several beams", "samples"],
)
@torch.no_grad()
def test_beams_and_samples_are_as_likely_as_the_model_says(options):
    model = several(5)
    inputs, copies = inputs_for(model, 5), options.get("num_return_sequences", 1)
    plain = {
        "max_new_tokens": 4,
        "do_sample": False,
        "top_k": 0,
        "length_penalty": 0.0,
        "return_dict_in_generate": True,
    }
    output = model.generate(**inputs, **{**plain, **options}, output_scores=True)
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    assert len(new) == 3 * copies
    # Teacher-forced, each sequence with what the Sharers were given for its own row.
    repeated = {
        name: {key: value.repeat_interleave(copies, 0) for key, value in given.items()}
        for name, given in inputs["sharers"].items()
    }
    mask = torch.cat([inputs["attention_mask"].repeat_interleave(copies, 0), torch.ones_like(new)], 1)
    labels = torch.cat([torch.full_like(output.sequences[:, : -new.shape[1]], -100), new], 1)
    logits = model(output.sequences, mask, repeated, labels=labels).logits[:, :-1]
    if "num_beams" in options:
        likely = logits.log_softmax(-1).gather(-1, new[..., None]).sum((1, 2))
        torch.testing.assert_close(output.sequences_scores, likely, atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(torch.stack(output.scores, 1), logits, atol=1e-4, rtol=1e-4)


class Written(BaseStreamer):
    """Every token that `generate` hands over, in order."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@torch.no_grad()
def test_a_streamer_is_handed_every_token():
    model, streamer = several(5), Written()
    inputs, options = inputs_for(model, 5, batch=1), {"max_new_tokens": 6, "do_sample": False}
    ids = model.generate(**inputs, **options, streamer=streamer)
    assert torch.equal(ids, model.generate(**inputs, **options))
    assert streamer.tokens == ids[0].tolist() and streamer.ended


@pytest.mark.parametrize("where", ["argument", "config", "model"])
@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_another_kind_of_cache_is_refused_before_a_model_is_run(kind, where):
    model = several(0)
    inputs, options = inputs_for(model, 0), {}
    for single in model.models.values():
        for base in single._frozen():
            base.base_model.register_forward_pre_hook(lambda *_: pytest.fail("a model was run"))
    if where == "argument":
        options["cache_implementation"] = kind
    elif where == "config":
        options["generation_config"] = GenerationConfig(cache_implementation=kind)
    else:
        model.models["a"].generation_config.cache_implementation = kind
    with pytest.raises(ValueError, match=f"cache_implementation is '{kind}'; expected None"):
        model.generate(**inputs, **options)


# Training


def batch_with_targets(model: H2CSeveralSharers, seed: int) -> dict:
    inputs = inputs_for(model, seed)
    targets = torch.randint(1, VOCABULARY, (3, 3), generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": torch.cat([inputs["input_ids"], targets], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(targets)], 1),
        "labels": torch.cat([torch.full_like(inputs["input_ids"], -100), targets], 1),
        "sharers": {name: sharer_part(inputs, name) for name in model.models},
    }


def test_gradients_reach_every_bridge_that_is_on_and_nothing_else():
    model = several(0).train()
    batch = batch_with_targets(model, 0)
    batch["sharers"].pop("b")
    model(**batch).loss.backward()
    reached = {
        name: sum(p.grad is not None and bool(p.grad.abs().sum()) for p in model.bridges[name].parameters())
        for name in "abc"
    }
    assert reached["a"] and reached["c"] and not reached["b"], reached
    assert {id(p) for p in model.parameters()} == {
        id(p) for bridge in model.bridges.values() for p in bridge.parameters()
    }
    assert not any(
        p.grad is not None
        for single in model.models.values()
        for base in single._frozen()
        for p in base.parameters()
    )
    assert not any(base.training for single in model.models.values() for base in single._frozen())


def test_the_stock_trainer_trains_all_and_its_checkpoint_holds_the_bridges_alone(tmp_path):
    from safetensors.torch import load_file

    model = several(1, count=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = TrainingArguments(
        tmp_path, max_steps=12, learning_rate=1e-2, remove_unused_columns=False, report_to=[], use_cpu=True,
        disable_tqdm=True, save_steps=12, logging_steps=4, per_device_train_batch_size=1,
        dataloader_pin_memory=False,
    )  # fmt: skip
    batch = batch_with_targets(model, 1)
    trainer = Trainer(model, arguments, train_dataset=[batch], data_collator=lambda rows: rows[0])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0], losses
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert saved.keys() == before.keys()
    moved = {name.split(".")[1] for name, tensor in saved.items() if not torch.equal(tensor, before[name])}
    assert moved == {"a", "b"}


# Saving


@torch.no_grad()
def test_what_is_saved_answers_the_same_and_each_subfolder_is_a_bridges_repo(tmp_path):
    model = several(2, count=2)
    inputs = inputs_for(model, 2)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "several_sharers.json"]
    bases = {name: single.sharer for name, single in model.models.items()}
    receiver = model.models["a"].receiver
    loaded = H2CSeveralSharers.from_pretrained(tmp_path, sharers=bases, receiver=receiver)
    assert list(loaded.models) == ["a", "b"]
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    single = H2CForCausalLM.from_pretrained(tmp_path / "b", sharer=bases["b"], receiver=receiver)
    own = {**receiver_part(inputs), **sharer_part(inputs, "b")}
    assert torch.equal(single(**own).logits, model.models["b"](**own).logits)
    with pytest.raises(ValueError, match="no Sharer 'z'"):
        H2CSeveralSharers.from_pretrained(tmp_path, sharers={"z": bases["a"]})


@torch.no_grad()
def test_the_receiver_is_loaded_once(tmp_path):
    model = several(2, count=2)
    model.models["a"].receiver.save_pretrained(tmp_path / "receiver")
    for name, single in model.models.items():
        single.sharer.save_pretrained(tmp_path / name)
        single.config.sharer_model_id = str(tmp_path / name)
        single.config.receiver_model_id = str(tmp_path / "receiver")
    model.save_pretrained(tmp_path / "all")
    loaded = H2CSeveralSharers.from_pretrained(tmp_path / "all")
    assert loaded.models["a"].receiver is loaded.models["b"].receiver
    inputs = inputs_for(model, 2)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_moving_it_moves_all_models():
    model = several(0, count=2).to(torch.bfloat16)
    for single in model.models.values():
        assert {single.dtype, single.sharer.dtype, single.receiver.dtype} == {torch.bfloat16}


# Bad input


def test_refused_with_names():
    model = several(0)
    inputs = inputs_for(model, 0)
    other = tiny_model("qwen2", 9)
    stranger = join(tiny_model("llama", 8), other, num_attention_heads=2)
    for models, message in (
        ({}, "got 0"),
        ({"a": model.models["a"], "z": stranger}, "'z' and 'a' hold a Receiver each"),
        ({"a/b": stranger}, "named 'a/b'"),
        ({"keys": stranger}, "named 'keys'"),
    ):
        with pytest.raises(ValueError, match=message):
            H2CSeveralSharers(models)
    with pytest.raises(ValueError, match="no Sharer 'z'; expected one of a, b, c"):
        model(**receiver_part(inputs), sharers={"z": {}})
    with pytest.raises(ValueError, match="sharer_input_ids is missing"):
        model(**receiver_part(inputs), sharers={"a": receiver_part(inputs)})
    with pytest.raises(ValueError, match="at least 2 tokens"):
        model(inputs["input_ids"][:, -1:], None, inputs["sharers"])
    cache = model.bridged_cache(**inputs)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="past_key_values is given; expected none"):
            call(**inputs, past_key_values=cache)
    single = model.models["b"]
    single.bridge = stranger.bridge
    with pytest.raises(ValueError, match="'b' was swapped"):
        model(**inputs)
