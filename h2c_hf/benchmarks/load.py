"""`scripts/benchmark.py load`: tokens a second and time to the first token of servers under load.

    python scripts/benchmark.py load --bridge REPO --output docs/benchmarks/load_cpu.json

starts `h2c serve`, vLLM with the connector, vLLM with the Receiver alone and vLLM with the Sharer alone, one
after the other, and asks each. vLLM runs in the environment of `scripts/serve_env`. Servers that run already:

    python scripts/benchmark.py load --server serve=http://127.0.0.1:8000 \\
        --server vllm=http://127.0.0.1:8001 --server receiver=http://127.0.0.1:8001,alone \\
        --eos 2 --clients 1 8

Each server answers the same streamed chat requests, a passage and a question for the Sharer and the question
for the Receiver, with as many new tokens each: the end token is suppressed. No request is repeated, so that
no server answers from a cache. ",alone" asks for the Receiver alone (`h2c: false`), ",plain" sends a passage
and a question to a server without a bridge, ",question" the question only. Nothing else should run on the
machine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from ..atlas.questions import atlas_passages
from ..loading import fetched_base
from ..modeling import H2CBridgeConfig, H2CProcessor
from .measure import save


SHARER = "vLLM, Sharer"
KINDS = ("bridged", "alone", "plain", "question")
START_SECONDS = 1200  # vLLM on a busy CPU takes minutes
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass
class Rival:
    """A server to ask: its name in the results, its address or the command that starts it, the kind of its
    requests, and the id of its model's end token."""

    name: str
    address: str | list[str]
    kind: str
    eos: int


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.py load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bridge", metavar="REPO", help="start the four servers for this bridge: a folder or a Hub id"
    )
    environment = Path(os.environ.get("H2C_VLLM_ENV", ".venv-vllm"))
    parser.add_argument(
        "--vllm",
        type=Path,
        default=environment,
        metavar="DIR",
        help="environment with vLLM (default: %(default)s)",
    )
    parser.add_argument(
        "--server", action="append", default=[], metavar="NAME=URL[,KIND]", help="a server that runs already"
    )
    parser.add_argument("--eos", type=int, help="with --server: id of the end token")
    parser.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16],
        help="requests at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--requests", type=int, default=64, help="of each server and number of clients (default: %(default)s)"
    )
    parser.add_argument("--new_tokens", type=int, default=32, help="of each answer (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, help="a .json file for the results; the figure goes beside it as .png"
    )
    options = parser.parse_args(arguments)
    if bool(options.bridge) == bool(options.server) or (options.server and options.eos is None):
        raise ValueError(
            "Got both or neither of --bridge and --server, or --server without --eos; expected --bridge, or "
            "the other two."
        )
    rows = []
    with contextlib.ExitStack() as stack:
        if options.bridge:
            rivals = four_servers(options.bridge, options.vllm, stack)
        else:
            rivals = [Rival(*parsed(server), options.eos) for server in options.server]
        for rival in rivals:
            try:
                with serving(rival, options.bridge) as url:
                    for turn, clients in enumerate(options.clients):
                        asked = rows_of(
                            turn * (options.requests + max(options.clients)), options.requests + clients
                        )
                        measured = asyncio.run(load(rival, url, asked, clients, options.new_tokens))
                        rows.append({"server": rival.name, "clients": clients, **measured})
                        print(described(rows[-1]), flush=True)
            except StartError as error:
                if rival.name != SHARER:
                    raise
                print(f"{rival.name} is left out: {error}", flush=True)  # vLLM need not run every Sharer
    for line in compared(rows):
        print(line)
    kept = {
        name: value
        for name, value in vars(options).items()
        if name not in ("output", "vllm")  # paths of this machine
    }
    save({"settings": kept, "cores": os.cpu_count(), "rows": rows}, options.output, draw)
    return 0


def four_servers(bridge: str, environment: Path, stack: contextlib.ExitStack) -> list[Rival]:
    """The servers of a bridge, with the commands that start them. Their tokenizers' folders end with `stack`.

    Raises:
        ValueError: if there is no vLLM in `environment`.
    """
    python = (environment / "bin" / "python").absolute()
    if not python.exists():
        raise ValueError(
            f"There is no vLLM environment at {environment}; make one with scripts/serve_env, or set --vllm."
        )
    config, processor = H2CBridgeConfig.from_pretrained(bridge), H2CProcessor.from_pretrained(bridge)
    connector = {
        "kv_connector": "H2CConnector", "kv_connector_module_path": "h2c_hf.serving.vllm_connector",
        "kv_role": "kv_consumer", "kv_connector_extra_config": {"bridge": bridge},
    }  # fmt: skip

    def vllm(role: str, *more: str) -> list[str]:
        fetched = fetched_base(config, role)
        model = fetched.path if fetched else config.locate(role, bridge, {}, {})[0]
        tokenizer = stack.enter_context(saved(getattr(processor, f"{role}_tokenizer")))
        common = (
            "--tokenizer",
            tokenizer,
            "--served-model-name",
            role,
            "--enforce-eager",
            "--max-model-len",
            "2048",
        )
        return [str(python), "-m", "vllm.entrypoints.cli.main", "serve", model, *common, *more]

    with_connector = (
        "--middleware",
        "h2c_hf.serving.middleware.H2CMiddleware",
        "--kv-transfer-config",
        json.dumps(connector),
    )
    commands = {
        "vLLM, bridged": (vllm("receiver", *with_connector), "bridged", "receiver"),
        "vLLM, Receiver": (vllm("receiver"), "question", "receiver"),
        "h2c serve": ([sys.executable, "-m", "h2c_hf.cli", "serve", bridge], "bridged", "receiver"),
        SHARER: (vllm("sharer"), "plain", "sharer"),
    }
    return [
        Rival(name, command, kind, getattr(processor, f"{role}_tokenizer").eos_token_id)
        for name, (command, kind, role) in commands.items()
    ]


