"""Time and memory of every method: batch 1, warmed up, device synchronised, by turns in one run."""

import contextlib
import math
import time
from collections import defaultdict

import numpy as np
import torch
from transformers import PreTrainedModel

from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..prompts import PROMPTS, Prompts
from .batch import Batch
from .methods import METHODS


WARM_UP = 3
WRITTEN = ("receiver", "text_to_text", "h2c", "sharer")  # the methods whose longer outputs are timed
SWEPT_QUESTIONS = 5


class Timed(Batch):
    """A batch with a clock (ms), and on CUDA a gauge of memory (bytes), around each part of a method."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.milliseconds, self.peak_bytes = defaultdict(float), {}

    @contextlib.contextmanager
    def part(self, name: str):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = _now()
        yield
        self.milliseconds[name] += 1000 * (_now() - start)
        if torch.cuda.is_available():
            self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), torch.cuda.max_memory_allocated())


@torch.no_grad()
def time_methods(
    model: H2CForCausalLM,
    processor: H2CProcessor,
    questions: list[dict],
    methods: list[str],
    lengths: list[int] = (),
    adapter: H2CBridgeModel | None = None,
    prompts: Prompts = PROMPTS,
    lora: PreTrainedModel | None = None,
    form: str = "choice",
) -> dict:
    """Time each method, from token ids on. Text-to-text includes the Sharer's text and encoding it again.

    Args:
        questions: each is timed once with every method; the first warm up and are asked again.
        lengths: output lengths, tokens, that are timed too.
        adapter, prompts, lora, form: see `Batch`.

    Returns:
        `latency`: {method: {"ttft_ms_median", "ttft_ms_p90"}}, to the first answer token; with `lengths` also
        "per_token_ms_median", a further token, and "tokens_per_second", of further tokens.
        `latency_parts`: {method: {part: median ms}} of the first token; they sum to about the median.
        `output_lengths`: [{"tokens", method: median ms ...}]; `break_even`: see there.
        `memory`: bytes of each model's weights; on CUDA also the peak while each part ran.
    """
    times, parts, peaks = defaultdict(list), defaultdict(lambda: defaultdict(list)), {}
    shared = {"prompts": prompts, "form": form}
    warm_up = questions[:WARM_UP]
    for number, question in enumerate([*warm_up, *questions]):
        other = questions[number % len(questions) - 1]
        for name in methods:
            batch = timed(model, processor, question, other, adapter=adapter, lora=lora, **shared)
            start = _now()
            METHODS[name].logits(batch).argmax(-1).tolist()
            whole = 1000 * (_now() - start)
            if number >= len(warm_up):
                times[name].append(whole)
                spent = dict(batch.milliseconds)
                for part, value in {**spent, "other": whole - sum(spent.values())}.items():
                    parts[name][part].append(value)
            peaks |= {part: max(size, peaks.get(part, 0)) for part, size in batch.peak_bytes.items()}
    latency = {
        name: {"ttft_ms_median": float(np.median(values)), "ttft_ms_p90": float(np.quantile(values, 0.9))}
        for name, values in times.items()
    }
    found = {
        "latency": latency,
        "latency_parts": {
            name: {part: float(np.median(values)) for part, values in row.items()}
            for name, row in parts.items()
        },
        "memory": {"weights_bytes": weights(model), **({"peak_bytes": peaks} if peaks else {})},
    }
    if lengths:
        found["output_lengths"] = sweep(
            model,
            processor,
            questions[:SWEPT_QUESTIONS],
            [n for n in WRITTEN if n in methods],
            lengths,
            **shared,
        )
        for name, row in latency.items():
            if name in found["output_lengths"][0]:
                row["per_token_ms_median"] = per_token(found["output_lengths"], name)
                row["tokens_per_second"] = 1000 / row["per_token_ms_median"]
        found["break_even"] = break_even(latency)
    return found


def timed(model, processor, question: dict, other: dict, **shared) -> Timed:
    """One question, encoded before the clock starts; its donor runs on the same clock."""
    donor = Timed(model, processor, [other], **shared)
    batch = Timed(model, processor, [question], donor=donor, **shared)
    donor.milliseconds, donor.peak_bytes = batch.milliseconds, batch.peak_bytes
    batch.inputs, donor.inputs  # noqa: B018
    return batch


def sweep(
    model, processor, questions: list[dict], methods: list[str], lengths: list[int], **shared
) -> list[dict]:
    """[{"tokens": n, method: median ms to write n tokens}], shortest first; always with a length of 1."""
    rows = []
    for tokens in sorted({1, *lengths}):
        times = defaultdict(list)
        for question in [questions[0], *questions]:  # the first warms up
            for name in methods:
                batch = timed(model, processor, question, question, **shared)
                start = _now()
                METHODS[name].generate(batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
                times[name].append(1000 * (_now() - start))
        rows.append(
            {"tokens": tokens, **{name: float(np.median(values[1:])) for name, values in times.items()}}
        )
    return rows


def per_token(rows: list[dict], name: str) -> float:
    """Milliseconds a further token, between the shortest and the longest output."""
    first, last = rows[0], rows[-1]
    return max(last[name] - first[name], 1e-6) / max(last["tokens"] - first["tokens"], 1)


def break_even(latency: dict[str, dict]) -> dict:
    """`tokens`: the output length from which H2C is faster than the Sharer alone; None if there is none."""
    h2c, sharer = latency["h2c"], latency["sharer"]
    later = h2c["ttft_ms_median"] - sharer["ttft_ms_median"]
    saved = sharer["per_token_ms_median"] - h2c["per_token_ms_median"]
    tokens = 1 if later <= 0 else 1 + math.ceil(later / saved) if saved > 0 else None
    return {"tokens": tokens, "later_first_token_ms": later, "saved_ms_per_token": saved}


def weights(model: H2CForCausalLM) -> dict[str, int]:
    """Bytes in memory of each model's parameters and buffers."""
    return {
        part: sum(
            tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers())
        )
        for part, module in (("sharer", model.sharer), ("receiver", model.receiver), ("bridge", model.bridge))
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
