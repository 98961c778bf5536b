"""How the two models' passes over a prompt are run: side by side, no more layers than are read, and no state
kept longer than it is."""

import contextlib
import copy
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .families_h2c import backbone


# With fewer tokens a pass through a large model hardly gets faster: it waits for the weights. By the ratio of
# arithmetic to bandwidth; on CPU, of 32 to 512, 96 and 128 read a batch of the scaled pair fastest (by 8 %).
PASS_TOKENS = {"cpu": 128, "cuda": 512}
# Settings with which a pass installs hooks on the layers, for good: a model is not pickled with them.
CAPTURED = ("output_hidden_states", "output_attentions", "output_router_logits")


@contextlib.contextmanager
def side_stream(device: torch.device):
    """Run the body on a second CUDA stream; elsewhere yield None. Call `join` before using the results.

    Two devices work in parallel anyway: nothing here waits for the first one.
    """
    if device.type != "cuda":
        yield None
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield stream


def join(stream, cache: Cache) -> None:
    """Let the current stream wait for a `side_stream`, which filled `cache`."""
    if stream is None:
        return
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    for layer in cache.layers:
        for states in (layer.keys, layer.values):
            # Else the allocator would hand their memory out again on the other stream.
            if isinstance(states, torch.Tensor):
                states.record_stream(current)


def passes_by_length(attention_mask: torch.Tensor, least: int) -> list[tuple[list[int], int]]:
    """Group the rows of a left-padded batch by length, shortest first. Return (rows, longest) of each group.

    A group takes rows until it has `least` tokens. All rows are one group if several would save less than a
    tenth of the tokens.
    """
    groups: list[tuple[list[int], int]] = [([], 0)]
    lengths = attention_mask.sum(1).tolist()
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows, length = groups[-1]
        if len(rows) * length >= least:
            groups.append(([row], lengths[row]))
        else:
            groups[-1] = ([*rows, row], lengths[row])
    longest = max(lengths)
    if sum(len(rows) * length for rows, length in groups) > 0.9 * len(lengths) * longest:
        return [(list(range(len(lengths))), longest)]
    return groups


def read_through(
    model: PreTrainedModel, inputs: dict, layers: list[int], take: Callable[[int, torch.Tensor], None]
) -> None:
    """Run a model without its LM head and, in most families, without the layers after the last of `layers`.

    transformers can leave hidden states out of its output, but not the work for them; and it returns them all
    at the end.

    Args:
        inputs: of the model's `forward`.
        layers: indices of hidden states, ascending.
        take: called with the index of each and the state, in that order; mostly as soon as it is there.
    """
    body, last = backbone(model), layers[-1]
    stack = getattr(body, "layers", None)
    plain = isinstance(stack, torch.nn.ModuleList) and isinstance(
        getattr(body, "norm", None), torch.nn.Module
    )
    # An instance with a `forward` of its own (accelerate's hooks) would run that of the whole.
    if not plain or "forward" in vars(body):
        body = without_hooks_for_good(body)
        # By index, where transformers knows so many layers (of Whisper it counts the encoder's). Older models
        # give every state anyway.
        selected = layers if last <= getattr(body.config, "num_hidden_layers", last) else True
        states = body(**inputs, output_hidden_states=selected).hidden_states
        for index in layers:
            take(index, states[index])
        return
    if any(getattr(body.config, name, False) for name in CAPTURED):
        maybe_install_capturing_hooks(body)  # on the layers that both share: once
    stack = list(stack)[: max(1, last)]
    for index in layers:
        if index < len(stack):
            stack[index] = watched(stack[index], partial(take, index))
    trimmed = copy.copy(body)
    norm = body.norm if last == len(body.layers) else without_effect(body.norm)
    trimmed._modules = {**body._modules, "layers": torch.nn.ModuleList(stack), "norm": norm}
    state = trimmed(**inputs, output_hidden_states=False).last_hidden_state
    if last == len(stack):
        take(last, state)


def without_hooks_for_good(model: torch.nn.Module) -> torch.nn.Module:
    """Return the same modules, weights shared, on which a pass can install hooks that the given ones do not
    get. (Those of a model with accelerate's hooks run each other, so they are returned as they are.)"""

    def copied(module: torch.nn.Module) -> torch.nn.Module:
        module = copy.copy(module)
        module._forward_hooks = module._forward_hooks.copy()
        module._modules = {
            name: child if child is None else copied(child) for name, child in module._modules.items()
        }
        return module

    return model if any("forward" in vars(module) for module in model.modules()) else copied(model)


def without_effect(module: torch.nn.Module) -> torch.nn.Module:
    """The same module, whose weights others may read, that returns its input."""
    module = copy.copy(module)
    module.forward = lambda x, *args, **kwargs: x
    return module


def watched(layer: torch.nn.Module, take: Callable[[torch.Tensor], None]) -> torch.nn.Module:
    """Return a copy of a layer, with shared weights, that hands its input to `take` first.

    A copy and not a hook on the layer itself: other threads run the layer too.
    """
    layer = copy.copy(layer)
    layer._forward_pre_hooks = layer._forward_pre_hooks.copy()
    layer._forward_pre_hooks_with_kwargs = layer._forward_pre_hooks_with_kwargs.copy()
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: take(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    return layer


def in_groups(
    groups: dict[tuple[int, int], list[int]], rewrite: Callable[[tuple[int, int], dict], None]
) -> Callable:
    """Return a `take` for `read_through` that calls `rewrite(group, states)` as soon as a group is complete.

    Hidden states that no later group reads are released.

    Args:
        groups: the indices of the hidden states that each reads.
    """
    waiting, states = dict(groups), {}

    def take(index: int, state: torch.Tensor) -> None:
        states[index] = state
        while waiting and states.keys() >= set(next(iter(waiting.values()))):
            group = next(iter(waiting))
            rewrite(group, states)
            del waiting[group]
            for done in states.keys() - {read for reads in waiting.values() for read in reads}:
                del states[done]

    return take
