"""Time to first token: batch 1, warmed up, device synchronised, all methods by turns in one run."""

import time

import numpy as np
import torch

from ..modeling import H2CForCausalLM, H2CProcessor
from .methods import METHODS, Batch


WARM_UP = 3


@torch.no_grad()
def time_to_first_token(
    model: H2CForCausalLM, processor: H2CProcessor, questions: list[dict], methods: list[str]
) -> dict[str, dict[str, float]]:
    """{method: {"ttft_ms_median", "ttft_ms_p90"}}: from token ids to the first answer token, milliseconds.

    For `text_to_text` that includes the Sharer's text and encoding it again. The first questions warm up and are asked again.
    """
    times = {name: [] for name in methods}
    for number, question in enumerate([*questions[:WARM_UP], *questions]):
        other = questions[number % len(questions) - 1]
        for name in methods:
            batch = Batch(model, processor, [question], donor=Batch(model, processor, [other]))
            batch.inputs, batch.donor.inputs  # noqa: B018  encoded before the clock starts
            start = _now()
            METHODS[name].logits(batch).argmax(-1).tolist()
            if number >= WARM_UP:
                times[name].append(1000 * (_now() - start))
    return {
        name: {"ttft_ms_median": float(np.median(values)), "ttft_ms_p90": float(np.quantile(values, 0.9))} for name, values in times.items()
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
