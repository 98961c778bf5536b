"""The regression that a message starts from, against plain formulas and against the Receiver itself."""

import pytest
import torch
from pairs import text_pair, tiny_model, tiny_processor
from transformers import ByT5Tokenizer

from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.training.fit import Moments, aligned, fit_message, frame_before_text, shared_characters


WORDS = [
    "the",
    "city",
    "of",
    "Lima",
    "lies",
    "in",
    "Peru",
    "and",
    "its",
    "river",
    "is",
    "the",
    "Rimac",
    "which",
    "flows",
    "west",
    "from",
    "the",
    "Andes",
    "into",
    "the",
    "sea",
]


def texts(count: int = 40) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [
        " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (12,), generator=generator))
        for _ in range(count)
    ]


def pair(**overrides):
    processor, model = text_pair()
    return processor, H2CForCausalLM.from_pair(
        model.sharer, model.receiver, bridge_form="message", **overrides
    ).eval()


def test_moments_solve_the_ridge_regression():
    generator = torch.Generator().manual_seed(1)
    inputs, noise = (torch.randn(200, n, generator=generator, dtype=torch.double) for n in (5, 3))
    inputs = inputs * torch.tensor([1, 2, 3, 4, 50.0]) + 7
    targets = inputs @ torch.randn(5, 3, generator=generator, dtype=torch.double) + 0.1 * noise + 2
    moments = Moments()
    for part in range(0, 200, 50):
        moments.add(inputs[part : part + 50], targets[part : part + 50])
    mean, deviation, weight, target, explained = moments.solve()
    scaled = (inputs - inputs.mean(0)) / inputs.std(0, unbiased=False)
    plain = torch.linalg.lstsq(
        torch.cat([scaled, (3e-3 * 200) ** 0.5 * torch.eye(5, dtype=torch.double)]),
        torch.cat([targets - targets.mean(0), torch.zeros(5, 3, dtype=torch.double)]),
    ).solution
    assert torch.allclose(weight, plain, atol=1e-4)
    error = (targets - target - (inputs - mean) / deviation @ weight).square().mean(0)
    assert torch.allclose(explained, 1 - error / targets.var(0, unbiased=False), atol=1e-4)


def test_a_span_shares_characters_with_the_tokens_it_overlaps():
    weights = shared_characters([(0, 0), (0, 4), (4, 6), (6, 9)], [(0, 2), (2, 5), (5, 6), (6, 9)])
    assert weights.tolist() == [[0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]


def test_frame_is_what_the_template_writes_before_the_text():
    tokenizer = tiny_processor().receiver_tokenizer
    assert tokenizer.decode(frame_before_text(tokenizer)) == "<|im_start|>user\n"
    tokenizer.chat_template = None
    assert frame_before_text(tokenizer) == []


@torch.no_grad()
def test_targets_are_the_receivers_own_values_at_the_same_characters():
    """One token a byte on both sides: each Sharer token's target is the Receiver's at that byte."""
    processor, model = pair()
    states, targets = next(aligned(model, processor, ["Lima", "a longer text"]))
    frame = frame_before_text(processor.receiver_tokenizer)
    ids = torch.tensor([frame + processor.receiver_tokenizer("Lima", add_special_tokens=False)["input_ids"]])
    cache = model.receiver(ids, use_cache=True).past_key_values
    size = model.config.receiver_size
    for layer, target in zip(cache.layers, targets, strict=True):
        own = layer.values[0].transpose(0, 1).flatten(1)[len(frame) :]
        assert torch.allclose(target[:4, size:], own, atol=1e-5)
    first = model.receiver.model.layers[0]
    hidden = first.input_layernorm(model.receiver.model.embed_tokens(ids))
    assert torch.allclose(targets[0][:4, :size], first.self_attn.k_proj(hidden)[0, len(frame) :], atol=1e-5)
    assert len(states[0]) == 4 + len("a longer text")


@pytest.mark.parametrize("path", [{}, {"token_rank": 8}, {"token_rank": 8, "token_hidden_size": 32}])
def test_fitted_message_is_nearer_to_the_receivers_cache(path):
    processor, model = pair(**path)
    explained = fit_message(model, processor, texts())
    assert explained["keys"] > 0.3
    assert explained["values"] > 0.3

    @torch.no_grad()
    def error(model) -> float:
        """Of the message's values in the last layer, over their variance, on a text that was not fitted."""
        text = " ".join(reversed(WORDS))
        ids = torch.tensor([processor.sharer_tokenizer(text)["input_ids"]])
        cache = model.bridged_cache(torch.ones(1, 3, dtype=torch.long), sharer_input_ids=ids)
        # The Sharer begins with a bos.
        written = cache.layers[-1].values[0, :, 1 : ids.shape[1]].transpose(0, 1).flatten(1)
        _, targets = next(aligned(model, processor, [text]))
        target = targets[-1][:, model.config.receiver_size :]
        return ((written - target).square().sum() / (target - target.mean(0)).square().sum()).item()

    fitted, unfitted = error(model), error(pair(**path)[1])
    assert fitted < 1 < unfitted
    assert model.bridge.message.kv_proj.weight.requires_grad
    assert (
        model.bridge.message.token_hidden_size is None
        or not model.bridge.message.token_in.weight.requires_grad
    )


def test_too_few_texts_and_other_forms_are_refused():
    processor, model = pair(token_rank=8)
    with pytest.raises(ValueError, match=r"The texts have 4 Sharer tokens that align; expected at least 80"):
        fit_message(model, processor, ["Lima"])
    _, rewriting = text_pair()
    with pytest.raises(ValueError, match="bridge_form is 'rewrite'; expected 'message'"):
        fit_message(rewriting, processor, texts())


def test_slow_tokenizer_is_refused():
    processor, model = pair()
    processor.sharer_tokenizer = ByT5Tokenizer()  # written in Python
    with pytest.raises(ValueError, match="The sharer's tokenizer gives no character offsets"):
        fit_message(model, processor, texts())


def test_models_of_other_dtypes_are_fitted():
    processor, _ = text_pair()
    sizes = {name: len(getattr(processor, f"{name}_tokenizer")) for name in ("sharer", "receiver")}
    models = [
        tiny_model("llama", 1, vocab_size=sizes["sharer"]),
        tiny_model("qwen2", 2, vocab_size=sizes["receiver"]),
    ]
    model = H2CForCausalLM.from_pair(
        *(model.to(torch.bfloat16) for model in models), bridge_form="message"
    ).eval()
    model.bridge.float()
    assert fit_message(model, processor, texts())["values"] > 0.3
