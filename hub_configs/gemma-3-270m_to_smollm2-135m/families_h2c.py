"""Base models of different families: their backbones, their devices, and which of them can be joined."""

import copy
from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .inputs_h2c import CACHE, check_cache, check_states, forked, model_inputs


# Families that number positions by column, or keep a state that runs on over padding, whatever the attention
# mask says: a left-padded prompt then reads otherwise than alone.
READS_PADDING = (
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus",
    "plbart", "prophetnet", "rwkv", "trocr", "xlstm",
)  # fmt: skip
READS_PADDING_FROM_CACHE = ("git", "roformer")
# ALiBi by column: the distance from the prompt to a message before it would count the prompt's padding.
READS_PADDING_AFTER_MESSAGE = ("mpt",)


def backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its LM head. (`base_model` may be the whole model, as in Llama 4.)"""
    return getattr(model, backbone_name(model), model)


def backbone_name(model: PreTrainedModel) -> str:
    """Return the attribute that holds the backbone."""
    return model.base_model_prefix if model.base_model_prefix in model._modules else "model"


def freeze(model: PreTrainedModel) -> None:
    """Make a base model's parameters constants, and keep its LM head fast.

    `torch.nn.functional.linear` folds the rows of a slice, as `hidden_states[:, -1:]` in stock models, into
    one product only if the weights need gradients (`should_fold` in ATen). Otherwise it multiplies row by
    row: in bfloat16 on a CPU, with 262,144 words, a row took 10 s instead of 0.2.
    """
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Module) and plain_layout not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(plain_layout)


def plain_layout(head: torch.nn.Module, inputs: tuple) -> tuple | None:
    """Copy a slice (batch, length, hidden_size) into a tensor of its own before an LM head."""
    states = inputs[0]
    if states.dim() == 3 and states.stride(0) != states.shape[1] * states.stride(1):
        return (states.clone(memory_format=torch.contiguous_format), *inputs[1:])
    return None


def check_recomputable(model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: if its layers are not a list in its backbone.
    """
    if not isinstance(getattr(backbone(model), "layers", None), torch.nn.ModuleList):
        raise ValueError(
            f"The layers of {type(model).__name__} are not in backbone.layers, where they can be computed "
            "again."
        )


def recomputing(model: PreTrainedModel, checkpoint: Callable, every_n_layers: int) -> PreTrainedModel:
    """Return the same model, weights shared, of which each n-th layer keeps only its inputs and is computed
    again in the backward pass.

    Each layer extends a fork of the cache: a cache that was extended in the forward pass would be extended
    again. (Stock gradient checkpointing drops the cache.)

    Args:
        checkpoint: as `torch.utils.checkpoint.checkpoint`.
    """
    layers = [
        layer if index % every_n_layers else recomputed(layer, checkpoint)
        for index, layer in enumerate(backbone(model).layers)
    ]
    body = copy.copy(backbone(model))
    body._modules = {**body._modules, "layers": torch.nn.ModuleList(layers)}
    model = copy.copy(model)
    model._modules = {**model._modules, backbone_name(model): body}
    return model


def recomputed(layer: torch.nn.Module, checkpoint: Callable) -> torch.nn.Module:
    """Return the same layer, weights shared, computed again in the backward pass."""
    forward, layer = layer.forward, copy.copy(layer)

    def checkpointed(hidden_states: torch.Tensor, *args, **kwargs):
        def run(hidden_states: torch.Tensor):
            return forward(hidden_states, *args, **{**kwargs, CACHE: forked(kwargs[CACHE])})

        return checkpoint(run, hidden_states, use_reentrant=False)  # else no gradient reaches the cache

    layer.forward = checkpointed
    return layer


def check_joined(model) -> None:
    """Run both base models on three tokens, so that a pair that cannot be joined is refused early.

    Args:
        model: an `H2CForCausalLM`. Models that are partly on disk are not run, since that takes long.

    Raises:
        ValueError: in one sentence, if a model reads padding, gives other hidden states or another cache than
            its config says, or cannot go on from a cache that it is given.
    """
    for role, check in (("sharer", check_sharer), ("receiver", check_receiver)):
        base = getattr(model, role)
        if base is None or any(parameter.is_meta for parameter in base.parameters()):
            continue
        refusal = f"{type(base).__name__} cannot be the {role.capitalize()}"
        family = base.config.get_text_config(decoder=True).model_type
        if family in READS_PADDING + (READS_PADDING_FROM_CACHE if role == "receiver" else ()):
            raise ValueError(f"{refusal}: it reads left padding as if it were text.")
        message = role == "receiver" and model.config.bridge_form == "message"
        if message and family in READS_PADDING_AFTER_MESSAGE:
            raise ValueError(
                f"{refusal} of a message: it reads left padding after one as if it were text; expected "
                "bridge_form 'rewrite'."
            )
        try:
            check(model, base, torch.ones(1, 3, dtype=torch.long))
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{refusal}: {reason}") from error


def check_sharer(model, sharer: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """
    Raises:
        ValueError: if its hidden states are not those of the config.
    """
    states = model.read(input_ids, layers=model.bridge.read_layers)
    for index in model.bridge.read_layers:
        if tuple(states[index].shape[:2]) != tuple(input_ids.shape) or states[index].dim() != 3:
            raise ValueError(
                f"hidden state {index} has shape {tuple(states[index].shape)}; expected (batch, length, "
                "size)."
            )
    check_states(model.config, model.bridge.read_layers, states)


def check_receiver(model, receiver: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """
    Raises:
        ValueError: if its cache is not that of the config, or a step from the cache does not lengthen it.
    """
    cache, layers = DynamicCache(config=receiver.config), [layer for layer, _ in model.bridge.alignment]
    for layer in cache.layers:
        # Others keep more, which the bridge does not rewrite.
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(
                f"a layer keeps a {type(layer).__name__}; expected keys and values of every token."
            )
    try:
        kept = model.prefill(input_ids, cache=cache)
    except (KeyError, IndexError) as error:
        raise ValueError("it returns no cache of its own keys and values.") from error
    if kept is not cache:
        raise ValueError(f"it returns a {type(kept).__name__}; expected the DynamicCache that it is given.")
    check_cache(model.config, layers, cache, len(input_ids))
    length = input_ids.shape[1] - 1
    if cache.get_seq_length() != length:
        raise ValueError(
            f"its cache holds {cache.get_seq_length()} positions of a prompt of {length}; expected as many."
        )
    with torch.no_grad():
        inputs = model_inputs(receiver, input_ids[:, -1:], None, past=length)
        outputs = receiver(**inputs, **{CACHE: cache}, use_cache=True)
    if outputs[CACHE].get_seq_length() != length + 1:
        raise ValueError("it does not go on from a cache that it is given.")


__all__ = ["backbone", "backbone_name", "check_joined", "check_recomputable", "recomputing"]


def evaluating(frozen: PreTrainedModel) -> None:
    """Put a frozen model into eval mode if it is in training mode. (`eval` walks all modules: as long as a
    layer of a small model.)"""
    if frozen.training:
        frozen.eval()
