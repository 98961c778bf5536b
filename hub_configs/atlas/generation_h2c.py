"""`generate`: the Receiver's own, which goes on from a bridged cache."""

import copy
from collections.abc import Callable

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, StaticCache

from .families_h2c import backbone_name, evaluating
from .inputs_h2c import (
    CACHE,
    check_dimensions,
    check_tensors,
    execution_device,
    one_cache,
    positions,
    to_fill,
)
from .message_h2c import message_length, message_mask
from .stock_h2c import check_arguments, second_position


CACHE_IMPLEMENTATIONS = (None, "dynamic", "static")
# A static cache is as long as a multiple of this: decoding, compiled once for a length, then serves prompts
# of like lengths.
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
        raise ValueError(
            f"cache_implementation is {name!r}; expected {expected}: the bridge writes whole keys and values "
            "on the device."
        )
    arguments.pop("cache_implementation", None)
    for config in configs:
        config.cache_implementation = None
    return name


def copies_of_each(arguments: dict, configs: list[GenerationConfig]) -> int:
    """`generate` repeats the prompt for beams and several sequences, but not a cache that it is given."""
    return max(setting(name, arguments, configs, 1) for name in ("num_beams", "num_return_sequences"))


def new_tokens(prompt_length: int, arguments: dict, configs: list[GenerationConfig]) -> int:
    """Return how many tokens may be generated. Stock: 20, if neither max_new_tokens nor max_length is set."""
    number = setting("max_new_tokens", arguments, configs)
    return max(20, setting("max_length", arguments, configs, 0) - prompt_length) if number is None else number


def own_defaults(config: GenerationConfig) -> GenerationConfig:
    """Return a copy of a published generation config, without the kind of cache that it names: it is meant
    for another model, and stock passes over it too ("hybrid", of Gemma). A caller's own is obeyed, or
    refused."""
    config = copy.deepcopy(config)
    config._from_model_config = False  # else fields that stock does not know are lost when it is loaded again
    if config.cache_implementation not in CACHE_IMPLEMENTATIONS:
        config.cache_implementation = None
    return config


def longrope_limit(config: PreTrainedConfig) -> int | None:
    """Return the position from which a model rotates by other angles (Phi-3 longrope), or None."""
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            return rope.get("original_max_position_embeddings") or text.original_max_position_embeddings
    return None


def check_rope(receiver: PreTrainedModel, prompt_mask: torch.Tensor, more: int) -> None:
    """Refuse a text that crosses `longrope_limit` after the prefill. Keys on the two sides of it do not
    belong together; stock reads the whole text again there, which would leave the bridge out.

    Args:
        prompt_mask: (batch, N), of the prompts.
        more: tokens that follow.

    Raises:
        ValueError: with both lengths.
    """
    limit = longrope_limit(receiver.config)
    if limit is None:
        return
    lengths = prompt_mask.sum(1)
    first, last = int(lengths.min()) - 1, int(lengths.max()) + more
    if first <= limit < last:
        raise ValueError(
            f"The text grows from {first} cached tokens to {last} and crosses {limit}, where "
            f"{type(receiver).__name__} changes its rotary embedding and the bridged cache loses its "
            f"meaning; keep prompt and answer within {limit} tokens, or make each prompt longer."
        )


def one_position_first(outputs):
    """Let assisted decoding return one position for each token, as other modes do from a filled cache.

    Its first entry of hidden states and attentions holds all candidates, and the entries for accepted
    candidates stand one position behind: stock takes the first pass for one over the whole prompt.
    """
    for name, dim in (("hidden_states", -2), ("attentions", -2)):
        entries = getattr(outputs, name, None)
        if not entries or entries[0][0].shape[dim] == 1:
            continue
        whole = tuple(all_columns(layer) if name == "attentions" else layer for layer in entries[0])
        storage, columns = whole[0].untyped_storage().data_ptr(), entries[0][0].shape[-1]
        entries = list(entries)
        for index, entry in enumerate(entries):
            # Of a later pass.
            if entry[0].untyped_storage().data_ptr() != storage or index >= whole[0].shape[dim]:
                break
            last = columns + index if name == "attentions" else columns
            entries[index] = tuple(layer.narrow(dim, index, 1)[..., :last] for layer in whole)
        outputs[name] = tuple(entries)
    return outputs


