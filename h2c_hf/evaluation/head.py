"""A model's own path from its last hidden states to logits: the LM head, and whatever scales, caps or soft caps its forward applies."""

import copy

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class GivenOutput(BaseModelOutputWithPast):
    """A backbone's output of any kind: the fields that other families add (router logits, cross-attentions ...) are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def head_logits(model: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the logits that a causal language model computes from its last hidden states.

    The model's own `forward` runs with its backbone replaced, so that no arithmetic of its head is left out: Gemma 2 caps the logits,
    Cohere and Granite scale them.

    Args:
        hidden_states: (batch, length, hidden_size), after the final norm.

    Returns:
        (batch, length, vocabulary).
    """
    head = copy.copy(model)
    backbone = copy.copy(model.base_model)
    # OPT calls its backbone's decoder instead.
    backbone._modules = {name: given(part, hidden_states) if name == "decoder" else part for name, part in backbone._modules.items()}
    head._modules = {**model._modules, model.base_model_prefix: given(backbone, hidden_states)}
    # The class's `forward`: an instance's own (accelerate's hooks) would run that of the whole model.
    return type(model).forward(head, inputs_embeds=hidden_states, use_cache=False).logits


def given(backbone: torch.nn.Module, hidden_states: torch.Tensor) -> torch.nn.Module:
    """A copy of a backbone, weights and attributes shared, that returns these hidden states instead of computing any."""
    backbone = copy.copy(backbone)
    backbone.forward = lambda *args, **kwargs: GivenOutput(last_hidden_state=hidden_states)
    return backbone
