"""How the two models' passes over a prompt are run: no more layers than are read, and side by side."""

import contextlib
import copy

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.output_capturing import maybe_install_capturing_hooks


@contextlib.contextmanager
def beside(device: torch.device):
    """On CUDA, a stream for what is launched in here, beside the device's own; None elsewhere. `join` ends it. (Two devices work side
    by side anyway, since nothing here waits for the one that is launched first.)"""
    if device.type != "cuda":
        yield None
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield stream


def join(stream, cache: Cache) -> None:
    """What the device does from now on comes after what was launched `beside`, which filled `cache`."""
    if stream is None:
        return
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    for layer in cache.layers:
        for states in (layer.keys, layer.values):
            if isinstance(states, torch.Tensor):  # else the allocator would hand their memory out again on the other stream
                states.record_stream(current)


def backbone_up_to(model: PreTrainedModel, layers: list[int] | None) -> torch.nn.Module:
    """The model without LM head and, where it is built as most are, without what comes after the last of `layers`; weights shared.

    transformers can leave hidden states out of what it returns, but not the work for them.
    """
    backbone = model.base_model
    stack = getattr(backbone, "layers", None)
    plain = isinstance(stack, torch.nn.ModuleList) and isinstance(getattr(backbone, "norm", None), torch.nn.Module)
    # An instance with a `forward` of its own (accelerate's hooks) would run that of the whole.
    if not layers or not plain or max(layers) >= len(stack) or "forward" in vars(backbone):
        return backbone
    maybe_install_capturing_hooks(backbone)  # on the layers that both share: once
    trimmed = copy.copy(backbone)
    trimmed._modules = {**backbone._modules, "layers": stack[: max(1, *layers)], "norm": torch.nn.Identity()}
    return trimmed
