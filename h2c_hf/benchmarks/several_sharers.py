"""`scripts/benchmark.py several_sharers`: the Receiver's answers when two Sharers read a passage each and one
of the two tells the answer, both through the one bridge of Atlas, which was trained with one Sharer.

Passages are of invented facts, so that nobody can know them. Which of the two Sharers is told is tossed
question by question.
"""

import argparse
import random

import torch

from ..atlas.questions import atlas_passages
from ..evaluation.batch import conversation, for_sharer
from ..evaluation.hand_off import hand_off_rows
from ..evaluation.runner import MAX_ANSWER_TOKENS
from ..modeling import H2CForCausalLM, H2CProcessor
from ..several_sharers import H2CSeveralSharers


BATCH = 40


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.py several_sharers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--bridge",
        default="hub_configs/atlas",
        help="repo or folder of a bridge of Atlas (default: %(default)s)",
    )
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="of the entities (default: test)"
    )
    parser.add_argument("--questions", type=int, default=200, help="so many, drawn from all (default: 200)")
    parser.add_argument("--facts", type=int, default=8, help="facts a passage (default: 8)")
    options = parser.parse_args(arguments)
    for name, row in measure(options).items():
        print(
            f"{name:<8} {row['accuracy']:.3f} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}], n = "
            f"{row['n']}"
        )
    return 0


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, dict]:
    """{which inputs: accuracy row of the exact match}. "told" and "untold": one Sharer alone; "both";
    "shuffled": both, each with the states of another question."""
    model = H2CForCausalLM.from_pretrained(options.bridge).eval()
    processor = H2CProcessor.from_pretrained(options.bridge)
    several = H2CSeveralSharers({"first": model, "second": model})
    questions = two_passages(options)
    predictions: dict[str, list[str]] = {}
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        asked = [conversation(question, "open") for question in part]
        told, untold, *sides = (
            processor.apply_chat_template(
                asked, [for_sharer(turns, {"passage": q[key]}) for turns, q in zip(asked, part, strict=True)]
            )
            for key in ("passage", "untold", "first", "second")
        )
        both = dict(zip(("first", "second"), sides, strict=True))
        moved = {
            name: {key: value.roll(1, 0) for key, value in inputs.items() if key.startswith("sharer_")}
            for name, inputs in both.items()
        }
        calls = {
            "receiver": {},
            "told": {"first": told},
            "untold": {"first": untold},
            "both": both,
            "shuffled": moved,
        }
        ids, mask = told["input_ids"], told["attention_mask"]
        for name, sharers in calls.items():
            output = several.generate(ids, mask, sharers, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
            predictions.setdefault(name, []).extend(
                processor.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            )
    return hand_off_rows({name: {"predictions": texts} for name, texts in predictions.items()}, questions)


def two_passages(options: argparse.Namespace) -> list[dict]:
    """Questions with the `passage` that tells the answer, an `untold` one that has no statement in common
    with it, and both as `first` and `second` in random order.

    Raises:
        ValueError: for fewer than 2 questions, or more than there are.
    """
    everything, rng = atlas_passages(options.split, options.facts, invented=True), random.Random(0)
    if not 2 <= options.questions <= len(everything):
        raise ValueError(
            f"--questions is {options.questions}; expected 2 to {len(everything)}, those of {options.split}."
        )
    questions = []
    for question in rng.sample(everything, options.questions):
        untold = question["passage"]
        while statements(untold) & statements(question["passage"]):
            untold = rng.choice(everything)["passage"]
        first, second = rng.sample([question["passage"], untold], 2)
        questions.append({**question, "untold": untold, "first": first, "second": second})
    return questions


def statements(passage: str) -> set[str]:
    return {statement.strip(". ") for statement in passage.split(". ")}
