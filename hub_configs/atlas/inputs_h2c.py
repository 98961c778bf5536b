"""What a language model is given: inputs with positions that skip padding, and the checks that refuse what it would misread."""

import copy
import dataclasses

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast


# transformers 5.24 calls `past_key_values` `cache`, in calls and in outputs; earlier versions know the old name alone.
CACHE = "cache" if "cache" in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"
# With fewer tokens a pass through a large model hardly gets faster: it waits for the weights. By the ratio of arithmetic to bandwidth;
# on CPU, of 32 to 512, 96 and 128 read a batch of the scaled pair fastest (by 8 %).
PASS_TOKENS = {"cpu": 128, "cuda": 512}


def model_inputs(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int = 0) -> dict:
    """Inputs on the model's device, with position ids that count tokens and not padding, as `generate` counts them."""
    input_ids = input_ids.to(model.device)
    if attention_mask is None:
        attention_mask = torch.ones(len(input_ids), past + input_ids.shape[1], dtype=torch.long)
    attention_mask = attention_mask.to(model.device)
    position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}


def forked(cache: Cache) -> Cache:
    """The same cache to go on from (which extends it), so that the given one stays as it is; same tensors."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork


def check_goes_on(model, *roles: str) -> None:
    """What goes on from what was read before needs the Sharer itself, and keys and values that can be gone on from.

    Args:
        model: an `H2CForCausalLM`.
        roles: whose caches are kept: "sharer", "receiver".

    Raises:
        ValueError: where one is missing.
    """
    if model.sharer is None:
        raise ValueError("This model was made without the Sharer's weights; expected a model that holds them.")
    for role in roles:
        layers = DynamicCache(config=getattr(model, role).config).layers
        if other := [layer for layer in layers if not isinstance(layer, DynamicLayer)]:
            raise ValueError(
                f"A layer of the {role.capitalize()} keeps a {type(other[0]).__name__}; expected keys and values of every token."
            )


def passes_by_length(attention_mask: torch.Tensor, least: int) -> list[tuple[list[int], int]]:
    """Rows of a left-padded batch (batch, length) in groups of like lengths, shortest first: (rows, the longest's length) of each.
    A group takes rows until it has `least` tokens. All rows are one group where several would spare less than a tenth of the tokens."""
    groups = [([], 0)]
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


def target_start(labels: torch.Tensor, input_ids: torch.Tensor) -> int:
    """The column in which the targets begin.

    Raises:
        ValueError: where there is none, or rows begin in different columns.
    """
    if labels.shape != input_ids.shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; expected that of input_ids, {tuple(input_ids.shape)}.")
    labelled = labels != -100
    starts = labelled.int().argmax(1)[labelled.any(1)].unique().tolist()
    if len(starts) != 1:
        got = f"they begin in columns {starts}" if starts else "there is none"
        raise ValueError(f"All targets must begin in one column, right after the left-padded prompts; {got}.")
    return starts[0]


def check_prompt(
    prefix: str, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, model: PreTrainedModel, least: int, bridged: bool = False
) -> None:
    """Refuse prompts that would be misread without a word: too short, too long, or padded on the right."""
    name = f"{prefix}input_ids"
    if input_ids.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(input_ids.shape)}; expected (batch, length).")
    shortest, longest = input_ids.shape[1], input_ids.shape[1]
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"{prefix}attention_mask has shape {tuple(attention_mask.shape)}; expected that of {name}, {tuple(input_ids.shape)}."
            )
        if input_ids.shape[1]:
            if (attention_mask[:, 1:] < attention_mask[:, :-1]).any():
                raise ValueError(f"{name} is padded on the right; expected padding on the left (padding_side='left').")
            lengths = attention_mask.sum(1)
            shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < least:
        what = "at least 1 token" if least == 1 else f"at least {least} tokens (one to bridge, and the kickstart)"
        raise ValueError(f"A prompt in {name} is empty or too short: got {shortest} tokens, expected {what}.")
    window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if window is not None and longest > window:
        raise ValueError(f"A prompt in {name} is {longest} tokens long; the context window of its model is {window}.")
    # A sliding layer keeps its window of the cache, padding counted, less one for the token that is read next.
    layers = DynamicCache(config=model.config).layers if bridged else []
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    if windows and input_ids.shape[1] > min(windows):
        raise ValueError(
            f"The prompts in {name} are {input_ids.shape[1]} tokens long, padding included; the Receiver has a sliding window "
            f"of {min(windows)}, and a prompt must fit into it to be bridged."
        )
