"""`scripts/benchmark.py bridge`: the bridge alone, ours (folded and as it is trained) against the first
implementation's modules (`per_layer`), on the same states and cache, by turns in one process. That both give
the same cache is checked first."""

import argparse
import copy
from statistics import median

import torch
from tqdm.auto import tqdm

from .measure import (
    add_sizes,
    by_turns,
    command,
    device_to_measure,
    draw_ratios,
    ratio_rows,
    report,
    settings,
    sizes,
)
from .pairs import PAIRS, first_way, pair, random_prompts


def main(arguments: list[str] | None = None) -> int:
    parser = command("bridge", __doc__)
    add_sizes(parser, batches=[1, 4, 8, 32], tokens=[32, 64, 128, 256, 512], rounds=5)
    return report(
        parser.parse_args(arguments),
        measure,
        describe,
        lambda result: draw_ratios(result["sizes"], "folded", "time of the first / ours, folded", 1.0),
    )


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict:
    torch.manual_seed(options.seed)
    device = device_to_measure()
    model = pair(PAIRS[options.pair], 0.0, device).eval()
    first = first_way(model, device).eval().to(model.bridge.dtype)
    folded = copy.deepcopy(model.bridge)
    folded.fold()
    rows = [
        measure_size(model, folded, first, *size, options.rounds, device)
        for size in tqdm(sizes(options), unit="size")
    ]
    medians = {name: median(row[name]["median"] for row in rows) for name in ("folded", "trained")}
    return {**settings(options, device), "sizes": rows, "median": medians}


def measure_size(model, folded, first, batch: int, tokens: int, rounds: int, device) -> dict:
    """Seconds and ratios of one size."""
    prompts = random_prompts(model, batch, tokens)
    states = model.read(prompts["sharer_input_ids"], None, model.bridge.read_layers)
    cache = model.prefill(prompts["input_ids"])
    states = tuple(None if state is None else state.to(model.bridge.dtype) for state in states)
    ways = {
        "folded": lambda: folded(states, cache),
        "trained": lambda: model.bridge(states, cache),
        "first": lambda: first(states, cache, None),
    }
    check_same(*(way() for way in ways.values()))
    seconds = by_turns(ways, rounds, device)
    ratios = {name: ratio_rows(seconds["first"], seconds[name]) for name in ("folded", "trained")}
    return {"batch": batch, "tokens": tokens, "seconds": seconds, **ratios}


def check_same(ours, trained, theirs) -> None:
    """
    Raises:
        ValueError: if the ways would not do the same work.
    """
    for layers in zip(ours.layers, trained.layers, theirs.layers, strict=True):
        for kind in ("keys", "values"):
            a, b, c = (getattr(layer, kind).float() for layer in layers)
            if not (
                torch.allclose(a, c, atol=2e-3, rtol=1e-2) and torch.allclose(b, c, atol=2e-3, rtol=1e-2)
            ):
                raise ValueError(
                    f"The bridges differ: the largest difference in {kind} is {float((a - c).abs().max())}."
                )


def describe(result: dict) -> str:
    lines = [
        f"pair {result['settings']['pair']}; {result['device']}; time of the first implementation's bridge / "
        "ours"
    ]
    lines.append(
        f"{'batch':>6} {'tokens':>7} {'ours, ms':>10}   {'folded: min median max':>24}   "
        f"{'as trained: min median max':>28}"
    )
    for row in result["sizes"]:
        spreads = [
            " ".join(f"{row[name][key]:6.2f}" for key in ("min", "median", "max"))
            for name in ("folded", "trained")
        ]
        ours = 1e3 * median(row["seconds"]["folded"])
        lines.append(
            f"{row['batch']:>6} {row['tokens']:>7} {ours:>10.1f}   {spreads[0]:>24}   {spreads[1]:>28}"
        )
    lines.append(
        f"median over sizes: folded {result['median']['folded']:.2f}, as trained "
        f"{result['median']['trained']:.2f}"
    )
    return "\n".join(lines)
