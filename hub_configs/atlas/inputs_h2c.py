"""Inputs of a language model, positions that skip padding; checks of prompts, caches and hidden states."""

import copy
import dataclasses

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast


# transformers 5.24 calls `past_key_values` `cache`, in calls and in outputs; earlier versions know the old
# name alone.
CACHE = (
    "cache"
    if "cache" in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
    else "past_key_values"
)


def model_inputs(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int = 0
) -> dict:
    """Inputs on the model's device, with position ids that count no padding, as `generate` counts."""
    device = execution_device(model)
    input_ids = input_ids.to(device)
    if attention_mask is None:
        attention_mask = torch.ones(len(input_ids), past + input_ids.shape[1], dtype=torch.long)
    attention_mask = attention_mask.to(device)
    position_ids = positions(attention_mask, input_ids.shape[1])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}


def execution_device(model: PreTrainedModel) -> torch.device:
    """Return the device on which a model computes. Its weights may be elsewhere, or on meta, until
    accelerate's hooks load them."""
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return model.device if device is None else torch.device(device)


def positions(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return the position ids (batch, length) of the last `length` columns, which count no padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


def one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """Return the cache that is given, by its older or its newer name.

    Raises:
        ValueError: if both are given.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("Got cache and past_key_values; expected one: they are two names for one argument.")
    return past_key_values if cache is None else cache


def to_fill(cache: Cache | None) -> bool:
    """Return whether a cache is to be filled: there is none, or an empty one, which any model fills.
    (`H2CSeveralSharers` marks the empty cache from which the Receiver answers alone.)"""
    return cache is None or (cache.get_seq_length() == 0 and not getattr(cache, "without_bridge", False))


def refuse_cache(arguments: dict, reason: str) -> None:
    """Remove from `arguments` the inputs that a wrapper makes: a cache, and the Sharer's hidden states.

    Raises:
        ValueError: if one is given.
    """
    given = {name: arguments.pop(name, None) for name in ("past_key_values", "cache", "sharer_hidden_states")}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is given; expected none: {reason}")


def check_tensors(**tensors: torch.Tensor | None) -> None:
    """
    Raises:
        ValueError: for something else in the place of a tensor.
    """
    for name, value in tensors.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{name} is a {type(value).__name__}; expected a tensor (batch, length). Pass a processor's "
                "output as **inputs, and arguments of generate by their names."
            )


def forked(cache: Cache) -> Cache:
    """The same cache to go on from (which extends it), so that the given one stays as it is; same tensors."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork


def check_goes_on(model, *roles: str) -> None:
    """Refuse a model whose reading cannot be resumed: it needs the Sharer, and caches that keep every token.

    Args:
        model: an `H2CForCausalLM`.
        roles: whose caches are kept: "sharer", "receiver".

    Raises:
        ValueError: if either is missing.
    """
    if model.sharer is None:
        raise ValueError(
            "This model was made without the Sharer's weights; expected a model that holds them."
        )
    for role in roles:
        layers = DynamicCache(config=getattr(model, role).config).layers
        if other := [layer for layer in layers if not isinstance(layer, DynamicLayer)]:
            raise ValueError(
                f"A layer of the {role.capitalize()} keeps a {type(other[0]).__name__}; expected keys and "
                "values of every token."
            )


def target_start(labels: torch.Tensor, input_ids: torch.Tensor) -> int:
    """The column in which the targets begin.

    Raises:
        ValueError: if there are no targets, or rows begin in different columns.
    """
    if labels.shape != input_ids.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; expected that of input_ids, {tuple(input_ids.shape)}."
        )
    if torch.compiler.is_exporting():
        raise ValueError("labels are given; expected none: where the targets begin cannot be exported.")
    labelled = labels != -100
    starts = labelled.int().argmax(1)[labelled.any(1)].unique().tolist()
    if len(starts) != 1:
        got = f"they begin in columns {starts}" if starts else "there is none"
        raise ValueError(f"All targets must begin in one column, right after the left-padded prompts; {got}.")
    return starts[0]


def check_dimensions(name: str, input_ids: torch.Tensor) -> None:
    """Refuse token ids that are no batch of rows.

    Raises:
        ValueError: with the shape.
    """
    if input_ids.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(input_ids.shape)}; expected (batch, length).")


