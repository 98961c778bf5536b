"""An engine of vLLM in a process of its own, for tests: the requests that it gets, and the tokens that
`generate` expects of it."""

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import torch
from servers import ROOT

from h2c_hf.modeling import H2CForCausalLM, H2CProcessor


ENVIRONMENT = Path(os.environ.get("H2C_VLLM_ENV", ROOT / ".venv-vllm"))
PYTHON = ENVIRONMENT / "bin" / "python"
ATLAS = ROOT / "hub_configs" / "atlas"
END = 1  # ends a text; suppressed, so that every answer has as many tokens
TOKENS = 16


@dataclass
class Pair:
    """A bridge in a folder, loaded in float32; its requests to vLLM, and the answers of `generate`."""

    folder: str
    model: H2CForCausalLM
    processor: H2CProcessor
    receiver: str = str(ATLAS / "receiver")
    _answers: dict[tuple, list[int]] = field(default_factory=dict)

    def inputs(self, content: str, sharer: str | None = None) -> dict[str, torch.Tensor]:
        return self.processor.apply_chat_template(
            *([{"role": "user", "content": one}] for one in (content, sharer or content))
        )

    @torch.no_grad()
    def answer(self, inputs, tokens: int = TOKENS, kind: str = "bridged") -> list[int]:
        """The tokens of `generate`; `kind`: "bridged", "alone" (the Receiver's own), or "zeros"."""
        key = (kind, tokens, *(tuple(inputs[name][0].tolist()) for name in ("input_ids", "sharer_input_ids")))
        if key not in self._answers:
            given = dict(inputs)
            if kind == "zeros":
                states = self.model.read(given.pop("sharer_input_ids"))
                given["sharer_hidden_states"] = tuple(torch.zeros_like(state) for state in states)
            with self.model.disable_bridge() if kind == "alone" else contextlib.nullcontext():
                output = self.model.generate(
                    **given, do_sample=False, max_new_tokens=tokens, sequence_bias={(END,): -100.0}
                )
            self._answers[key] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return self._answers[key]

    def answers(self, inputs: list, tokens: int = TOKENS) -> list[list[int]]:
        return [self.answer(one, tokens) for one in inputs]

    def positions(self, inputs) -> int:
        """The positions that a prompt takes in vLLM's cache."""
        return len(self.request(inputs)["ids"])

    def request(self, inputs, tokens: int = TOKENS, bridged: bool = True, **fields) -> dict:
        """In the message form, a placeholder id for each Sharer token stands before the prompt."""
        ids, params = inputs["input_ids"][0].tolist(), {"h2c": False}
        if bridged:
            params = {"sharer_input_ids": inputs["sharer_input_ids"][0].tolist()}
        if bridged and self.model.config.bridge_form == "message":
            params["message_tokens"] = len(params["sharer_input_ids"])
            ids = [5] * params["message_tokens"] + ids
        return {"ids": ids, "params": params, "tokens": tokens, "bias": {END: -100}, **fields}

    def requests(self, inputs: list, tokens: int = TOKENS) -> list[dict]:
        return [self.request(one, tokens) for one in inputs]


class Engine:
    """Answers waves of requests. Its counts begin anew with each `run`."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self._process, self._log, self._before = process, log, {}
        self.error = self._read().get("error")

    def _read(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise AssertionError(f"exit status {self._process.wait(60)}\n{self._log.read_text()[-3000:]}")

    def run(self, *waves: list[dict]) -> dict:
        """{"waves": [[answers of a request]]}, and counts; see `engine_process`."""
        assert self.error is None, self.error
        self._process.stdin.write(json.dumps(waves) + "\n")
        self._process.stdin.flush()
        result, before = self._read(), self._before
        self._before = {
            name: result[name] for name in ("passes", "hits", "preemptions") if result.get(name) is not None
        }
        return {**result, **{name: count - before.get(name, 0) for name, count in self._before.items()}}

    def answers(self, *wave: dict) -> list:
        """The first answer of each request."""
        return firsts(self.run(list(wave))["waves"][0])


@contextlib.contextmanager
def engine(
    folder: Path, pair: Pair, connector: dict | None = None, environment: dict | None = None, **options
):
    """Start an engine that bridges asynchronously, but where `connector` says otherwise.

    Args:
        folder: for files.
        connector: its extra config, beside the pair's bridge.
        environment: further variables.
        options: arguments of vLLM's `LLM`, and `transfer`, fields of the KV transfer config.
    """
    connector = {"async": True, **(connector or {})}
    if "urls" not in connector:
        connector = {"bridge": pair.folder, **connector}
    transfer = options.pop("transfer", {})
    options = {"model": pair.receiver, **options}
    specification = {
        "engine": options,
        "transfer": transfer,
        "environment": environment or {},
        "connector": connector,
    }
    path, log = folder / "specification.json", folder / "log"
    path.write_text(json.dumps(specification))
    inherited = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    command = [PYTHON, Path(__file__).parent / "engine_process.py", path]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=inherited
        )
    try:
        yield Engine(process, log)
        process.stdin.close()
        process.wait(120)
    finally:
        process.kill()
        process.wait(60)


def firsts(wave: list[list]) -> list:
    """The first answer of each request."""
    return [answers[0] for answers in wave]
