"""`scripts/benchmark.py load`: tokens a second and time to the first token of servers under load, one after the other.

    python scripts/benchmark.py load --server serve=http://127.0.0.1:8000 --server vllm=http://127.0.0.1:8001 \\
        --server receiver=http://127.0.0.1:8001,alone --eos 2 --clients 1 8

Each server answers the same streamed chat requests, a passage and a question for the Sharer and the question for the Receiver, with as
many new tokens each: the end token is suppressed. ",alone" asks for the Receiver alone (`h2c: false`), ",plain" sends a passage and a
question to a server without a bridge. A server that is not asked only waits; nothing else should run on the machine.
"""

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt

from ..atlas.questions import atlas_passages
from .measure import save


KINDS = ("bridged", "alone", "plain")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL[,alone|,plain]", help="once for each server")
    parser.add_argument("--eos", type=int, required=True, help="id of the Receiver's end token")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16], help="requests at a time (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=64, help="of each server and number of clients (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=32, help="of each answer (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="a .json file for the results; the figure goes beside it as .png")
    options = parser.parse_args(arguments)
    rows = []
    for server in options.server:
        name, url, kind = parsed(server)
        for clients in options.clients:
            rows.append({"server": name, "clients": clients, **asyncio.run(load(url, kind, clients, options))})
            print(described(rows[-1]), flush=True)
    kept = {name: value for name, value in vars(options).items() if name != "output"}
    save({"settings": kept, "rows": rows}, options.output, draw)
    return 0


def parsed(server: str) -> tuple[str, str, str]:
    """Return the name, the URL and the kind of requests of a --server.

    Raises:
        ValueError: if it has another form.
    """
    name, _, rest = server.partition("=")
    url, _, kind = rest.partition(",")
    if not url.startswith("http") or (kind or "bridged") not in KINDS:
        raise ValueError(f"--server is {server!r}; expected NAME=URL, NAME=URL,alone or NAME=URL,plain.")
    return name, url, kind or "bridged"


async def load(url: str, kind: str, clients: int, options: argparse.Namespace) -> dict:
    """Answer all requests with `clients` of them under way at a time."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=3600)
    model = (await client.models.list()).data[0].id
    waiting = iter([{"model": model, **request(row, kind, options)} for row in rows_of(options.requests + clients)])
    for _ in range(clients):  # warm up
        await answered(client, next(waiting))
    results = []

    async def one_client() -> None:
        for asked in waiting:
            results.append(await answered(client, asked))

    start = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(clients)))
    seconds = time.perf_counter() - start
    await client.close()
    firsts = sorted(first for first, _, _ in results)
    tokens = sum(count for _, _, count in results)
    return {
        "tokens_per_second": tokens / seconds, "requests": len(results), "tokens": tokens,
        "first_token_p50": statistics.median(firsts), "first_token_p99": firsts[max(0, round(0.99 * len(firsts)) - 1)],
        "decode_tokens_per_second": statistics.median((count - 1) / (total - first) for first, total, count in results),
    }  # fmt: skip


def rows_of(count: int) -> list[dict]:
    """Different questions with a passage of four facts each."""
    rows = atlas_passages("test", facts=4)
    return [rows[index % len(rows)] for index in range(count)]


def request(row: dict, kind: str, options: argparse.Namespace) -> dict:
    question, whole = row["question"], f"{row['passage']}\n\n{row['question']}"
    extra = {"sharer_messages": [{"role": "user", "content": whole}]} if kind == "bridged" else {"h2c": False} if kind == "alone" else {}
    return {
        "messages": [{"role": "user", "content": whole if kind == "plain" else question}], "extra_body": extra, "temperature": 0,
        "max_tokens": options.new_tokens, "logit_bias": {str(options.eos): -100}, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


async def answered(client, asked: dict) -> tuple[float, float, int]:
    """Return the seconds to the first text, those to the end, and the number of tokens."""
    start, first, tokens = time.perf_counter(), None, 0
    async for chunk in await client.chat.completions.create(**asked):
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - start
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    total = time.perf_counter() - start
    return total if first is None else first, total, tokens


def described(row: dict) -> str:
    return (
        f"{row['server']:<12} {row['clients']:>3} clients  {row['tokens_per_second']:>8.1f} tokens/s  first token p50 "
        f"{row['first_token_p50']:.2f} s, p99 {row['first_token_p99']:.2f} s  decoding {row['decode_tokens_per_second']:.1f} tokens/s"
    )


def draw(result: dict) -> plt.Figure:
    """Tokens a second over clients, a line for each server."""
    figure = plt.figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["server"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["server"] == name]
        axes.plot([row["clients"] for row in own], [row["tokens_per_second"] for row in own], "o-", label=name)
    axes.set_xlabel("clients")
    axes.set_ylabel("tokens a second")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
