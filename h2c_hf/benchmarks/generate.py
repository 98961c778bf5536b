"""`scripts/benchmark.py generate`: how close H2C comes to its floor, by turns in one process.

Time to first token, `generate(max_new_tokens=1)`, over the floor: the Sharer's backbone (all its layers), the
Receiver's prefill of all but the last token and one Receiver step, each as its own model runs it; and over
the Sharer's own time to first token. Tokens a second after the first, H2C over the Receiver alone. And the
time of the first implementation's bridged cache (`per_layer`) over ours.
"""

import argparse
from statistics import median

import torch
from tqdm.auto import tqdm
from transformers import StoppingCriteria
from transformers.cache_utils import DynamicCache

from ..modeling import H2CForCausalLM
from ..modeling.inputs_h2c import CACHE
from . import per_layer
from .measure import (
    add_sizes,
    by_turns,
    command,
    device_to_measure,
    draw_ratios,
    now,
    ratio_rows,
    report,
    settings,
    sizes,
)
from .pairs import PAIRS, first_way, pair, random_prompts


NEW_TOKENS = 32
TITLES = {
    "over_floor": "over the floor", "over_sharer": "over the Sharer's own",
    "throughput": "tokens/s over Receiver", "first_over_ours": "first way / ours",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = command("generate", __doc__)
    add_sizes(parser, batches=[1, 8], tokens=[32, 128, 512, 1024, 4096], rounds=5)
    return report(
        parser.parse_args(arguments),
        measure,
        describe,
        lambda result: draw_ratios(result["sizes"], "over_floor", "time to first token / floor", 1.05),
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
    return {**settings(options, device), "new_tokens": NEW_TOKENS, "sizes": rows}


def measure_size(model, first, batch: int, tokens: int, rounds: int, device) -> dict:
    """Seconds and ratios of one size."""
    prompts = random_prompts(model, batch, tokens)
    parts = floor_parts(model, prompts)
    ways = {
        "h2c": lambda: answer(model, prompts, 1),
        "first": lambda: per_layer.bridged_cache(model, first, prompts),
        "sharer_alone": lambda: answer(model.sharer, own_prompts(prompts, "sharer_"), 1),
        **parts,
    }
    seconds = by_turns(ways, rounds, device)
    floor = [sum(values) for values in zip(*(seconds[name] for name in parts), strict=True)]
    asked = {"h2c": (model, prompts), "receiver": (model.receiver, own_prompts(prompts, ""))}
    seconds["after_first"] = seconds_after_first(asked, rounds, device)
    return {
        "batch": batch, "tokens": tokens, "seconds": seconds,
        "over_floor": ratio_rows(seconds["h2c"], floor),
        "over_sharer": ratio_rows(seconds["h2c"], seconds["sharer_alone"]),
        "throughput": ratio_rows(seconds["after_first"]["receiver"], seconds["after_first"]["h2c"]),
        "first_over_ours": ratio_rows(seconds["first"], seconds["h2c"]),
    }  # fmt: skip


def seconds_after_first(asked: dict[str, tuple], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds that `NEW_TOKENS` tokens take after the first one, by round. asked: {name: (model,
    prompts)}."""
    clocks = {name: Clock(device) for name in asked}
    by_turns(
        {name: lambda name=name: answer(*asked[name], 1 + NEW_TOKENS, clocks[name]) for name in asked},
        rounds,
        device,
    )
    return {name: clock.seconds[1:] for name, clock in clocks.items()}  # without the round to warm up


def floor_parts(model: H2CForCausalLM, prompts: dict[str, torch.Tensor]) -> dict:
    """Time the steps that cannot be spared, each step as its model runs it by itself."""
    ids, sharer_ids = prompts["input_ids"], prompts["sharer_input_ids"]
    filled = model.receiver.base_model(ids[:, :-1], use_cache=True)[CACHE]

    def step():
        model.receiver(ids[:, -1:], **{CACHE: filled}, use_cache=True)
        filled.crop(-1)

    return {
        "sharer": lambda: model.sharer.base_model(sharer_ids, use_cache=False),
        "prefill": lambda: model.receiver.base_model(ids[:, :-1], **{CACHE: DynamicCache()}, use_cache=True),
        "step": step,
    }


class Clock(StoppingCriteria):
    """Seconds from the first token to the last, of each call of `generate`. Never stops it."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, []

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        if input_ids.shape[1] == self.prompt_length + 1:
            self.first = now(self.device)
        if input_ids.shape[1] == self.prompt_length + 1 + NEW_TOKENS:
            self.seconds.append(now(self.device) - self.first)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def own_prompts(prompts: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Of one model by itself."""
    return {name: prompts[f"{prefix}{name}"] for name in ("input_ids", "attention_mask")}


def answer(
    model, prompts: dict[str, torch.Tensor], new_tokens: int, clock: Clock | None = None
) -> torch.Tensor:
    kwargs = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    if clock is not None:
        clock.prompt_length = prompts["input_ids"].shape[1]
        kwargs["stopping_criteria"] = [clock]
    return model.generate(**prompts, **kwargs)


def describe(result: dict) -> str:
    lines = [f"pair {result['settings']['pair']}; {result['device']}; min / median / max over rounds"]
    lines.append(
        f"{'batch':>6} {'tokens':>7} {'first token, ms':>16}"
        + "".join(f"{title:>24}" for title in TITLES.values())
    )
    for row in result["sizes"]:
        cells = [" / ".join(f"{row[key][name]:.2f}" for name in ("min", "median", "max")) for key in TITLES]
        first = 1e3 * median(row["seconds"]["h2c"])
        lines.append(
            f"{row['batch']:>6} {row['tokens']:>7} {first:>16.1f}" + "".join(f"{cell:>24}" for cell in cells)
        )
        shares = {name: 1e3 * median(row["seconds"][name]) for name in ("sharer", "prefill", "step")}
        lines.append(
            f"{'':>15}of which at least: "
            + ", ".join(f"{name} {value:.1f} ms" for name, value in shares.items())
        )
    return "\n".join(lines)
