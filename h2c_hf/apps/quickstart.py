"""The main job from end to end, on Atlas: train a bridge, measure it, draw, save, load, ask."""

import shutil
import tempfile
from pathlib import Path

import torch
from datasets import concatenate_datasets
from transformers import AutoModelForCausalLM, AutoProcessor, set_seed

from ..atlas import MODELS
from ..atlas.questions import atlas_questions
from ..atomic import atomic
from ..data.examples import encode_questions
from ..evaluation.evaluate import print_summary, side_by_side
from ..evaluation.latency import time_methods
from ..evaluation.runner import MAX_ANSWER_TOKENS, evaluate
from ..hints import next_commands
from ..modeling import H2CForCausalLM, H2CProcessor
from ..pair import atlas_pair
from ..prompts import open_prompt, user_turn
from ..reports.page import TITLES, interval
from ..reports.report import beats_controls, build_report, save_report
from ..reports.statistics import accuracy_row
from ..training.arguments import H2CTrainingArguments
from ..training.trainer import H2CTrainer
from ..visualization.figures import draw


REPORTED = ["receiver", "text_to_text", "h2c", "sharer", "shuffled", "zeros"]
ASKED_IN_WORDS = ["receiver", "h2c", "sharer", "shuffled"]
EPOCHS = 1.0
TIMED_QUESTIONS = 30
EXAMPLES = 3


def quickstart(output: str | Path = "outputs/quickstart", seed: int = 0, epochs: float = EPOCHS) -> int:
    """Run everything and write `output`/{bridge/, report.json, report.md, figures/*.png}.

    Returns:
        0, or 1 if H2C does not beat its controls.
    """
    output = Path(output)
    # Before the work: a path that cannot be written to is refused here.
    output.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    model, processor = atlas_pair()

    print(
        f"Training a bridge of {model.bridge.num_parameters():,} parameters on Atlas; the base models stay "
        "as they are."
    )
    with tempfile.TemporaryDirectory() as directory:
        history = train(model, processor, directory, seed, epochs)
    save_bridge(model, processor, output / "bridge")

    questions = atlas_questions("test")
    print(f"\nAsking {len(questions):,} questions about entities that no training question was about.")
    report, items = make_report(model, processor, questions, history, seed)
    written = save_report(report, output, items)
    written += draw(report, output / "figures")
    print_summary(report)
    print_examples(report)

    answer = ask_loaded(output / "bridge", questions[0])
    print(
        f"\nLoaded {output / 'bridge'} through AutoModelForCausalLM and asked it: "
        f"{open_prompt(questions[0])} -> {answer}"
    )
    print("\nWrote:", output / "bridge", *written, sep="\n  ")
    if not beats_controls(report):
        print(f"\nH2C does not beat its controls: information gain {interval(report['information_gain'])}.")
        return 1
    next_commands(f"h2c chat {output / 'bridge'}", f"h2c demo {output / 'bridge'}", f"h2c report {output}")
    return 0


def train(
    model: H2CForCausalLM, processor: H2CProcessor, directory: str, seed: int, epochs: float
) -> list[dict]:
    """Train the bridge on the train entities, in choice and in open form; return the log history."""
    train_questions, validation = atlas_questions("train", variants=4), atlas_questions("validation")
    examples = [encode_questions(processor, train_questions, form) for form in ("choice", "open")]
    arguments = H2CTrainingArguments(
        output_dir=directory,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=128,
        learning_rate=3e-3,
        eval_strategy="steps",
        eval_steps=0.2,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = H2CTrainer(
        model,
        arguments,
        processing_class=processor,
        train_dataset=concatenate_datasets(examples),
        eval_dataset={form: encode_questions(processor, validation, form) for form in ("choice", "open")},
    )
    trainer.train()
    return trainer.state.log_history


def save_bridge(
    model: H2CForCausalLM, processor: H2CProcessor, directory: Path, models: Path = MODELS
) -> None:
    """Save in Hub layout, with the two tiny models in folders beside, so that any machine can load it.

    An older bridge is only replaced by a whole one.
    """
    with atomic(directory) as temporary_path:
        model.save_pretrained(temporary_path)
        processor.save_pretrained(temporary_path)
        ignored = shutil.ignore_patterns("learning_curve.json", "tokenizer*")
        for role in ("sharer", "receiver"):
            # A bridge that was loaded from its folder has brought them along.
            if not (temporary_path / role).exists():
                shutil.copytree(models / role, temporary_path / role, ignore=ignored)


def make_report(
    model: H2CForCausalLM, processor: H2CProcessor, questions: list[dict], history: list[dict], seed: int
) -> tuple[dict, dict[str, tuple]]:
    """Evaluate, time, and put into a report; and its items, as `save_report` takes them."""
    results = evaluate(model, processor, questions, REPORTED)
    in_words = evaluate(model, processor, questions, ASKED_IN_WORDS, form="open")
    timing = time_methods(model, processor, questions[:TIMED_QUESTIONS], REPORTED)
    report = build_report(
        results,
        timing.pop("latency"),
        questions,
        **timing,
        open_form={name: accuracy_row(result["correct"]) for name, result in in_words.items()},
        examples=[
            side_by_side(model, processor, questions, n * len(questions) // EXAMPLES, results)
            for n in range(EXAMPLES)
        ],
        gates=model.gate_values(),
        config={"data": "atlas", "split": "test"},
        training={"seed": seed, "bridge_parameters": model.bridge.num_parameters(), "history": history},
    )
    return report, {"choice": (questions, results), "open": (questions, in_words)}


def print_examples(report: dict) -> None:
    for example in report["examples"]:
        print(f"\n{example['question']}  ({', '.join(example['choices'])})  expected: {example['expected']}")
        for name, row in example["answers"].items():
            print(f"  {TITLES[name]:<20} {row['choice']:<20} {row['open']}")


def ask_loaded(directory: Path, question: dict) -> str:
    """Load the folder as anyone would who has no `h2c_hf`, and ask in open form."""
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    inputs = processor.apply_chat_template(user_turn(open_prompt(question)))
    output = model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main(arguments: list[str] | None = None) -> int:
    """`h2c quickstart`."""
    from .parsers import quickstart as parser

    options = parser().parse_args(arguments)
    if options.epochs <= 0:
        raise ValueError(f"--epochs is {options.epochs:g}; expected more than 0.")
    if options.pair == "atlas":
        if options.steps is not None:
            raise ValueError(
                f"--steps is {options.steps}, and the quickstart of Atlas has none; expected --epochs."
            )
        return quickstart(options.output, options.seed, options.epochs)
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; expected at least 1.")
    from .quickstart_pair import quickstart_pair

    return quickstart_pair(options.pair, options.output, options.seed, options.steps)
