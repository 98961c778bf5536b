import functools
import os
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pairs import alone, randomize, tiny_model, tiny_processor
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from h2c_hf.atlas import MODELS
from h2c_hf.data.examples import encode_example
from h2c_hf.evaluation.batch import Batch
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.experiments.cache_fusion import CacheFusion, aligned_places, frame_length, token_bytes, token_ends
from h2c_hf.modeling import H2CProcessor, passes_h2c
from h2c_hf.prompts import user_turn
from h2c_hf.training.arguments import H2CTrainingArguments
from h2c_hf.training.trainer import H2CTrainer


SEEDS = range(4)
WORDS = [
    "Which",
    "country",
    "is",
    "Zürich",
    "in?",
    "\n",
    "A.",
    "1998,",
    "naïve",
    "日本",
    "🙂",
    "e",
    "(x+1)",
    "\t",
    "Ununtrium",
    "--",
]
PAIRS = {"atlas": (MODELS / "sharer", MODELS / "receiver")}
if REAL := os.environ.get("H2C_REAL_DATA"):
    llama, qwen = (Path(REAL) / "tokenizers" / name for name in ("llama-3.1", "qwen2.5"))
    PAIRS |= {"llama to qwen": (llama, qwen), "qwen to llama": (qwen, llama)}


tokenizer_at = functools.cache(AutoTokenizer.from_pretrained)


def random_text(rng: random.Random) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
    return "".join(word + rng.choice(["", " "]) for word in words).strip() or "?"


def fusion(seed: int) -> tuple[CacheFusion, H2CProcessor]:
    """A pair of random shapes, with random weights; some gates are open and some are shut."""
    rng, processor = random.Random(seed), tiny_processor()
    shapes = [
        {
            "vocab_size": 300,
            "num_hidden_layers": rng.randint(1, 4),
            "num_key_value_heads": rng.choice([1, 2, 4]),
        }
        for _ in range(2)
    ]
    models = [tiny_model(rng.choice(["llama", "qwen2"]), seed + n, **shape) for n, shape in enumerate(shapes)]
    model = CacheFusion(*models, processor, anneal_steps=10, inner_size=rng.choice([8, 20])).eval()
    randomize(model.bridge, seed)
    model.bridge.gate.data[0] = 1.0
    return model, processor


def random_inputs(processor: H2CProcessor, seed: int, batch: int = 3):
    rng = random.Random(seed)
    return processor.apply_chat_template([user_turn(random_text(rng)) for _ in range(batch)])


@pytest.mark.parametrize("name", PAIRS)
def test_a_token_gets_the_sharers_token_that_holds_its_last_character(name):
    """Against the tokenizers' own offsets; the frame from the caches' end, without the kickstart."""
    sharer, receiver = map(tokenizer_at, PAIRS[name])
    processor, rng = H2CProcessor(sharer, receiver), random.Random(name)
    texts = [random_text(rng) for _ in range(24)]
    inputs = processor.apply_chat_template([user_turn(text) for text in texts])
    ids, masks = (
        [inputs[name][:, :-1], inputs[f"sharer_{name}"]] for name in ("input_ids", "attention_mask")
    )
    frames = [frame_length(receiver) - 1, frame_length(sharer)]
    places = aligned_places(
        *(
            token_ends(token_bytes(tokenizer)[ids[n]], masks[n], frames[n])
            for n, tokenizer in enumerate((receiver, sharer))
        )
    )
    for row, text in enumerate(texts):
        spans = []  # of all tokens, by characters from the content's beginning on
        for tokenizer in (receiver, sharer):
            rendered = tokenizer.apply_chat_template(
                user_turn(text), tokenize=False, add_generation_prompt=True
            )
            offsets = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)[
                "offset_mapping"
            ]
            spans.append(
                [(first - rendered.rindex(text), last - rendered.rindex(text)) for first, last in offsets]
            )
        own, theirs = (int(mask[row].sum()) for mask in masks)
        place = places[row, -own:] - (masks[1].shape[1] - theirs)
        assert [len(tokens) for tokens in spans] == [own + 1, theirs]
        for (_, last), at in zip(spans[0][:-1], place.tolist(), strict=True):
            if 0 < last <= len(text):
                assert spans[1][at][0] < last <= spans[1][at][1], (text, last, spans[1][at])
        assert place[-frames[0] :].tolist() == [
            max(theirs - frames[0] + n, theirs - frames[1]) for n in range(frames[0])
        ]
        assert (place >= 0).all()


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    )
    with pytest.raises(ValueError, match="not byte-level; expected one whose tokens are bytes of text"):
        token_bytes(words)


