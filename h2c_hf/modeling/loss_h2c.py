"""The loss of a training step without the logits of a whole batch in memory: of the Receiver's vocabulary,
they would be most of it."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .families_h2c import backbone, backbone_name


# Rows of logits at a time: enough to keep a GPU busy, and for 150,000 words in fp32 about 150 MB.
ROWS = 256


class GivenOutput(BaseModelOutputWithPast):
    """A backbone's output. Fields of other families (router logits, image states) are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def standing_in(backbone: torch.nn.Module, hidden_states: torch.Tensor) -> torch.nn.Module:
    """Return a copy of a backbone, attributes and weights shared, that returns the given states as its last,
    whatever it is called with."""
    stand_in = copy.copy(backbone)
    # OPT calls its backbone's decoder.
    stand_in._modules = {
        name: standing_in(part, hidden_states) if name == "decoder" else part
        for name, part in backbone._modules.items()
    }
    stand_in.forward = lambda *args, **kwargs: GivenOutput(last_hidden_state=hidden_states)
    return stand_in


class RowLosses(torch.autograd.Function):
    """Cross-entropy, summed, of logits = head(hidden_states); each group of rows has its backward pass right
    after its forward pass."""

    @staticmethod
    def forward(context, hidden_states: torch.Tensor, targets: torch.Tensor, head) -> torch.Tensor:
        total, gradient = hidden_states.new_zeros((), dtype=torch.float32), torch.empty_like(hidden_states)
        for rows, target, into in zip(
            *(x.split(ROWS) for x in (hidden_states, targets, gradient)), strict=True
        ):
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                loss = F.cross_entropy(head(rows[None])[0].float(), target, reduction="sum")
            into.copy_(torch.autograd.grad(loss, rows)[0])
            total += loss.detach()
        context.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(context, output):
        return context.saved_tensors[0] * output.to(context.saved_tensors[0].dtype), None, None


def head_of(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the model's own way from its last hidden states (batch, length, hidden_size) to logits.

    Its `forward` runs with its backbone replaced, so that no arithmetic of its head is left out: Gemma 2 caps
    the logits, Cohere and Granite scale them. The class's `forward`: an instance's own (accelerate's hooks)
    would run that of the whole model.
    """

    def head(hidden_states: torch.Tensor) -> torch.Tensor:
        head_only = copy.copy(model)
        head_only._modules = {
            **model._modules,
            backbone_name(model): standing_in(backbone(model), hidden_states),
        }
        return type(model).forward(head_only, inputs_embeds=hidden_states, use_cache=False).logits

    return head


def loss_without_logits(
    model: PreTrainedModel,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return the loss of `model.loss_function`, computing logits of labelled positions only, some at a time.

    (Liger's fused loss needs CUDA, and `torch.nn.functional.linear_cross_entropy` a head that is one matmul.)

    Args:
        model: a causal language model whose parameters are frozen.
        hidden_states: (batch, length, hidden_size), its backbone's last.
        labels: (batch, length), -100 on positions without a label; the label of position t is the token that
            t - 1 predicts.
        num_items_in_batch: the divisor of the sum, instead of the number of labels.
    """
    head = head_of(model)
    labelled = labels[:, 1:] != -100
    rows = hidden_states[:, :-1][labelled.to(hidden_states.device)]
    targets = labels[:, 1:][labelled].to(hidden_states.device)
    items = len(targets) if num_items_in_batch is None else num_items_in_batch
    loss = RowLosses.apply(rows, targets, head)
    return loss / (items.to(loss.device) if isinstance(items, torch.Tensor) else items)
