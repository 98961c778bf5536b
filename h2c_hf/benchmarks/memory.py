"""`scripts/benchmark.py memory`: the most bytes alive while a bridged cache is made, beyond weights and
prompts, ours against the first implementation's way (`per_layer`); and how memory and time grow with the
length of a prompt."""

import argparse

import torch
from tqdm.auto import tqdm

from . import per_layer
from .measure import (
    add_sizes,
    by_turns,
    command,
    device_to_measure,
    draw_ratios,
    peak_bytes,
    report,
    settings,
    sizes,
    spread,
)
from .pairs import PAIRS, first_way, pair, random_prompts


def main(arguments: list[str] | None = None) -> int:
    parser = command("memory", __doc__)
    add_sizes(parser, batches=[1, 8], tokens=[128, 256, 512, 1024, 2048, 4096], rounds=1)
    return report(
        parser.parse_args(arguments),
        measure,
        describe,
        lambda result: draw_ratios(result["sizes"], "ratio", "peak memory, ours / first", 0.4),
    )


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict:
    torch.manual_seed(options.seed)
    device = device_to_measure()
    model = pair(PAIRS[options.pair], 0.0, device).eval()
    first = first_way(model, device).eval()
    model.bridge.fold()
    rows = [
        measure_size(model, first, *size, options.rounds, device)
        for size in tqdm(sizes(options), unit="size")
    ]
    return {**settings(options, device), "sizes": rows}


def measure_size(model, first, batch: int, tokens: int, rounds: int, device) -> dict:
    """Bytes and seconds of one size."""
    prompts = random_prompts(model, batch, tokens)
    states = model.read(prompts["sharer_input_ids"], None, model.bridge.read_layers)
    cache = model.prefill(prompts["input_ids"])
    ways = {
        "ours": lambda: model.bridged_cache(**prompts),
        "first": lambda: per_layer.bridged_cache(model, first, prompts),
        "bridge": lambda: model.bridge(states, cache),
    }
    peaks = {name: peak_bytes(way, device) for name, way in ways.items()}
    seconds = by_turns({name: ways[name] for name in ("ours", "bridge")}, rounds, device)
    return {
        "batch": batch,
        "tokens": tokens,
        "peak_bytes": peaks,
        "seconds": seconds,
        "ratio": spread([peaks["ours"] / peaks["first"]]),
    }


def describe(result: dict) -> str:
    titles = ("batch", "tokens", "ours, MB", "first, MB", "ratio", "bridge, kB/token", "ours, us/token")
    lines = [
        f"pair {result['settings']['pair']}; {result['device']}",
        "".join(f"{title:>18}" for title in titles),
    ]
    for row in result["sizes"]:
        peaks, total = row["peak_bytes"], row["batch"] * row["tokens"]
        megabytes = [f"{peaks[name] / 1e6:.1f}" for name in ("ours", "first")]
        a_token = [f"{peaks['bridge'] / total / 1e3:.1f}", f"{1e6 * min(row['seconds']['ours']) / total:.1f}"]
        cells = [f"{row['batch']}", f"{row['tokens']}", *megabytes, f"{row['ratio']['median']:.2f}", *a_token]
        lines.append("".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
