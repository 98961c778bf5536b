"""`scripts/benchmark.py form`: the cost of the message form, by turns in one process.

Time to first token over the floor (see `scripts/benchmark.py generate`); tokens a second after the first over
those of the Receiver alone with a prompt of as many positions, message and prompt together; and a training
step over one of the rewriting form.
"""

import argparse

import torch
from tqdm.auto import tqdm

from ..modeling import H2CBridgeConfig, H2CForCausalLM
from .generate import NEW_TOKENS, answer, floor_parts, seconds_after_first
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
from .pairs import PAIRS, pair, random_prompts
from .train import our_step, random_batch


FORMS = ("message", "rewrite")
TITLES = {"over_floor": "first token over the floor", "throughput": "tokens/s over Receiver"}


def main(arguments: list[str] | None = None) -> int:
    parser = command("form", __doc__)
    parser.add_argument(
        "--training_batch",
        type=int,
        default=4,
        help="examples of a training step; 0 measures none (default: 4)",
    )
    add_sizes(parser, batches=[1], tokens=[128, 512], rounds=5)
    return report(
        parser.parse_args(arguments),
        measure,
        describe,
        lambda result: draw_ratios(result["sizes"], "over_floor", "time to first token / floor", 1.05),
    )


def measure(options: argparse.Namespace) -> dict:
    """All sizes, and the training step."""
    torch.manual_seed(options.seed)
    device = device_to_measure()
    models = forms(PAIRS[options.pair], device)
    with torch.inference_mode():
        rows = [
            measure_size(models["message"].eval(), *size, options.rounds, device)
            for size in tqdm(sizes(options), unit="size")
        ]
    parameters = {name: model.bridge.num_parameters() for name, model in models.items()}
    result = {**settings(options, device), "new_tokens": NEW_TOKENS, "parameters": parameters, "sizes": rows}
    return result | (
        {"training": measure_training(models, options, device)} if options.training_batch else {}
    )


def forms(scale: int, device: torch.device) -> dict[str, H2CForCausalLM]:
    """The pair with a new bridge of either form, both as `from_pair` makes them."""
    model = pair(scale, 0.0, device)
    configs = {
        form: H2CBridgeConfig.from_pair(
            model.sharer.config, model.receiver.config, bridge_form=form, dropout=0.0
        )
        for form in FORMS
    }
    return {
        form: H2CForCausalLM(config, model.sharer, model.receiver).to(device)
        for form, config in configs.items()
    }


def measure_size(model: H2CForCausalLM, batch: int, tokens: int, rounds: int, device: torch.device) -> dict:
    """Seconds and ratios of one size."""
    prompts = random_prompts(model, batch, tokens)
    parts = floor_parts(model, prompts)
    seconds = by_turns({"h2c": lambda: answer(model, prompts, 1), **parts}, rounds, device)
    floor = [sum(values) for values in zip(*(seconds[name] for name in parts), strict=True)]
    # A message of as many positions stands before the prompt.
    longer = random_prompts(model, batch, 2 * tokens)
    alone = {name: longer[name] for name in ("input_ids", "attention_mask")}
    asked = {"h2c": (model, prompts), "receiver": (model.receiver, alone)}
    seconds["after_first"] = seconds_after_first(asked, rounds, device)
    return {
        "batch": batch, "tokens": tokens, "seconds": seconds,
        "over_floor": ratio_rows(seconds["h2c"], floor),
        "throughput": ratio_rows(seconds["after_first"]["receiver"], seconds["after_first"]["h2c"]),
    }  # fmt: skip


def measure_training(
    models: dict[str, H2CForCausalLM], options: argparse.Namespace, device: torch.device
) -> dict:
    """Seconds of a training step of either form on one batch, and their ratio."""
    lengths = argparse.Namespace(batch=options.training_batch, prompt_tokens=64, target_tokens=16)
    batch = random_batch(models["message"], lengths)
    steps = {form: our_step(model.train()) for form, model in models.items()}
    seconds = by_turns({form: lambda form=form: steps[form](batch) for form in steps}, options.rounds, device)
    return {"seconds": seconds, "over_rewrite": ratio_rows(seconds["message"], seconds["rewrite"])}


def describe(result: dict) -> str:
    parameters = ", ".join(f"{name} {number:,}" for name, number in result["parameters"].items())
    lines = [
        f"pair {result['settings']['pair']}; {result['device']}; parameters: {parameters}; min / median / "
        "max over rounds"
    ]
    lines.append(f"{'batch':>6} {'tokens':>7}" + "".join(f"{title:>30}" for title in TITLES.values()))
    for row in result["sizes"]:
        lines.append(
            f"{row['batch']:>6} {row['tokens']:>7}" + "".join(f"{span(row[key]):>30}" for key in TITLES)
        )
    if "training" in result:
        lines.append(f"training step over the rewriting form's: {span(result['training']['over_rewrite'])}")
    return "\n".join(lines)


def span(row: dict[str, float]) -> str:
    return " / ".join(f"{row[name]:.2f}" for name in ("min", "median", "max"))