def check_prompt(
    prefix: str,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    model: PreTrainedModel,
    least: int,
    bridged: bool = False,
    message_mask: torch.Tensor | None = None,
    more: int = 0,
) -> None:
    """Refuse prompts that would be misread without a word: too short, too long, or padded on the right.

    Args:
        least: the fewest tokens that a prompt must have.
        bridged: whether the prompt's keys and values are rewritten, so that all of them must be in the cache.
        message_mask: (batch, T), of a message that takes T more positions of the model's context window.
        more: tokens that the model writes after the prompt, and that must fit into its context window, too.

    Raises:
        ValueError: with the length that was got and the one that is possible.
    """
    name = f"{prefix}input_ids"
    if input_ids is None:
        raise ValueError(f"{name} is missing: got None, expected a prompt (batch, length).")
    check_tensors(**{name: input_ids, f"{prefix}attention_mask": attention_mask})
    check_dimensions(name, input_ids)
    shortest, longest = input_ids.shape[1], input_ids.shape[1]
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"{prefix}attention_mask has shape {tuple(attention_mask.shape)}; expected that of {name}, "
                f"{tuple(input_ids.shape)}."
            )
        # `torch.export` traces no checks of values.
        if input_ids.shape[1] and not torch.compiler.is_compiling():
            if (attention_mask[:, 1:] < attention_mask[:, :-1]).any():
                raise ValueError(
                    f"{name} is padded on the right; expected padding on the left (padding_side='left')."
                )
            lengths = attention_mask.sum(1)
            shortest, longest = int(lengths.min()), int(lengths.max())
    columns, also = input_ids.shape[1], ""
    if message_mask is not None and len(message_mask) == len(input_ids):
        columns, also = columns + message_mask.shape[1], " with the Sharer's message"
        if torch.compiler.is_compiling():
            longest = columns
        else:
            lengths = input_ids.shape[1] if attention_mask is None else attention_mask.sum(1).cpu()
            longest = int((message_mask.sum(1).cpu() + lengths).max())
    if shortest < least:
        what = (
            "at least 1 token"
            if least == 1
            else f"at least {least} tokens (one to bridge, and the kickstart)"
        )
        raise ValueError(f"A prompt in {name} is empty or too short: got {shortest} tokens, expected {what}.")
    window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if more:
        longest, also = longest + more, f" with a draft of {more}"
    if window is not None and 0 < window < longest:  # XLNet says -1 for no limit
        raise ValueError(
            f"A prompt in {name} is {longest} tokens long{also}; the context window of its model is {window}."
        )
    # A sliding layer keeps its window of the cache, padding counted, less one for the token that is read
    # next.
    layers = DynamicCache(config=model.config).layers if bridged else []
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    if windows and columns > min(windows):
        raise ValueError(
            f"The prompts in {name} are {columns} tokens long{also}, padding included; the Receiver has a "
            f"sliding window of {min(windows)}, and a prompt must fit into it to be bridged."
        )


def check_states(
    config, read_layers: list[int], sharer_hidden_states: tuple[torch.Tensor | None, ...]
) -> tuple[int, int]:
    """Refuse hidden states whose shapes are not the config's. Return their batch size and length."""
    expected = config.sharer_num_hidden_layers + 1
    if len(sharer_hidden_states) != expected:
        raise ValueError(
            f"Got {len(sharer_hidden_states)} Sharer hidden states; this bridge expects {expected} (its "
            "layers + 1)."
        )
    if absent := [index for index in read_layers if sharer_hidden_states[index] is None]:
        raise ValueError(f"Sharer hidden state {absent[0]} is None; this bridge reads {read_layers}.")
    batch, length, hidden_size = sharer_hidden_states[read_layers[0]].shape
    if hidden_size != config.sharer_hidden_size:
        raise ValueError(
            f"The Sharer's hidden states are {hidden_size} wide; this bridge expects "
            f"{config.sharer_hidden_size}."
        )
    return batch, length


def check_cache(config, layers: list[int], receiver_cache: Cache, batch: int) -> int:
    """Refuse a cache of another shape, or with a layer that keeps only a window. Return its length."""
    if len(receiver_cache.layers) != config.receiver_num_hidden_layers:
        raise ValueError(
            f"The Receiver's cache has {len(receiver_cache.layers)} layers; this bridge expects "
            f"{config.receiver_num_hidden_layers}."
        )
    length = receiver_cache.get_seq_length(layers[0])  # other layers may have a message already
    shape = (batch, config.receiver_num_key_value_heads, length, config.receiver_head_dim)
    for index in layers:
        layer = receiver_cache.layers[index]
        if not isinstance(layer, DynamicLayer):
            raise ValueError(
                f"Receiver layer {index} has a {type(layer).__name__}; a bridge rewrites a DynamicCache."
            )
        if layer.keys.shape[-2] < length:
            raise ValueError(
                f"Receiver layer {index} has a sliding window and kept {layer.keys.shape[-2]} of {length} "
                "positions; a prompt must fit into the window to be bridged."
            )
        for kind, states in (("keys", layer.keys), ("values", layer.values)):
            if tuple(states.shape) != shape:
                raise ValueError(
                    f"Receiver layer {index} has {kind} of shape {tuple(states.shape)}; expected {shape}."
                )
    return length


def check_mask(name: str, mask: torch.Tensor | None, batch: int, length: int) -> None:
    if mask is not None and tuple(mask.shape) != (batch, length):
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; expected {(batch, length)}.")
