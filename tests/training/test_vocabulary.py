"""The dictionary that a message's token projection starts from, on byte tokenizers and random models."""

import json

import torch
from pairs import byte_tokenizer, text_pair
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.training import vocabulary
from h2c_hf.training.vocabulary import fit_vocabulary, principal, received, same_characters


def pair(**overrides):
    processor, model = text_pair()
    return processor, H2CForCausalLM.from_pair(
        model.sharer, model.receiver, bridge_form="message", **overrides
    ).eval()


def with_merges(tokenizer: PreTrainedTokenizerFast, merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for left, right in merges:
        state["model"]["vocab"][left + right] = max(state["model"]["vocab"].values()) + 1
    state["model"]["merges"] = [list(pair) for pair in merges]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token=tokenizer.bos_token
    )


def test_tokens_of_the_same_characters_are_found():
    """The Sharer writes " th" in one token, the Receiver in three; a space before a token is part of it."""
    sharer, receiver = byte_tokenizer(["<s>"], bos="<s>"), byte_tokenizer(["<a>", "<b>"])
    sharer = with_merges(sharer, [("Ġ", "t"), ("Ġt", "h")])
    found = same_characters(sharer, receiver)
    for text in ("a", "Z", " ", " t", " th"):
        (token,) = sharer(text, add_special_tokens=False)["input_ids"]
        assert receiver.decode(found[token]) == text
    assert len(found[sharer.convert_tokens_to_ids("Ġth")]) == 3
    assert not set(sharer.all_special_ids) & set(found)


def test_target_is_the_weighted_mean_of_normed_embeddings():
    _, model = pair(token_rank=4, token_hidden_size=8)
    weight = model.receiver.get_input_embeddings().weight.detach()
    rows = received(model, [[5], [7, 9]])
    normed = [weight[token] / weight[token].pow(2).mean().sqrt() for token in (5, 7, 9)]
    assert torch.allclose(rows[0], normed[0], atol=1e-5)
    assert torch.allclose(rows[1], (2 * normed[1] + normed[2]) / 3, atol=1e-5)


def test_principal_components_keep_distances():
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    components = principal(rows, 6)
    products, kept = ((part - part.mean(0)) @ (part - part.mean(0)).T for part in (rows, components))
    assert torch.allclose(kept, products * kept[0, 0] / products[0, 0], atol=1e-3)
    assert torch.allclose(components.var(0).mean(), torch.tensor(1.0), atol=1e-4)
    assert components.var(0)[-1] > components.var(0)[0]


def test_projection_learns_the_receivers_embedding_of_each_token(monkeypatch):
    """Random embeddings of 32 and 24 dimensions have no linear map; the perceptron learns all 96."""
    monkeypatch.setattr(vocabulary, "STEPS", 300)
    processor, model = pair(token_rank=16, token_hidden_size=256)
    torch.manual_seed(0)
    told = fit_vocabulary(model, processor, ["".join(chr(code) for code in range(32, 127))])
    pairs = same_characters(processor.sharer_tokenizer, processor.receiver_tokenizer)
    pairs = {token: pieces for token, pieces in pairs.items() if len(pieces) == 1}
    states = model.read(torch.tensor(list(pairs))[:, None], None, [0])[0][:, 0]
    projected = model.bridge.message.project_tokens(states)[0]
    nearest = torch.cdist(projected, principal(received(model, list(pairs.values())), 16)).argmin(1)
    assert (nearest == torch.arange(len(pairs))).float().mean() > 0.95
    assert told["words"] == len(pairs)
    assert told["own"] > 0.95 > told["own_linear"]
