"""The common parts of the benchmarks: clocks, the most bytes alive, turns, and how results are kept.

Time: on CUDA by the clock, synchronised; on CPU the process's CPU seconds on one thread, which other
processes disturb least. Memory: on CUDA the allocator's own peak, on CPU the running sum of every allocation
and release that torch.profiler records.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib
import torch
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

from ..visualization.style import BLUE, GREEN, ORANGE, PURPLE, THEMES, VERMILLION
from .pairs import PAIRS


SHADES = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE)


def device_to_measure() -> torch.device:
    """CUDA if there is one; else the CPU, from now on with one thread."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu, 1 thread"


def now(device: torch.device) -> float:
    """Seconds."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def by_turns(
    ways: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after a round to warm up; the order changes from round to round."""
    seconds = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            start = now(device)
            ways[name]()
            taken = now(device) - start
            if number:
                seconds[name].append(taken)
    return seconds


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes alive in a step beyond those before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(
        itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    )


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def ratio_rows(above: list[float], below: list[float]) -> dict[str, float]:
    """The spread of the ratios, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def command(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a benchmark on a pair of random weights: `pair`, `seed` and `output`."""
    parser = argparse.ArgumentParser(
        prog=f"benchmark.py {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--pair",
        choices=PAIRS,
        default="scaled",
        help="scaled: 1/16 of the reference pair's widths (default)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, help="a .json file for the results; the figure goes beside it as .png"
    )
    return parser


def report(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict],
    describe: Callable[[dict], str],
    draw: Callable[[dict], Figure],
) -> int:
    """Measure, print, save. Returns the exit status."""
    result = measure(options)
    print(describe(result))
    save(result, options.output, draw)
    return 0


def add_sizes(parser: argparse.ArgumentParser, batches: list[int], tokens: list[int], rounds: int) -> None:
    """The options of a sweep over batch sizes and prompt lengths."""
    parser.add_argument(
        "--batches", type=int, nargs="+", default=batches, help="prompts a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=tokens,
        help="tokens a prompt, of either model (default: %(default)s)",
    )
    parser.add_argument(
        "--most_tokens",
        type=int,
        default=2**14,
        help="a batch with more tokens is left out (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="of every size (default: %(default)s)")


def sizes(options: argparse.Namespace) -> list[tuple[int, int]]:
    return [
        size
        for size in itertools.product(options.batches, options.tokens)
        if size[0] * size[1] <= options.most_tokens
    ]


def settings(options: argparse.Namespace, device: torch.device) -> dict:
    kept = {name: value for name, value in vars(options).items() if name != "output"}
    return {"settings": kept, "device": name_of(device), "torch": torch.__version__}


def save(result: dict, output: Path | None, draw: Callable[[dict], Figure]) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
        with matplotlib.rc_context(THEMES["light"].settings):
            draw(result).savefig(output.with_suffix(".png"))


def draw_ratios(rows: list[dict], key: str, label: str, target: float | None = None) -> Figure:
    """`rows` have `batch`, `tokens` and a spread under `key`: a line a batch size, over prompt tokens."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, batch in enumerate(sorted({row["batch"] for row in rows})):
        own = [row for row in rows if row["batch"] == batch]
        tokens, middle = [row["tokens"] for row in own], [row[key]["median"] for row in own]
        shade = SHADES[number % len(SHADES)]
        axes.plot(tokens, middle, "o-", color=shade, label=f"batch {batch}")
        axes.fill_between(
            tokens,
            [row[key]["min"] for row in own],
            [row[key]["max"] for row in own],
            color=shade,
            alpha=0.15,
            lw=0,
        )
    if target is not None:
        axes.axhline(target, color="0.4", lw=1, ls="--", label=f"target {target}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        sorted({row["tokens"] for row in rows}),
        [f"{tokens:,}" for tokens in sorted({row["tokens"] for row in rows})],
    )
    axes.minorticks_off()
    axes.set(xlabel="prompt, tokens", ylabel=label, ylim=(0, None))
    figure.legend(loc="outside right upper")
    return figure
