"""The plan and the needs of a run, before any weights are loaded: `h2c train CONFIG.yaml --dry_run`."""

import math

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..modeling import H2CBridgeConfig, H2CBridgeModel
from ..pair import Pair
from .arguments import H2CArguments, H2CTrainingArguments
from .callbacks import PARTS
from .data import Data, Lengths


# Bytes a parameter: NF4 holds 4 bits and a scale (fp32) for every 64 of them.
QUANTIZED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
ADAMW_BYTES = 4 + 8  # of fp32 master weights: gradient, two moments


def describe(h2c: H2CArguments, training: H2CTrainingArguments, pair: Pair, data: Data) -> str:
    """The plan as text."""
    config = pair.bridge_config()
    lengths = data.lengths
    return "\n".join(
        [
            *bridge_lines(config),
            "",
            data.describe(),
            "",
            *step_lines(training, data, lengths),
            "",
            *estimate(h2c, training, pair, config, lengths),
        ]
    )


def bridge_parameters(config: H2CBridgeConfig) -> dict[str, int]:
    """Parameters by part of a block (attention, ffn, gate), over all blocks."""
    with torch.device("meta"):
        bridge = H2CBridgeModel(config)
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in bridge.named_parameters():
        sizes[next(part for part, modules in PARTS.items() if name.split(".")[0] in modules)] += (
            parameter.numel()
        )
    return sizes


def bridge_lines(config: H2CBridgeConfig) -> list[str]:
    sizes, blocks = bridge_parameters(config), 2 * len(config.alignment)
    if config.bridge_form == "message":
        lines = [
            f"Bridge: {sum(sizes.values()):,} parameters; a message of one cache position a Sharer token in "
            f"{blocks // 2} layers"
        ]
    else:
        lines = [
            f"Bridge: {sum(sizes.values()):,} parameters in {blocks} blocks (keys and values of "
            f"{blocks // 2} Receiver layers)"
        ]
        lines += [
            f"  {part:<10} {size // blocks:>12,} a block {size:>14,}" for part, size in sizes.items() if size
        ]
    read = ", ".join(f"{layer}<-{index}" for layer, index in config.alignment)
    return [*lines, f"  Receiver layer <- Sharer hidden state: {read}"]


def step_lines(training: H2CTrainingArguments, data: Data, lengths: Lengths) -> list[str]:
    batch = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    lines = [
        f"Step: {batch} examples ({training.train_batch_size} a device x {training.world_size} "
        f"device{'s' * (training.world_size > 1)} x {training.gradient_accumulation_steps} accumulated)",
        f"  about {batch * lengths.sharer:,.0f} Sharer, {batch * lengths.prompt:,.0f} Receiver prompt and "
        f"{batch * lengths.target:,.0f} target tokens a step (means of {lengths.counted:,} examples)",
    ]
    steps = training.max_steps
    if steps <= 0:
        steps = math.ceil(
            training.num_train_epochs * math.ceil((len(data.train) + len(data.guards or ())) / batch)
        )
    return [*lines, f"  {steps:,} steps"]


def estimate(
    h2c: H2CArguments, training: H2CTrainingArguments, pair: Pair, config: H2CBridgeConfig, lengths: Lengths
) -> list[str]:
    """Return the lines about memory. A failed estimate stops no run: a family may name widths otherwise."""
    try:
        return memory_lines(memory(h2c, training, pair, config, lengths))
    except Exception as error:
        return [f"Peak memory a device: not estimated ({type(error).__name__}: {error})."]


def inner_width(text: PreTrainedConfig) -> int:
    """Return the width of a model's FFN, by the names that families have for it."""
    names = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    return next((width for name in names if (width := getattr(text, name, None))), 4 * text.hidden_size)


def memory(
    h2c: H2CArguments, training: H2CTrainingArguments, pair: Pair, config: H2CBridgeConfig, lengths: Lengths
) -> dict[str, float]:
    """Estimated peak bytes on one device by part. Weights, gradients and optimizer are exact; activations are
    those of a batch of the longest examples, counted by the tensors that backward keeps, and come out within
    a factor of about two."""
    batch, blocks, size = training.train_batch_size, 2 * len(config.alignment), config.receiver_size
    half = 2 if training.bf16 or training.fp16 else 4
    sharer, receiver = pair.config("sharer"), pair.config("receiver")
    parameters = sum(bridge_parameters(config).values())
    parts = {"Receiver weights": weight_bytes(receiver, h2c.base_dtype, "none")}
    sharer_tokens, prompt_tokens, target_tokens = (
        batch * length for length in (lengths.sharer_max, lengths.prompt_max, lengths.target_max)
    )
    if not (h2c.sharer_states or h2c.blank_sharer):
        text = sharer.get_text_config(decoder=True)
        parts["Sharer weights"] = weight_bytes(sharer, h2c.base_dtype, h2c.sharer_quantization)
        parts["Sharer pass (one layer)"] = (
            half * sharer_tokens * (3 * inner_width(text) + 6 * text.hidden_size)
        )
    parts["bridge weights, fp32"] = 4 * parameters
    parts["gradients and AdamW, fp32"] = ADAMW_BYTES * parameters
    read = len(config.read_layers)
    parts["Sharer hidden states"] = half * sharer_tokens * read * config.sharer_hidden_size
    # By position: normalised states, their keys and values; queries, FFN in and out, and their inputs.
    bridged = blocks // 2 * sharer_tokens * config.sharer_hidden_size + 2 * blocks * sharer_tokens * size
    bridged += blocks * prompt_tokens * size * (6 + 2 * config.ffn_multiplier)
    parts["bridge activations"] = half * bridged
    text = receiver.get_text_config(decoder=True)
    per_token = text.num_hidden_layers * (3 * inner_width(text) + 10 * text.hidden_size)
    parts["Receiver target pass"] = (
        half * target_tokens * per_token + (half + 8) * target_tokens * text.vocab_size
    )
    return parts


def weight_bytes(config: PreTrainedConfig, dtype: str, quantization: str) -> float:
    """Bytes of a model's weights: linear layers but the head quantized, the rest in `dtype`."""
    wide = torch.finfo(getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32).bits / 8
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head
    )
    total = model.num_parameters()
    return (total - linear) * wide + linear * QUANTIZED_BYTES.get(quantization, wide)


def memory_lines(parts: dict[str, float]) -> list[str]:
    lines = [f"  {part:<28} {size / 2**20:>12,.1f} MiB" for part, size in parts.items()]
    return [f"Peak memory a device, estimated: {sum(parts.values()) / 2**20:,.0f} MiB", *lines]
