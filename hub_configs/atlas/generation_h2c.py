"""What it takes for the Receiver's own `generate` to go on from a bridged cache."""

import copy

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, StaticCache

from .inputs_h2c import CACHE, positions
from .message_h2c import message_length


CACHE_IMPLEMENTATIONS = (None, "dynamic", "static")
# A static cache is as long as a multiple of this: decoding, compiled once for a length, then serves prompts of like lengths.
STATIC_STEP = 128


def setting(name: str, arguments: dict, configs: list[GenerationConfig], default=None):
    """As `generate` has it: an argument, then the config that was given, then the model's."""
    values = [arguments.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in values if value is not None), default)


def cache_implementation(arguments: dict, configs: list[GenerationConfig]) -> str | None:
    """The setting, taken out of where it stands: `generate` refuses it beside a cache.

    Raises:
        ValueError: for a kind of cache that is not written here.
    """
    name = setting("cache_implementation", arguments, configs)
    if name not in CACHE_IMPLEMENTATIONS:
        expected = " or ".join(repr(known) for known in CACHE_IMPLEMENTATIONS[1:])
        raise ValueError(f"cache_implementation is {name!r}; expected {expected}: the bridge writes whole keys and values on the device.")
    arguments.pop("cache_implementation", None)
    for config in configs:
        config.cache_implementation = None
    return name


def copies_of_each(arguments: dict, configs: list[GenerationConfig]) -> int:
    """`generate` repeats the prompt for beams and several sequences, but not a cache that it is given."""
    return max(setting(name, arguments, configs, 1) for name in ("num_beams", "num_return_sequences"))


def into_static(cache: Cache, receiver: PreTrainedModel, prompt_length: int, arguments: dict, configs: list[GenerationConfig]) -> Cache:
    """A static cache with what `cache` holds and with room for what is generated. `cache` is emptied on the way."""
    new_tokens = setting("max_new_tokens", arguments, configs)
    if new_tokens is None:  # stock: 20 more, where max_length is not set either
        new_tokens = max(20, setting("max_length", arguments, configs, 0) - prompt_length)
    length = -(-(message_length(cache) + prompt_length + new_tokens) // STATIC_STEP) * STATIC_STEP
    static = StaticCache(config=receiver.config, max_cache_len=length)
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:  # none is where the bridge is disabled
            static.update(layer.keys, layer.values, index)
            layer.keys = layer.values = None
    return static


def continuing_from_cache(receiver: PreTrainedModel, message_mask: torch.Tensor | None = None) -> PreTrainedModel:
    """Return a copy of the model, weights shared, that generates from a filled cache in every mode and family.

    Args:
        message_mask: (rows, T), if the cache begins with T positions of a message that no input ids stand for. Stock `generate` counts
            prompt and answer alone; the mask of the message is put before its own here, as PEFT does it for prefix tuning. So
            streamers, stopping criteria and logits processors see no placeholders, and the returned ids hold none.

    - Stock `_assisted_decoding` feeds the whole prompt in its first step whatever the cache holds, and is then silently wrong; the
      other modes slice the prompt.
    - Phi-3, PhiMoE and Phi-4-multimodal drop the cache at `original_max_position_embeddings`, and read the text again without a bridge.
    - Models whose `forward` does not name `position_ids` get none, and count padding.
    """
    stock = receiver.prepare_inputs_for_generation
    length = 0 if message_mask is None else message_mask.shape[1]

    def prepare_inputs_for_generation(input_ids, next_sequence_length=None, is_first_iteration=False, **kwargs):
        cache = kwargs.get(CACHE)
        if is_first_iteration and cache is not None and (next_sequence_length is None or message_mask is not None):
            next_sequence_length = input_ids.shape[1] + length - cache.get_seq_length()
        mask = kwargs.get("attention_mask")
        if message_mask is not None and not (mask is None and message_mask.all()):
            given = torch.ones_like(input_ids) if mask is None else mask
            kwargs["attention_mask"] = torch.cat([message_mask.to(given), given], 1)
        arguments = {"next_sequence_length": next_sequence_length, "is_first_iteration": is_first_iteration, **kwargs}
        inputs = stock(input_ids, **arguments)
        if cache is not None and inputs.get(CACHE) is not cache:
            inputs = GenerationMixin.prepare_inputs_for_generation(receiver, input_ids, **arguments)
        if inputs.get("position_ids") is None and mask is not None and mask.dim() == 2 and inputs.get("input_ids") is not None:
            inputs["position_ids"] = positions(mask, inputs["input_ids"].shape[1])
        return inputs

    # A shallow copy, so that the Receiver itself stays as it is, also while another thread generates.
    receiver = copy.copy(receiver)
    receiver.prepare_inputs_for_generation = prepare_inputs_for_generation
    return receiver


def keep_compiled(used: PreTrainedModel, receiver: PreTrainedModel) -> None:
    """Hand what `generate` compiled for a copy of the Receiver on to the next copy."""
    for name in ("_compiled_call", "_last_compile_config"):
        if name in vars(used):
            setattr(receiver, name, vars(used)[name])
