"""Rebuild Atlas from nothing: facts, two tokenizers, two tiny models, as the package ships them in `models/`.

Each model is taught by one thread of its own process, so that a seed gives the same weights on any number of
cores.
"""

import json
import multiprocessing
import signal
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ..hints import next_commands
from .documents import ReceiverTeacher, SharerTeacher
from .facts import load_facts, save_facts, select_facts
from .pretraining import Packer, PretrainingArguments, mimetic_init_, pretrain
from .tokenizers import build_receiver_tokenizer, build_sharer_tokenizer


ROLES = ("sharer", "receiver")
ROPE = {"rope_type": "default", "rope_theta": 100_000.0}
TEACHERS = {"sharer": SharerTeacher, "receiver": ReceiverTeacher}
TOKENIZERS = {"sharer": build_sharer_tokenizer, "receiver": build_receiver_tokenizer}
# Answering by letter comes first, in two small steps: 400 steps, where all forms at once stay at chance for
# thousands. It stays in the mixture until the rest is learned, or it is forgotten within 100 steps. Shares
# are of documents, whose lengths differ.
LETTERS_FIRST = [(200, {"index": 1}), (200, {"index": 1, "match": 2})]
LOOKING = {"read_4": 0.7, "open": 0.15, "quiz": 0.1, "choice": 0.05}
READING = {
    "read_1": 0.1,
    "read_16": 0.15,
    "read_4": 0.35,
    "open": 0.2,
    "choice": 0.05,
    "quiz": 0.1,
    "hint": 0.05,
}
BOTH = {
    "open": 0.45,
    "quiz": 0.15,
    "choice": 0.14,
    "hint": 0.05,
    "match": 0.02,
    "read_16": 0.08,
    "read_4": 0.055,
    "read_1": 0.055,
}
RARE = {
    "open": 0.42, "quiz": 0.15, "choice": 0.16, "hint": 0.06, "read_16": 0.04, "read_4": 0.03, "alike_1": 0.1,
    "alike_4": 0.06, "alike_16": 0.03,
}  # fmt: skip
EIGHT = {"sequences": 8, "warmup_steps": 10}
# All but embeddings and LM head.
FOUR = {"sequences": 4, "warmup_steps": 10, "taught": ["self_attn", "mlp", "norm"]}
# Passes, each with a learning-rate cycle of its own. The Sharer is taught the facts, then where to look in a
# passage, by its attention alone (with all of it the facts are gone in 60 steps), then to read, then both,
# and last to read of rare attributes, where it went on saying the real value. What ships had the first pass
# on another machine than the others, which began from its bfloat16 weights.
RECIPES = {
    "sharer": [
        PretrainingArguments(
            stages=[
                *LETTERS_FIRST,
                (500, {"open": 0.9, "match": 0.1}),
                (800, {"open": 0.35, "quiz": 0.35, "choice": 0.15, "hint": 0.05, "match": 0.1}),
            ]
        ),
        PretrainingArguments(
            stages=[(250, LOOKING)], taught=["self_attn"], decay=0.3, matrix_lr=4e-3, other_lr=3e-3, **EIGHT
        ),
        PretrainingArguments(stages=[(300, READING)], sequence_length=320, matrix_lr=2e-3, **FOUR),
        PretrainingArguments(stages=[(500, BOTH)], sequence_length=512, matrix_lr=2e-3, decay=0.6, **FOUR),
        PretrainingArguments(
            stages=[(220, RARE)], sequence_length=512, matrix_lr=1.5e-3, other_lr=1.5e-3, decay=0.8, **FOUR
        ),
    ],
    "receiver": [
        PretrainingArguments(
            stages=[
                *LETTERS_FIRST,
                (800, {"quiz": 0.3, "choice": 0.35, "open": 0.25, "match": 0.1}),
                (2200, {"quiz": 0.2, "choice": 0.35, "open": 0.25, "guess_choice": 0.1, "guess_open": 0.1}),
            ],
            sequences=24,
            sequence_length=192,
        )
    ],
}


def new_model(role: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untaught model: a Llama of six layers for the Sharer, a Qwen2 of five for the Receiver."""
    shared = {
        "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length,
        "rope_parameters": ROPE, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if role == "sharer":
        config = LlamaConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            attention_bias=True,
            **shared,
        )
        model = LlamaForCausalLM(config)
    else:
        config = Qwen2Config(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            **shared,
        )
        model = Qwen2ForCausalLM(config)
    mimetic_init_(model)
    return model


def build(
    output: str | Path, seed: int = 0, tables: str | Path | None = None, recipes: dict = RECIPES
) -> None:
    """Build Atlas into `output`: `facts.tsv`, and two models, each with tokenizer and learning curve.

    Takes about an hour on two cores (not yet timed on a GPU, which is used if there is one); deterministic
    for a seed on one kind of machine.

    Args:
        tables: folder of the source tables (`cities.csv` ...); by default the facts that ship are taken as
            they are.
        recipes: how each model is taught, pass by pass.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    facts_file = output / "facts.tsv"
    if tables is not None and not Path(tables).is_dir():
        raise ValueError(
            f"There is no folder {tables}; expected that of the source tables, cities.csv and others."
        )
    save_facts(load_facts() if tables is None else select_facts(tables, seed), facts_file)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=build_model, args=(role, output, seed, recipes[role])) for role in ROLES]
    # The workers ignore Ctrl-C, which reaches them too: each would print a traceback.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for worker in workers:
        worker.start()
    signal.signal(signal.SIGINT, handler)
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        raise
    failed = [role for role, worker in zip(ROLES, workers, strict=True) if worker.exitcode]
    if failed:
        raise RuntimeError(f"Teaching the {' and the '.join(failed)} failed; the traceback is above.")


def build_model(role: str, output: Path, seed: int, recipe: list[PretrainingArguments]) -> None:
    """Teach one model and save it, in bfloat16, beside its tokenizer and its learning curve
    (`learning_curve.json`)."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    facts = load_facts(output / "facts.tsv")
    tokenizer = TOKENIZERS[role](facts)
    model = new_model(role, tokenizer)
    packer, curve = Packer(tokenizer, TEACHERS[role](facts)), []
    recipe = [replace(one, seed=seed) for one in recipe]
    for number, one in enumerate(recipe, 1):
        entries = pretrain(
            model, packer, one, title=f"{role}, pass {number} of {len(recipe)}", row=ROLES.index(role)
        )
        curve += [{"pass": number, **entry} for entry in entries]
    model.to("cpu", torch.bfloat16).save_pretrained(output / role)
    tokenizer.save_pretrained(output / role)
    (output / role / "learning_curve.json").write_text(
        json.dumps({"recipe": [asdict(one) for one in recipe], "curve": curve}, indent=1) + "\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """`h2c atlas build`."""
    from .parsers import atlas

    options = atlas().parse_args(arguments)
    build(options.output, options.seed, options.tables)
    print(f"Wrote {options.output}/facts.tsv, {options.output}/sharer and {options.output}/receiver")
    next_commands(f"h2c train atlas --sharer {options.output}/sharer --receiver {options.output}/receiver")
