"""Base models are constants, and their LM heads get whole tensors: see `freeze`."""

import copy
import pickle

import pytest
import torch
from pairs import text_pair

from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.modeling.families_h2c import plain_layout


def inputs_of_head(model, *args, **kwargs) -> list[torch.Tensor]:
    """The tensors that the head of a model gets while it answers."""
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda head, given, _: seen.append(given[0]))
    model.generate(*args, **kwargs, max_new_tokens=2, do_sample=False)
    hook.remove()
    return seen


@pytest.mark.parametrize("role", ["sharer", "receiver"])
@pytest.mark.parametrize("batch", [1, 3])
def test_no_slice_reaches_the_head_of_a_base_model(role, batch):
    """The strides decide whether torch multiplies all rows at once."""
    base = getattr(text_pair()[1], role)
    prompt = torch.arange(3, 3 + 7 * batch).view(batch, 7)
    first, second = inputs_of_head(base, prompt)
    assert first.shape[:2] == second.shape[:2] == (batch, 1)
    for given in (first, second):
        assert given.stride(0) == given.shape[1] * given.stride(1)


@torch.no_grad()
def test_the_answer_is_that_of_the_model_as_it_was_loaded():
    """To the bit: torch then takes the same way for both."""
    _, model = text_pair()
    loaded = copy.deepcopy(model.receiver).requires_grad_(True)
    loaded.get_output_embeddings()._forward_pre_hooks.clear()
    prompt = torch.arange(3, 24).view(3, 7)
    assert torch.equal(
        model.receiver(prompt, logits_to_keep=1).logits, loaded(prompt, logits_to_keep=1).logits
    )
    plain_input = torch.randn(2, 4, model.receiver.config.hidden_size)
    assert plain_layout(None, (plain_input,)) is None


def test_a_base_model_of_two_pairs_has_one_hook_and_can_be_pickled():
    _, model = text_pair()
    H2CForCausalLM.from_pair(model.sharer, model.receiver)
    head = pickle.loads(pickle.dumps(model.receiver)).get_output_embeddings()
    assert list(head._forward_pre_hooks.values()) == [plain_layout]
    assert not any(parameter.requires_grad for parameter in model.receiver.parameters())