def test_tokens_of_sentencepiece_stand_for_their_bytes():
    """Against the bytes of the text: words, spaces, and characters that are spelt in bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdeZrich", "\u2581a", "ch"]
    pieces = list(dict.fromkeys(pieces))
    merges = [("\u2581", "a"), ("c", "h")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    lengths = token_bytes(tokenizer)
    for text in ("cab a", "Zürich ab a 日本", "ché a🙂 che"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and len(ids) < len(text.encode())
        assert lengths[ids].sum() == len(text.encode())


@torch.no_grad()
def plain_cache(model: CacheFusion, inputs: dict, places: list[int]):
    """The fused cache of an unpadded example, block after block, with unstacked parameters."""
    sharer = model.sharer(inputs["sharer_input_ids"], use_cache=True).past_key_values.layers
    cache = model.receiver(inputs["input_ids"][:, :-1], use_cache=True).past_key_values
    state, depth = model.bridge.state_dict(), min(len(sharer), len(cache.layers))

    def linear(name, x, block):
        return F.linear(x, state[f"{name}.weight"][block], state[f"{name}.bias"][block])

    def mlp(name, x, block):
        return x + linear(
            f"{name}.back", F.gelu(linear(f"{name}.wide", F.layer_norm(x, x.shape[-1:]), block)), block
        )

    for t in range(depth):  # from the top
        for n, kind in enumerate(("keys", "values")):
            block = 2 * (depth - 1 - t) + n
            # (heads, length, head_dim)
            x, h = getattr(cache.layers[-1 - t], kind)[0], getattr(sharer[-1 - t], kind)[0]
            both = torch.cat([h[:, places].transpose(0, 1).flatten(1), x.transpose(0, 1).flatten(1)], 1)
            z = mlp("mlp", linear("join", both, block), block)
            weight = torch.sigmoid(linear("heads", mlp("heads_mlp", z, block), block))
            added = linear("out", mlp("out_mlp", z, block), block).view(len(places), *x.shape[::2])
            if state["gate"][block] > 0:
                setattr(cache.layers[-1 - t], kind, (x + (weight[:, :, None] * added).transpose(0, 1))[None])
    return cache


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_the_fused_cache_is_that_of_the_plain_method(seed):
    """The two byte tokenizers' frames are as long, in the caches, but for the Sharer's bos."""
    model, processor = fusion(seed)
    inputs = random_inputs(processor, seed)
    cache = model.bridged_cache(**inputs)
    for row in range(3):
        single = alone(inputs, row)
        own = single["input_ids"].shape[1]
        assert single["sharer_input_ids"].shape[1] == own
        expected = plain_cache(model, single, list(range(1, own)))
        for layer, plain in zip(cache.layers, expected.layers, strict=True):
            torch.testing.assert_close(layer.keys[row, :, 1 - own :], plain.keys[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(layer.values[row, :, 1 - own :], plain.values[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_left_padded_batch_answers_as_each_example_alone(seed, monkeypatch):
    monkeypatch.setitem(passes_h2c.PASS_TOKENS, "cpu", 64)  # the Sharer reads it in several passes
    model, processor = fusion(seed)
    inputs = random_inputs(processor, seed, batch=5)
    for row, logits in enumerate(model(**inputs).logits):
        torch.testing.assert_close(logits, model(**alone(inputs, row)).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_shut_gates_give_the_receivers_logits_to_the_bit(seed):
    model, processor = fusion(seed)
    inputs = random_inputs(processor, seed)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = model(**receiver, past_key_values=model.prefill(**receiver)).logits
    assert (model(**inputs).logits - expected).abs().max() > 1e-3
    torch.nn.init.constant_(model.bridge.gate, 0.0)
    assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_before_training_it_is_the_receiver():
    processor = tiny_processor()
    model = CacheFusion(
        tiny_model("llama", vocab_size=300),
        tiny_model("qwen2", 1, vocab_size=300),
        processor,
        anneal_steps=10,
    ).train()
    inputs = random_inputs(processor, 0)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(
        model(**inputs).logits, model(**receiver, past_key_values=model.prefill(**receiver)).logits
    )


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_teacher_forced_logits_are_those_of_generate(seed):
    model, processor = fusion(seed)
    inputs = random_inputs(processor, seed)
    generated = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    new = generated.sequences[:, inputs["input_ids"].shape[1] :]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), new], 1)
    forced = model(
        **{**inputs, "input_ids": generated.sequences, "attention_mask": mask}, labels=labels
    ).logits
    torch.testing.assert_close(forced[:, :-1], torch.stack(generated.logits, 1), atol=1e-4, rtol=1e-4)


def test_gates_are_drawn_in_training_and_harden():
    model, _ = fusion(0)
    bridge, like = model.bridge.train(), torch.empty(len(model.bridge.gate), 1000, 1)
    torch.nn.init.constant_(bridge.gate, 0.5)
    drawn = [bridge._gates(like).detach() for _ in range(bridge.anneal_steps + 1)]
    between = [((gates > 0.01) & (gates < 0.99)).float().mean() for gates in drawn]
    assert between[0] > 0.9 and between[-1] < 0.02
    # A Gumbel draw is above -0.5 with probability 1 - exp(-exp(0.5)).
    torch.testing.assert_close((drawn[-1] > 0.5).float().mean(), torch.tensor(0.808), atol=0.02, rtol=0)
    assert (bridge.eval()._gates(like) == 1).all() and bridge.steps == bridge.anneal_steps + 1


@torch.no_grad()
def test_the_controls_read_no_cache_of_their_own_question():
    model, processor = fusion(0)
    texts = ("Where is Rome?", "What?", "Who plays the piano?")
    questions = [{"question": text, "choices": list("abcd"), "answer": row} for row, text in enumerate(texts)]
    batch = Batch(model, processor, questions)
    ids = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    rolled = {name: batch.inputs[name].roll(1, 0) for name in ("sharer_input_ids", "sharer_attention_mask")}
    torch.testing.assert_close(
        METHODS["shuffled"].logits(batch), model(**ids, **rolled).logits[:, -1], atol=1e-5, rtol=1e-5
    )
    every = {
        method.name: METHODS[method.name].logits(batch)
        for method in METHODS.values()
        if method.reader == "receiver" and method.name in ("receiver", "h2c", "shuffled", "zeros", "noise")
    }
    assert all(logits.isfinite().all() for logits in every.values())
    assert all(
        (every["h2c"] - every[name]).abs().max() > 1e-3 for name in ("receiver", "shuffled", "zeros", "noise")
    )
    for form in ("choice", "open"):
        assert set(
            evaluate(model, processor, questions, ["receiver", "h2c", "sharer", "shuffled", "zeros"], form)
        ) >= {"h2c", "zeros"}


def test_the_trainer_trains_the_fusion_alone(tmp_path):
    model, processor = fusion(0)
    model.bridge.gate.data.fill_(0.5)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    examples = [
        encode_example(processor, user_turn(text), "b")
        for text in ("Where?", "Who is it?", "What is 2 + 2?", "When?")
    ]
    arguments = H2CTrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=2, logging_steps=1, save_strategy="no",
        report_to="none", learning_rate=1e-2, warmup_steps=0, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = H2CTrainer(model, arguments, processing_class=processor, train_dataset=examples)
    trainer.train()
    for name, parameter in model.named_parameters():
        changed = (
            (parameter != before[name]).flatten(1).any(1)
            if parameter.dim() > 1
            else parameter != before[name]
        )
        assert changed.all() if name.startswith("bridge.") else not changed.any(), name
    assert model.bridge.steps == 2
    logged = [entry for entry in trainer.state.log_history if "gate/key/0" in entry][-1]
    assert all(
        logged[f"grad_norm/{part}"] > 0
        for part in ("join", "mlp", "heads_mlp", "out_mlp", "heads", "out", "gate")
    )
