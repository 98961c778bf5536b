"""`scripts/ablate.py GRID.yaml`: bridges of several forms, trained alike on Atlas, in one table: forms x runs x seeds.

A cell is a bridge of one form, trained in one run (how much of which questions) with one seed, and then asked. It is kept as a json
file, so that a grid that was stopped goes on where it was.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import set_seed

from .arguments import read_yaml
from .atlas.facts import load_facts
from .atlas.questions import atlas_questions, statement
from .data.examples import encode_questions
from .evaluation.runner import evaluate
from .evaluation.statistics import mean_difference, recovered
from .modeling import H2CBridgeConfig, H2CForCausalLM, H2CProcessor
from .modeling.configuration_h2c import PUBLISHED
from .quickstart import atlas_pair
from .training.arguments import H2CTrainingArguments
from .training.trainer import H2CTrainer


FORMS = ("choice", "open")
# What is asked of each bridge: (questions, form, methods). "told": the answer stands in the Receiver's own prompt.
MERITS = {"choice": ("plain", "choice", ["h2c", "shuffled"]), "open": ("plain", "open", ["h2c"]), "told": ("told", "choice", ["h2c"])}
ALONE = {
    "choice": ("plain", "choice", ["receiver", "sharer"]),
    "open": ("plain", "open", ["sharer"]),
    "told": ("told", "choice", ["receiver"]),
}


@dataclass
class Grid:
    """A grid file.

    Args:
        forms: name -> fields of `H2CBridgeConfig` that differ from the published form.
        runs: name -> `fraction` of the train entities (default 1), and `without`: subjects that are not trained on, and alone asked.
        seeds: of each cell: weights, order of the examples, and which entities a fraction holds.
        split: what is asked. Choose on validation; a table of "test" is for the report.
        variants: differently worded training questions a fact.
        training: fields of `H2CTrainingArguments`, the same for all.
    """

    forms: dict[str, dict]
    runs: dict[str, dict] = field(default_factory=lambda: {"all": {}})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    split: str = "validation"
    variants: int = 1
    training: dict = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Grid":
        """
        Raises:
            ValueError: for a field that there is not, a form that no bridge can have, or a run that trains on nothing.
        """
        values = read_yaml(path)
        refuse_unknown(values, [field.name for field in fields(cls)], path)
        if not values.get("forms"):
            raise ValueError(f"{path} has no forms; expected a mapping of names to fields of H2CBridgeConfig.")
        grid = cls(**values)
        for form in grid.forms.values():
            refuse_unknown(form or {}, PUBLISHED, path)
            H2CBridgeConfig.published(**(form or {}))
        for name, run in grid.runs.items():
            refuse_unknown(run or {}, ["fraction", "without"], path)
            if not 0 < (run or {}).get("fraction", 1) <= 1:
                raise ValueError(f"fraction of run {name} is {run['fraction']}; expected more than 0 and at most 1.")
            if unknown := set((run or {}).get("without", ())) - {fact.attribute for fact in load_facts()}:
                raise ValueError(f"Run {name} is without {', '.join(sorted(unknown))}, which no question is about.")
        return grid


def refuse_unknown(values, known, path) -> None:
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{path} has a field {unknown[0]!r}; expected one of {', '.join(known)}.")


@lru_cache(1)
def pair() -> tuple[H2CForCausalLM, H2CProcessor]:
    return atlas_pair()


@lru_cache
def examples(variants: int) -> tuple[list[dict], dict[str, Dataset]]:
    """The training questions, and them as examples in both forms; encoded once a process."""
    questions = atlas_questions("train", variants=variants)
    encoded = {form: encode_questions(pair()[1], questions, form) for form in FORMS}
    return questions, {form: rows.add_column("length", [len(ids) for ids in rows["sharer_input_ids"]]) for form, rows in encoded.items()}


@lru_cache
def questions_of(split: str) -> dict[str, list[dict]]:
    """The questions that are asked, plain and told."""
    facts = {(fact.entity, fact.attribute): fact for fact in load_facts()}
    plain = atlas_questions(split)
    return {"plain": plain, "told": [{**q, "hint": statement(facts[q["entity"], q["subject"]])} for q in plain]}


def train(grid: Grid, form: dict, run: dict, seed: int) -> tuple[H2CForCausalLM, int]:
    """A bridge of a form for the pair, trained; and the number of its training questions, in both forms each."""
    questions, encoded = examples(grid.variants)
    entities = sorted({question["entity"] for question in questions if question["subject"] not in run.get("without", ())})
    order = np.random.default_rng(seed).permutation(len(entities))
    kept = {entities[i] for i in order[: max(1, round(run.get("fraction", 1) * len(entities)))]}
    rows = [i for i, q in enumerate(questions) if q["entity"] in kept and q["subject"] not in run.get("without", ())]
    set_seed(seed)
    joined, processor = pair()
    config = H2CBridgeConfig.published(joined.sharer.config, joined.receiver.config, **form)
    model = H2CForCausalLM(config, joined.sharer, joined.receiver)
    with tempfile.TemporaryDirectory() as folder:
        arguments = H2CTrainingArguments(
            **{
                "output_dir": folder, "seed": seed, "per_device_train_batch_size": 64, "learning_rate": 3e-3, "num_train_epochs": 1,
                "save_strategy": "no", "report_to": "none", "logging_steps": 10, "disable_tqdm": True,
                "train_sampling_strategy": "group_by_length", "dataloader_pin_memory": torch.cuda.is_available(), **grid.training,
            }
        )  # fmt: skip
        H2CTrainer(model, arguments, processor, train_dataset=concatenate_datasets([encoded[form].select(rows) for form in FORMS])).train()
    return model, len(rows)


def ask(model: H2CForCausalLM, split: str, merits: dict) -> dict[str, list[int]]:
    """{"merit/method": 1 where a question of the split was answered rightly, else 0}."""
    correct = {}
    for merit, (kind, form, methods) in merits.items():
        for method, result in evaluate(model, pair()[1], questions_of(split)[kind], methods, form=form).items():
            correct[f"{merit}/{method}"] = [int(right) for right in result["correct"]]
    return correct


def compute(path: Path, grid: Grid, form: str | None = None, run: str | None = None, seed: int | None = None) -> None:
    """A cell, or (without a form) what both models answer alone; written beside its place and renamed, whole or not at all."""
    torch.set_num_threads(1)
    started = time.monotonic()
    if form is None:
        cell = {"correct": ask(pair()[0], grid.split, ALONE)}
    else:
        model, count = train(grid, grid.forms[form] or {}, grid.runs[run] or {}, seed)
        trained = time.monotonic() - started
        cell = {
            "form": form, "run": run, "seed": seed, "fields": grid.forms[form] or {}, "questions": count, "training_seconds": trained,
            "parameters": model.bridge.num_parameters(), "correct": ask(model, grid.split, MERITS),
        }  # fmt: skip
    part = path.with_suffix(".part")
    part.write_text(json.dumps(cell) + "\n", encoding="utf-8")
    part.replace(path)
    print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)


def run_grid(grid: Grid, output: Path, processes: int = 1) -> None:
    """Compute the cells that are missing: seed by seed, so that a grid that is stopped has whole rows of fewer seeds."""
    output.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"split": grid.split, "variants": grid.variants, "training": grid.training, "runs": grid.runs}, sort_keys=True)
    kept = output / "settings.json"
    if kept.exists() and kept.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{output} holds cells of other settings, {kept.read_text(encoding='utf-8')}; expected another --output.")
    kept.write_text(settings, encoding="utf-8")
    cells = [(output / "alone.json", grid)]
    cells += [
        (output / f"{form}.{run}.{seed}.json", grid, form, run, seed) for seed in grid.seeds for run in grid.runs for form in grid.forms
    ]
    missing = [cell for cell in cells if not done(cell)]
    if processes == 1:
        for cell in missing:
            compute(*cell)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(compute, missing, chunksize=1)


def done(cell: tuple) -> bool:
    """Whether a cell is there.

    Raises:
        ValueError: where it is of a form of the same name with other fields.
    """
    path, grid, *what = cell
    if not path.exists():
        return False
    if what and (got := json.loads(path.read_text(encoding="utf-8"))["fields"]) != (grid.forms[what[0]] or {}):
        raise ValueError(f"{path} is of a form with {got}; expected {grid.forms[what[0]]}: give it another name, or another --output.")
    return True


def table(grid: Grid, output: Path) -> str:
    """The finished cells as a Markdown table, a row a form and run. Intervals (95 %) are over questions, each seed's answers averaged."""
    alone = {name: np.array(right) for name, right in json.loads((output / "alone.json").read_text(encoding="utf-8"))["correct"].items()}
    subjects = np.array([question["subject"] for question in questions_of(grid.split)["plain"]])
    titles = ("form", "run", "seeds", "questions", "parameters", "choice, recovered (%)", "choice, shuffled Sharer (%)")
    titles += ("open, of the Sharer's (%)", "told, points lost")
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for form in grid.forms:
        for run, options in grid.runs.items():
            paths = [output / f"{form}.{run}.{seed}.json" for seed in grid.seeds]
            cells = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
            if not cells:
                continue
            asked = np.isin(subjects, options["without"]) if (options or {}).get("without") else np.ones(len(subjects), bool)
            mean = {name: np.mean([cell["correct"][name] for cell in cells], 0)[asked] for name in cells[0]["correct"]}
            base = {name: right[asked] for name, right in alone.items()}
            lead = recovered(mean["choice/h2c"], base["choice/receiver"], base["choice/sharer"])
            written = recovered(mean["open/h2c"], np.zeros(asked.sum()), base["open/sharer"])
            lost = mean_difference(base["told/receiver"], mean["told/h2c"])
            row = [
                form, run, str(len(cells)), f"{cells[0]['questions']:,}", f"{cells[0]['parameters']:,}", with_interval(lead),
                f"{100 * mean['choice/shuffled'].mean():.1f}", with_interval(written), with_interval(lost),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def with_interval(row: dict) -> str:
    """A fraction as per cent, and its interval where it has one (there is no share of a lead that is none)."""
    value, low, high = ("-" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def main(arguments: list[str] | None = None) -> int:
    """`python scripts/ablate.py GRID.yaml`."""
    parser = argparse.ArgumentParser(prog="scripts/ablate.py", description=__doc__)
    parser.add_argument("grid", help="yaml file of the fields of h2c_hf.ablation.Grid")
    parser.add_argument("--output", default="outputs/ablation", help="folder of the cells (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="cells that are computed side by side (default: %(default)s)")
    options = parser.parse_args(arguments)
    grid, output = Grid.read(options.grid), Path(options.output)
    run_grid(grid, output, options.processes)
    text = table(grid, output)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0
