"""Requests, settings and models that the vLLM connector refuses, before vLLM would answer wrongly."""

import os

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

from ..modeling import H2CForCausalLM
from .bridging import Prompt


OPTIONS = {"bridge", "urls", "async", "dtype", "device", "max_batch_tokens", "cache_bytes", "timeout"}


def read_request(request, params: dict) -> Prompt | str:
    """A bridged request's prompt, or why it is refused: an exception here would end the engine."""
    sharer_ids, expected = params.get("sharer_input_ids"), params.get("input_ids")
    if (
        not isinstance(sharer_ids, list)
        or not sharer_ids
        or not all(type(token) is int and token >= 0 for token in sharer_ids)
    ):
        return (
            "kv_transfer_params has no sharer_input_ids; expected a list of token ids, or "
            '{"h2c": false} for the Receiver alone.'
        )
    if params.get("control") not in (None, "zeros"):
        return f"control is {params['control']!r}; expected 'zeros' or null."
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "The prompt has embeddings; expected token ids."
    if request.num_prompt_tokens < 2:
        return (
            f"The prompt has {request.num_prompt_tokens} token; expected at least 2 (one to bridge, and the "
            "kickstart)."
        )
    if request.skip_reading_prefix_cache:
        return "vLLM loads nothing for a request with prompt_logprobs; leave them out."
    if request.lora_request is not None:
        return "The request has a LoRA adapter; a bridge was trained for the Receiver without one."
    if expected is not None and expected != list(request.prompt_token_ids):
        return (
            "vLLM made another prompt of the request than the bridge's processor; send it as a chat "
            "completion."
        )
    message = params.get("message_tokens", 0)
    if (
        type(message) is not int
        or message not in (0, len(sharer_ids))
        or message > request.num_prompt_tokens - 2
    ):
        return (
            f"message_tokens is {message!r}; expected 0, or the {len(sharer_ids)} Sharer tokens, before at "
            "least 2 of the prompt."
        )
    return Prompt(tuple(request.prompt_token_ids[message:]), tuple(sharer_ids), params.get("control"))


def check_vllm(vllm_config, kv_cache_config, options: dict) -> None:
    """Refuse settings under which vLLM would answer wrongly, or without the bridge.

    Raises:
        ValueError: naming the setting and the value to set.
    """
    if unknown := options.keys() - OPTIONS:
        raise ValueError(
            f"kv_connector_extra_config has {sorted(unknown)[0]!r}; expected some of "
            f"{', '.join(sorted(OPTIONS))}."
        )
    if ("bridge" in options) == ("urls" in options):
        raise ValueError(
            "kv_connector_extra_config has both or neither of 'bridge' and 'urls'; expected one of them."
        )
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if len(specs) != 1 or not isinstance(specs[0], FullAttentionSpec):
        kinds = ", ".join(type(spec).__name__ for spec in specs)
        raise ValueError(
            f"The Receiver has {len(specs)} KV cache groups ({kinds}); expected one, of full attention: no "
            "sliding windows."
        )
    # vLLM gives sliding layers the blocks of full attention where a model has both kinds, and notes the
    # window.
    if window := specs[0].sliding_window or specs[0].attention_chunk_size:
        raise ValueError(
            f"Layers of the Receiver attend to {window} positions; expected full attention: no sliding "
            "windows."
        )
    policy = vllm_config.kv_transfer_config.kv_load_failure_policy
    if policy != "fail":
        raise ValueError(
            f"kv_load_failure_policy is {policy!r}, which answers without the bridge when it fails; expected "
            "'fail'."
        )
    cache_dtype = vllm_config.cache_config.cache_dtype
    if cache_dtype not in ("auto", str(vllm_config.model_config.dtype).removeprefix("torch.")):
        raise ValueError(
            f"kv_cache_dtype is {cache_dtype!r}; expected 'auto': bridged keys and values are not quantized."
        )
    parallel = vllm_config.parallel_config
    for name in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) != 1:
            raise ValueError(
                f"{name} is {getattr(parallel, name)}; expected 1: each worker writes all layers and "
                "positions."
            )
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method not in ("ngram", "ngram_gpu"):
        raise ValueError(
            f"The speculative method is {speculative.method!r}, whose draft model reads no bridged cache; "
            "expected 'ngram'."
        )


def check_receiver(facts: dict, model_config) -> None:
    """Compare a bridge's Receiver with the model that vLLM runs: shapes, and Hub ids where both have one.

    Raises:
        ValueError: naming the first field that differs.
    """
    config = model_config.hf_text_config
    for name, expected in facts["receiver"].items():
        got = getattr(config, name, expected)
        if got != expected:
            raise ValueError(
                f"The bridge was made for another Receiver: its {name} is {expected}, and that of "
                f"{model_config.model} is {got}."
            )
    expected = facts["receiver_model_id"]
    hub_ids = [
        name
        for name in (expected, model_config.model)
        if name and not os.path.isdir(name) and not name.startswith((".", "/"))
    ]
    if len(hub_ids) == 2 and hub_ids[0] != hub_ids[1]:
        raise ValueError(f"The bridge was made for the Receiver {expected}; vLLM runs {model_config.model}.")


def check_memory(model: H2CForCausalLM, device: torch.device) -> None:
    """Refuse to start if the models do not fit beside vLLM's own memory, which it takes first.

    Raises:
        ValueError: with the bytes that are missing.
    """
    if device.type != "cuda":
        return
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free, total = torch.cuda.mem_get_info(device)
    if needed > 0.9 * free:
        share = (needed / 0.9 - free) / total
        raise ValueError(
            f"The bridge's models need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on "
            f"{device}. Lower --gpu-memory-utilization by at least {share:.2f}, or run a bridge server."
        )
