"""The batched runner against scoring each method on its own, one question at a time, in one run:
`python -m h2c_hf.benchmarks.evaluate`."""

import argparse
import time

import torch

from ..atlas.questions import atlas_questions
from ..data.rows import spread_rows
from ..evaluation.batch import Batch
from ..evaluation.methods import METHODS
from ..evaluation.runner import evaluate
from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..prompts import choice_prompt, letter_ids, user_turn


@torch.no_grad()
def one_at_a_time(
    model, processor, questions: list[dict], methods: list[str], adapter
) -> dict[str, list[int]]:
    """Every method on its own: nothing batched, nothing shared."""
    first = user_turn(choice_prompt(questions[0]))
    letters = {
        role: letter_ids(getattr(processor, f"{role}_tokenizer"), first) for role in ("receiver", "sharer")
    }
    predictions = {name: [] for name in methods}
    for name in methods:
        for row, question in enumerate(questions):
            donor = Batch(model, processor, [questions[row - 1]])
            logits = METHODS[name].logits(Batch(model, processor, [question], donor=donor, adapter=adapter))
            predictions[name].append(int(logits[0, letters[METHODS[name].reader]].argmax()))
    return predictions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hub_configs/atlas")
    parser.add_argument("--adapter", default="hub_configs/atlas/adapter")
    parser.add_argument("--questions", type=int, default=256, help="of Atlas test, spread over all")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument(
        "--repeats", type=int, default=3, help="both are timed by turns; the medians are compared"
    )
    options = parser.parse_args(arguments)
    model = H2CForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = H2CProcessor.from_pretrained(options.model)
    adapter = H2CBridgeModel.from_pretrained(options.adapter, dtype=torch.float32).eval()
    questions = atlas_questions("test")
    methods = [name for name in METHODS if name not in ("skyline", "lora")]
    questions = [questions[row] for row in spread_rows(len(questions), options.questions)]

    times = {"batched": [], "one at a time": []}
    for _ in range(options.repeats):
        start = time.perf_counter()
        results = evaluate(
            model, processor, questions, methods, batch_size=options.batch_size, adapter=adapter
        )
        middle = time.perf_counter()
        alone = one_at_a_time(model, processor, questions, methods, adapter)
        times["batched"].append(middle - start)
        times["one at a time"].append(time.perf_counter() - middle)
    # The shuffled and the noise control draw from their batch, so they answer otherwise in another batch.
    compared = [name for name in methods if name not in ("shuffled", "noise")]
    same = sum(
        a == b for name in compared for a, b in zip(results[name]["predictions"], alone[name], strict=True)
    )
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    answers = len(questions) * len(methods)
    for name, seconds in medians.items():
        print(
            f"{name:<14} {answers / seconds:8.1f} answers a second ({len(methods)} methods, {len(questions)} "
            "questions)"
        )
    ratio = medians["one at a time"] / medians["batched"]
    print(f"{'ratio':<14} {ratio:8.1f} x; {same} of {len(questions) * len(compared)} answers are the same")
    return 0


if __name__ == "__main__":
    main()