def all_columns(attention: torch.Tensor) -> torch.Tensor:
    """Return the attention of which the given one is the first columns."""
    return attention.as_strided((*attention.shape[:-1], attention.stride(-2)), attention.stride())


def into_static(
    cache: Cache,
    receiver: PreTrainedModel,
    prompt_length: int,
    arguments: dict,
    configs: list[GenerationConfig],
) -> Cache:
    """Move the contents of `cache` into a static cache with room for the new tokens; `cache` is emptied."""
    room = message_length(cache) + prompt_length + new_tokens(prompt_length, arguments, configs)
    length = -(-room // STATIC_STEP) * STATIC_STEP
    static = StaticCache(config=receiver.config, max_cache_len=length)
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:  # none is where the bridge is disabled
            static.update(layer.keys, layer.values, index)
            layer.keys = layer.values = None
    return static


def continuing_from_cache(
    receiver: PreTrainedModel, bridged: bool, message_mask: torch.Tensor | None = None
) -> PreTrainedModel:
    """Return a copy of the model, weights shared, that generates from a filled cache in every mode.

    Args:
        message_mask: (rows, T), if the cache begins with T positions of a message that no input ids stand
            for. Stock `generate` counts prompt and answer alone; the mask of the message is put before its
            own here, as PEFT does it for prefix tuning. So streamers, stopping criteria and logits processors
            see no placeholders, and the returned ids hold none.

    - Stock `_assisted_decoding` feeds the whole prompt in its first step whatever the cache holds, and is
      then silently wrong; the other modes slice the prompt.
    - Phi-3, PhiMoE and Phi-4-multimodal drop the cache at `original_max_position_embeddings`, and read the
      text again without a bridge. Only if the cache is bridged: the Receiver alone does as it does.
    - Qwen2-VL keeps `rope_deltas` of the batch before.
    - Models whose `forward` does not name `position_ids` get none, and count padding.
    """
    stock = receiver.prepare_inputs_for_generation
    length = 0 if message_mask is None else message_mask.shape[1]

    def prepare_inputs_for_generation(
        input_ids, next_sequence_length=None, is_first_iteration=False, **kwargs
    ):
        cache = kwargs.get(CACHE)
        if (
            is_first_iteration
            and cache is not None
            and (next_sequence_length is None or message_mask is not None)
        ):
            next_sequence_length = input_ids.shape[1] + length - cache.get_seq_length()
        mask = kwargs.get("attention_mask")
        if message_mask is not None and not (mask is None and message_mask.all()):
            given = torch.ones_like(input_ids) if mask is None else mask
            kwargs["attention_mask"] = torch.cat([message_mask.to(given), given], 1)
        arguments = {
            "next_sequence_length": next_sequence_length,
            "is_first_iteration": is_first_iteration,
            **kwargs,
        }
        inputs = stock(input_ids, **arguments)
        if bridged and cache is not None and inputs.get(CACHE) is not cache:
            inputs = GenerationMixin.prepare_inputs_for_generation(receiver, input_ids, **arguments)
        if (
            inputs.get("position_ids") is None
            and mask is not None
            and mask.dim() == 2
            and inputs.get("input_ids") is not None
        ):
            inputs["position_ids"] = positions(mask, inputs["input_ids"].shape[1])
        return inputs

    # A shallow copy, so that the Receiver itself stays as it is, also while another thread generates.
    body_name = backbone_name(receiver)
    if getattr(getattr(receiver, body_name, None), "rope_deltas", None) is not None:
        body = copy.copy(getattr(receiver, body_name))
        body.rope_deltas = None
        original, receiver = receiver, copy.copy(receiver)
        receiver._modules = {**original._modules, body_name: body}
    receiver = copy.copy(receiver)
    receiver.prepare_inputs_for_generation = prepare_inputs_for_generation
    return receiver


def keep_compiled(used: PreTrainedModel, receiver: PreTrainedModel) -> None:
    """Hand the code that `generate` compiled for a copy of the Receiver on to the next copy."""
    for name in ("_compiled_call", "_last_compile_config"):
        if name in vars(used):
            setattr(receiver, name, vars(used)[name])


class GeneratingMixin:
    """`generate` of `H2CForCausalLM`."""

    receiver: PreTrainedModel
    generation_config: GenerationConfig
    _bridge_disabled: bool
    draft: Callable
    bridged_cache: Callable

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sharer_input_ids: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
        sharer_hidden_states: tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        generation_config: GenerationConfig | None = None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """Generate with the Receiver's own `generate`, started on the bridged cache. All its arguments work,
        and its output is returned.

        Args:
            input_ids, attention_mask, sharer_input_ids, sharer_attention_mask, sharer_hidden_states: see
                `bridged_cache`.
            past_key_values: an empty cache, which is filled, or one that is bridged already, of all
                `input_ids` but the last.
            generation_config, kwargs: as for any model; the default is `self.generation_config`.
                `cache_implementation` is "dynamic" or "static" (on a GPU, decoding is then compiled into CUDA
                graphs, as transformers does it).
            cache: the newer name of `past_key_values`.
            sharer_max_new_tokens: let the Sharer write so many tokens first, which the bridge reads after its
                prompt: see `draft`. A setting like others: the default is
                `generation_config.sharer_max_new_tokens`, and 0 is no draft.
        """
        past_key_values = one_cache(past_key_values, cache)
        attention_mask, generation_config = second_position(attention_mask, generation_config)
        # `transformers serve` passes the processor, for stop strings.
        if (tokenizer := kwargs.get("tokenizer")) is not None:
            kwargs["tokenizer"] = getattr(tokenizer, "tokenizer", tokenizer)
        input_ids = kwargs.pop("inputs", None) if input_ids is None else input_ids
        check_arguments(input_ids, kwargs)
        check_tensors(input_ids=input_ids, attention_mask=attention_mask, sharer_input_ids=sharer_input_ids)
        if kwargs.pop("use_cache", None) is False:
            raise ValueError("use_cache is False; expected True: what the bridge writes is the cache.")
        kwargs.pop("prefill_chunk_size", None)  # the prompt is prefilled here, at once
        configs = [
            copy.deepcopy(config)
            for config in (generation_config, self.generation_config)
            if config is not None
        ]
        for config in configs:
            config.use_cache, config.prefill_chunk_size = True, None
        drafted = setting("sharer_max_new_tokens", kwargs, configs, 0)
        kwargs.pop("sharer_max_new_tokens", None)
        if drafted and not self._bridge_disabled:
            if sharer_input_ids is None or not to_fill(past_key_values) or sharer_hidden_states is not None:
                raise ValueError(
                    f"sharer_max_new_tokens is {drafted}, and the Sharer has read its prompt already; "
                    "expected sharer_input_ids, or 0."
                )
            _, sharer_attention_mask, sharer_hidden_states, _ = self.draft(
                sharer_input_ids, sharer_attention_mask, drafted
            )
        device = execution_device(self.receiver)
        check_dimensions("input_ids", input_ids)
        input_ids = input_ids.to(device)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
        if not self._bridge_disabled:
            check_rope(self.receiver, attention_mask, new_tokens(input_ids.shape[-1], kwargs, configs))
        implementation = cache_implementation(kwargs, configs) if past_key_values is None else None
        if past_key_values is None or (to_fill(past_key_values) and not self._bridge_disabled):
            sharer_inputs = sharer_input_ids, sharer_attention_mask, sharer_hidden_states
            past_key_values = self.bridged_cache(input_ids, attention_mask, *sharer_inputs, past_key_values)
        message = message_mask(past_key_values)
        if (copies := copies_of_each(kwargs, configs)) > 1:
            past_key_values.batch_repeat_interleave(copies)
            message = None if message is None else message.repeat_interleave(copies, 0)
        if implementation == "static":
            past_key_values = into_static(past_key_values, self.receiver, input_ids.shape[1], kwargs, configs)
        evaluating(self.receiver)
        receiver = continuing_from_cache(
            self.receiver, bridged=not self._bridge_disabled, message_mask=message
        )
        receiver.generation_config = configs[-1]
        outputs = receiver.generate(
            input_ids=input_ids, attention_mask=attention_mask, **{CACHE: past_key_values},
            generation_config=None if generation_config is None else configs[0], **kwargs,
        )  # fmt: skip
        keep_compiled(receiver, self.receiver)
        return outputs if self._bridge_disabled else one_position_first(outputs)
