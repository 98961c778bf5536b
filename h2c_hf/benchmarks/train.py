"""`scripts/benchmark.py train`: our training step against the first implementation's (`per_layer`).

Both steps are forward, backward, clipping and AdamW on the same frozen pair (random weights), with equal
bridges and the same batches, by turns in one process. That both compute the same loss is checked first.

Memory is the most bytes alive in a step beyond weights and moments; the ratio with both is beside it.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from matplotlib.figure import Figure

from ..modeling import H2CForCausalLM
from ..visualization.style import BLUE, GREY
from . import per_layer
from .measure import command, device_to_measure, now, peak_bytes, report, settings, spread
from .pairs import PAIRS, first_way, pair


# Of log lengths; four prompts then fill about three quarters of their batch, as the result says.
SPREAD = 0.35
STEPS = ("ours", "first")


def main(arguments: list[str] | None = None) -> int:
    parser = command("train", __doc__)
    parser.add_argument(
        "--batch",
        type=int,
        default=4,
        help="examples a batch (default: 4, as in the reference training.yaml)",
    )
    parser.add_argument(
        "--prompt_tokens",
        type=int,
        default=64,
        help="median length of a prompt; 64 in that mixture (default)",
    )
    parser.add_argument(
        "--target_tokens", type=int, default=64, help="median length of a target (default: 64)"
    )
    parser.add_argument("--dropout", type=float, default=0.1, help="of both bridges (default: 0.1)")
    parser.add_argument("--rounds", type=int, default=10, help="batches that are measured (default: 10)")
    return report(parser.parse_args(arguments), measure, describe, draw)


def measure(options: argparse.Namespace) -> dict:
    """All rounds; times in seconds, memory in bytes."""
    torch.manual_seed(options.seed)
    device = device_to_measure()
    model = pair(PAIRS[options.pair], options.dropout, device)
    first = first_way(model, device)
    batches = [random_batch(model, options) for _ in range(options.rounds)]
    check_same_loss(model, first, batches[0])
    bridges = {"ours": model.bridge, "first": first}
    steps = {"ours": our_step(model), "first": first_step(model, first)}
    for step in steps.values():
        step(batches[0])  # makes the optimizer's moments, warms up

    seconds, peak = ({name: [] for name in STEPS} for _ in range(2))
    for number, batch in enumerate(batches):
        for name in STEPS if number % 2 else STEPS[::-1]:
            start = now(device)
            steps[name](batch)
            seconds[name].append(now(device) - start)
            # Gradients that a step leaves behind are part of the next one's peak.
            held = sum(p.grad.nbytes for p in bridges[name].parameters() if p.grad is not None)
            peak[name].append(held + peak_bytes(partial(steps[name], batch), device))
    frozen = sum(
        p.numel() * p.element_size() for p in (*model.sharer.parameters(), *model.receiver.parameters())
    )
    kept = frozen + 3 * sum(p.numel() * p.element_size() for p in first.parameters())
    ratios = {
        "throughput": [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)],
        "memory": [ours / theirs for ours, theirs in zip(*peak.values(), strict=True)],
        "memory_with_weights": [
            (kept + ours) / (kept + theirs) for ours, theirs in zip(*peak.values(), strict=True)
        ],
    }
    return {
        **settings(options, device),
        "filled": [float(batch["sharer_attention_mask"].float().mean()) for batch in batches],
        "seconds": seconds,
        "peak_bytes": peak,
        "kept_bytes": kept,
        "ratios": {name: spread(x) for name, x in ratios.items()},
    }


def random_batch(model: H2CForCausalLM, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """A batch as `H2CCollator` makes it, of random tokens; lengths are log-normal."""

    def mask(median: int) -> torch.Tensor:
        lengths = (median * torch.exp(SPREAD * torch.randn(options.batch))).round().clamp(min=2)
        return (torch.arange(int(lengths.max())) < lengths[:, None]).long()

    def tokens(model, mask: torch.Tensor) -> torch.Tensor:
        return torch.randint(1, model.config.vocab_size, mask.shape) * mask

    prompt_mask, target_mask = mask(options.prompt_tokens).flip(1), mask(options.target_tokens)
    prompt, target = tokens(model.receiver, prompt_mask), tokens(model.receiver, target_mask)
    batch = {
        "input_ids": torch.cat([prompt, target], 1),
        "attention_mask": torch.cat([prompt_mask, target_mask], 1),
        "labels": torch.cat([torch.full_like(prompt, -100), target.masked_fill(target_mask == 0, -100)], 1),
        "sharer_input_ids": tokens(model.sharer, prompt_mask),
        "sharer_attention_mask": prompt_mask,
    }
    return {name: tensor.to(model.receiver.device) for name, tensor in batch.items()}


def check_same_loss(model: H2CForCausalLM, first: per_layer.PerLayerBridge, batch: dict) -> None:
    """
    Raises:
        ValueError: if the two steps would not do the same work.
    """
    model.eval(), first.eval()
    with torch.no_grad(), autocast(model):
        ours, theirs = float(model(**batch).loss), float(per_layer.loss(model, first, batch))
    model.train(), first.train()
    if abs(ours - theirs) > (1e-4 if model.receiver.dtype == torch.float32 else 5e-2):
        raise ValueError(f"The two steps differ: our loss is {ours}, the first implementation's {theirs}.")


def autocast(model: H2CForCausalLM):
    return torch.autocast("cuda", torch.bfloat16, enabled=model.receiver.dtype == torch.bfloat16)


def our_step(model: H2CForCausalLM) -> Callable[[dict], None]:
    """Do the Trainer's work of a step: its clipping, and its default optimizer."""
    optimizer = torch.optim.AdamW(model.bridge.parameters(), lr=1e-4, fused=True)

    def step(batch):
        with autocast(model):
            loss = model(**batch, skip_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.bridge.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def first_step(model: H2CForCausalLM, bridge: per_layer.PerLayerBridge) -> Callable[[dict], None]:
    optimizer = torch.optim.AdamW(bridge.parameters(), lr=1e-4)

    def step(batch):
        with autocast(model):
            loss = per_layer.loss(model, bridge, batch)
        per_layer.update(bridge, optimizer, loss)

    return step


def describe(result: dict) -> str:
    titles = {
        "throughput": "throughput, ours / first",
        "memory": "peak memory of a step beyond weights, ours / first",
        "memory_with_weights": "peak memory with weights and moments, ours / first",
    }
    options = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    lines = [
        f"{options}; {result['device']}; prompts fill {100 * statistics.mean(result['filled']):.0f} % of "
        "their batches"
    ]
    lines += [f"{'':<52} {'min':>7} {'median':>7} {'max':>7}"]
    lines += [
        f"{titles[key]:<52} {x['min']:>7.2f} {x['median']:>7.2f} {x['max']:>7.2f}"
        for key, x in result["ratios"].items()
    ]
    return "\n".join(lines)


def draw(result: dict) -> Figure:
    """Time and memory of every measured step, and their medians."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    titles = {"ours": "ours", "first": "first implementation"}
    panels = (
        ("seconds", 1e3, "throughput", "time of a step, ms"),
        ("peak_bytes", 1e-6, "memory", "peak memory beyond weights, MB"),
    )
    for axes, (key, unit, ratio, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for row, (name, shade) in enumerate((("first", GREY), ("ours", BLUE))):
            values = [unit * value for value in result[key][name]]
            axes.barh(row, statistics.median(values), color=shade, height=0.6, alpha=0.5)
            axes.plot(values, [row] * len(values), "|", color=shade, ms=12, mew=1.5)
        axes.set_yticks([0, 1], [titles["first"], titles["ours"]] if key == "seconds" else ["", ""])
        axes.set(xlabel=label, xlim=(0, None))
        values = result["ratios"][ratio]
        axes.set_title(f"{ratio} x {values['median']:.2f} ({values['min']:.2f} - {values['max']:.2f})")
    return figure
