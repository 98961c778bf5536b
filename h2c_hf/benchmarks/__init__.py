"""Benchmarks, each against a plain form, in one process, by turns; only ratios are worth quoting."""

import argparse
from importlib import import_module


# name: the module whose `main(arguments)` runs it and returns the exit status
BENCHMARKS = {
    "bridge": "h2c_hf.benchmarks.bridge",
    "generate": "h2c_hf.benchmarks.generate",
    "form": "h2c_hf.benchmarks.form",
    "load": "h2c_hf.benchmarks.load",
    "memory": "h2c_hf.benchmarks.memory",
    "train": "h2c_hf.benchmarks.train",
    "states": "h2c_hf.benchmarks.states",
    "encode": "h2c_hf.benchmarks.encode",
    "evaluate": "h2c_hf.benchmarks.evaluate",
    "turns": "h2c_hf.benchmarks.turns",
    "several_sharers": "h2c_hf.benchmarks.several_sharers",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    options = parser.parse_args(arguments)
    return import_module(BENCHMARKS[options.benchmark]).main(options.arguments)
