"""Encoding of real conversations against two plain calls of `apply_chat_template`, by turns:
`python scripts/benchmark.py encode`.

The plain form tokenizes the two prompts only: no target, special tokens in messages not guarded. "encode" is
`encode_example`, one conversation at a time; "batched" is the way that training encodes, 100 conversations at
a time.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import median

import torch

from ..data.examples import encode_example, encode_rendered, render_example
from ..data.rows import spread_rows
from ..data.sources import DataSource, reader
from ..data.tokenizers import load_tokenizer
from ..modeling import H2CProcessor
from .measure import by_turns, ratio_rows


BATCH = 100


def measure_encoding(processor: H2CProcessor, exchanges: list[tuple], rounds: int) -> dict:
    """CPU seconds of each way in each round, and the ratios to the plain form."""
    tokenizers = processor.sharer_tokenizer, processor.receiver_tokenizer

    def plain() -> None:
        for conversation, _ in exchanges:
            for tokenizer in tokenizers:
                tokenizer.apply_chat_template(conversation, add_generation_prompt=True)

    def one_at_a_time() -> None:
        for exchange in exchanges:
            encode_example(processor, *exchange)

    def batched() -> None:
        for start in range(0, len(exchanges), BATCH):
            encode_rendered(
                processor,
                [render_example(processor, *exchange) for exchange in exchanges[start : start + BATCH]],
            )

    ways = {"plain": plain, "encode": one_at_a_time, "batched": batched}
    seconds = by_turns(ways, rounds, torch.device("cpu"))
    ratios = {name: ratio_rows(seconds[name], seconds["plain"]) for name in ("encode", "batched")}
    return {"conversations": len(exchanges), "rounds": rounds, "seconds": seconds, "ratios": ratios}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py encode", description=__doc__)
    parser.add_argument(
        "--real",
        type=Path,
        default=os.environ.get("H2C_REAL_DATA"),
        help="default: the folder that H2C_REAL_DATA names",
    )
    parser.add_argument(
        "--sharer", default="llama-3.1", help="tokenizer in that folder, or a model's (default: %(default)s)"
    )
    parser.add_argument("--receiver", default="qwen2.5", help="the same (default: %(default)s)")
    parser.add_argument(
        "--conversations", type=int, default=300, help="spread over all (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    options = parser.parse_args(arguments)
    if options.real is None:
        raise SystemExit(
            "H2C_REAL_DATA is not set; expected it, or --real DIR, to name the folder of real conversations "
            "and tokenizers."
        )
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core, whatever the batch
    folders = [options.real / "tokenizers" / name for name in (options.sharer, options.receiver)]
    names = [str(folder) if folder.is_dir() else folder.name for folder in folders]
    source = DataSource(str(options.real / "instructions" / "train.jsonl"))
    records = source.load()
    read = reader(records.column_names, source)
    # Some records have no answer: a few more are read than are asked for.
    found = [
        exchange
        for row in spread_rows(len(records), 2 * options.conversations)
        for exchange in _exchanges(read, records[row])
    ]
    exchanges = [found[row] for row in spread_rows(len(found), options.conversations)]
    result = measure_encoding(H2CProcessor(*map(load_tokenizer, names)), exchanges, options.rounds)
    for name, seconds in result["seconds"].items():
        ratio = (
            "" if name == "plain" else f", {result['ratios'][name]['median']:.2f} times the two plain calls"
        )
        print(f"{name:<8} {1e3 * median(seconds):7.1f} ms for {len(exchanges)} conversations{ratio}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _exchanges(read, record: dict) -> list[tuple]:
    try:
        return list(read(record))
    except ValueError:
        return []