@contextlib.contextmanager
def saved(tokenizer):
    """A folder with a tokenizer, and with the chat template that the bridge's processor gave it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        yield folder


class StartError(RuntimeError):
    """A server ended before it answered, or did not answer in time."""


def serving(rival: Rival, bridge: str | None):
    """Yield the URL of a server, which is started if it has a command."""
    return (
        contextlib.nullcontext(rival.address)
        if isinstance(rival.address, str)
        else running(rival.address, {"H2C_BRIDGE": bridge})
    )


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]):
    """Start a server on a free port, and yield its URL once it answers.

    Raises:
        StartError: with the end of its output.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, **QUIET, **environment},
        )
        try:
            end = time.monotonic() + START_SECONDS
            while not healthy(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise StartError(
                        f"{' '.join(command[:6])} ... does not answer. It printed:\n{log.read()[-3000:]}"
                    )
                time.sleep(0.5)
            print(f"{url} answers", flush=True)
            yield url
        finally:
            process.terminate()
            process.wait(120)


def healthy(url: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    return False


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


async def load(rival: Rival, url: str, rows: list[dict], clients: int, new_tokens: int) -> dict:
    """Ask a question about each row, `clients` of them at a time; the first `clients` rows warm up."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=3600)
    model = (await client.models.list()).data[0].id
    waiting = iter([{"model": model, **request(row, rival, new_tokens)} for row in rows])
    await asyncio.gather(*(answered(client, next(waiting)) for _ in range(clients)))
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
        "first_token_p50": statistics.median(firsts),
        "first_token_p99": firsts[max(0, round(0.99 * len(firsts)) - 1)],
        "decode_tokens_per_second": statistics.median(
            (count - 1) / (total - first) for first, total, count in results
        ),
    }  # fmt: skip


def rows_of(start: int, count: int) -> list[dict]:
    """Questions with a passage of four facts each, from the one numbered `start` on."""
    rows = atlas_passages("test", facts=4)
    return [rows[index % len(rows)] for index in range(start, start + count)]


def request(row: dict, rival: Rival, new_tokens: int) -> dict:
    question, whole = row["question"], f"{row['passage']}\n\n{row['question']}"
    extra = {
        "bridged": {"sharer_messages": [{"role": "user", "content": whole}]},
        "alone": {"h2c": False},
    }.get(rival.kind, {})
    return {
        "messages": [{"role": "user", "content": whole if rival.kind == "plain" else question}],
        "extra_body": extra, "temperature": 0, "max_tokens": new_tokens, "logit_bias": {str(rival.eos): -100},
        "stream": True, "stream_options": {"include_usage": True},
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
        f"{row['server']:<12} {row['clients']:>3} clients  {row['tokens_per_second']:>8.1f} tokens/s  first "
        f"token p50 {row['first_token_p50']:.2f} s, p99 {row['first_token_p99']:.2f} s  decoding "
        f"{row['decode_tokens_per_second']:.1f} tokens/s"
    )


def compared(rows: list[dict]) -> list[str]:
    """Compare vLLM with the bridge with `h2c serve` and the Receiver alone, by number of clients."""
    found = {(row["server"], row["clients"]): row for row in rows}
    lines = []
    for (name, clients), row in found.items():
        if name != "vLLM, bridged":
            continue
        throughput = row["tokens_per_second"] / found["h2c serve", clients]["tokens_per_second"]
        decoding = (
            row["decode_tokens_per_second"] / found["vLLM, Receiver", clients]["decode_tokens_per_second"]
        )
        lines.append(
            f"{clients} clients: {throughput:.2f} times the throughput of h2c serve, {decoding:.2f} of the "
            "Receiver's decode rate"
        )
    return lines


def draw(result: dict) -> plt.Figure:
    """Tokens a second over clients, a line for each server."""
    figure = plt.figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["server"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["server"] == name]
        axes.plot(
            [row["clients"] for row in own], [row["tokens_per_second"] for row in own], "o-", label=name
        )
    axes.set_xlabel("clients")
    axes.set_ylabel("tokens a second")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
