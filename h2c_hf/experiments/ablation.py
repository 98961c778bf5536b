"""`h2c ablate GRID.yaml`: bridges of several forms, trained alike on Atlas, in two tables by form and run.

A cell is a bridge of one form, trained in one run (on how much of which questions) with one seed, and then
asked. It is kept as a json file, so that a grid that was stopped goes on where it was. The questions and the
tables: `h2c_hf.experiments.merits`.
"""

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

from ..atlas.facts import SPLITS, load_facts
from ..atomic import write_text
from ..config_parser import read_yaml
from ..data.examples import encode_example
from ..data.sources import DataSource, reader
from ..modeling import H2CBridgeConfig, H2CForCausalLM, H2CProcessor
from ..modeling.configuration_h2c import PUBLISHED
from ..pair import atlas_pair
from ..training.arguments import H2CTrainingArguments
from ..training.trainer import H2CTrainer
from .cache_fusion import CacheFusion
from .merits import ALONE, ON_ALL, ON_FEW, ask, harm_table, knowledge_table
from .parsers import ablate as parser


# A form may say, beside the fields of its config, that it is the other system, and its own learning rate.
FUSION, RATE = "cache_fusion", "learning_rate"
BATCH = 16  # examples a step, where the grid says nothing


@dataclass
class Grid:
    """A grid file.

    Args:
        forms: name -> fields of `H2CBridgeConfig` that differ from the published form; `cache_fusion: true`,
            for the related system of `h2c_hf.experiments.cache_fusion`; and a `learning_rate`, if it needs
            another than the others.
        sources: the training data, as `train_data` of a training.yaml; of Atlas.
        runs: name -> `fraction` of the train entities (default 1), and `without`: subjects that are not
            trained on, and alone asked. Every run takes as many steps as one with all the data.
        seeds: of each cell: weights, order of the examples, and which entities a fraction holds.
        split: whose questions are asked. Choose on validation; a table of "test" is for the report.
        training: fields of `H2CTrainingArguments`, the same for all.
    """

    forms: dict[str, dict]
    sources: list[dict]
    runs: dict[str, dict] = field(default_factory=lambda: {"all": {}})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    split: str = "validation"
    training: dict = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Grid":
        """
        Raises:
            ValueError: for a field that there is not, a form that no bridge can have, or a run that trains on
                nothing.
        """
        values = read_yaml(path)
        refuse_unknown(values, [field.name for field in fields(cls)], path)
        for name, what in (
            ("forms", "a mapping of names to fields of H2CBridgeConfig"),
            ("sources", "a list of data sources"),
        ):
            if not values.get(name):
                raise ValueError(f"{path} has no {name}; expected {what}.")
        grid = cls(**values)
        for form in grid.forms.values():
            refuse_unknown(form or {}, [*PUBLISHED, FUSION, RATE], path)
            H2CBridgeConfig.published(**bridge_fields(form or {}))
        if other := [source.path for source in map(DataSource.parse, grid.sources) if source.path != "atlas"]:
            raise ValueError(f"A source of {path} is {other[0]}; expected atlas, of which the questions are.")
        if grid.split not in SPLITS[1:]:
            raise ValueError(f"split is {grid.split!r}; expected {' or '.join(SPLITS[1:])}.")
        for name, run in grid.runs.items():
            refuse_unknown(run or {}, ["fraction", "without"], path)
            if not 0 < (run or {}).get("fraction", 1) <= 1:
                raise ValueError(
                    f"fraction of run {name} is {run['fraction']}; expected more than 0 and at most 1."
                )
            if unknown := set((run or {}).get("without", ())) - {fact.attribute for fact in load_facts()}:
                raise ValueError(
                    f"Run {name} is without {', '.join(sorted(unknown))}, which no question is about."
                )
        return grid


def refuse_unknown(values, known, path) -> None:
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{path} has a field {unknown[0]!r}; expected one of {', '.join(known)}.")


def bridge_fields(form: dict) -> dict:
    return {name: value for name, value in form.items() if name in PUBLISHED}


@lru_cache(1)
def pair() -> tuple[H2CForCausalLM, H2CProcessor]:
    return atlas_pair()


@lru_cache
def examples(source: str) -> tuple[list[dict], Dataset]:
    """The examples of a source (as json), and the record that each is of; encoded once a process."""
    parsed = DataSource.parse(json.loads(source))
    records = parsed.load()
    read, processor = reader(records.column_names, parsed), pair()[1]
    found = [(record, exchange) for record in records for exchange in read(record)]
    encoded = Dataset.from_list([encode_example(processor, *exchange) for _, exchange in found])
    return [record for record, _ in found], encoded.add_column(
        "length", [len(ids) for ids in encoded["sharer_input_ids"]]
    )


def training_rows(grid: Grid, run: dict, seed: int) -> tuple[Dataset, int, int]:
    """Return a run's training data, the examples of a run with all of it, and the facts asked about."""
    without = run.get("without", ())
    loaded = [examples(json.dumps(source, sort_keys=True)) for source in grid.sources]
    entities = sorted(
        {fact.entity for fact in load_facts() if fact.split == "train" and fact.attribute not in without}
    )
    order = np.random.default_rng(seed).permutation(len(entities))
    kept = {entities[i] for i in order[: max(1, round(run.get("fraction", 1) * len(entities)))]}

    def keeps(record: dict) -> bool:  # a quiz is about no one fact
        return "entity" not in record or (record["entity"] in kept and record["subject"] not in without)

    parts = [
        encoded.select([i for i, record in enumerate(records) if keeps(record)])
        for records, encoded in loaded
    ]
    facts = sum(
        fact.entity in kept and fact.attribute not in without
        for fact in load_facts()
        if fact.split == "train"
    )
    return concatenate_datasets(parts), sum(len(encoded) for _, encoded in loaded), facts


def train(grid: Grid, form: dict, run: dict, seed: int) -> tuple[H2CForCausalLM, int]:
    """A bridge of a form for the pair, trained; and the number of facts that it was trained on."""
    rows, whole, facts = training_rows(grid, run, seed)
    batch = grid.training.get("per_device_train_batch_size", BATCH)
    steps = grid.training.get("max_steps") or round(
        grid.training.get("num_train_epochs", 1) * -(-whole // batch)
    )
    set_seed(seed)
    joined, processor = pair()
    if form.get(FUSION):
        model = CacheFusion(
            joined.sharer, joined.receiver, processor, anneal_steps=steps, **bridge_fields(form)
        )
    else:
        config = H2CBridgeConfig.published(
            joined.sharer.config, joined.receiver.config, **bridge_fields(form)
        )
        model = H2CForCausalLM(config, joined.sharer, joined.receiver)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(grid, form, seed, steps, folder)
        H2CTrainer(model, arguments, processor, train_dataset=rows).train()
    return model, facts


def training_arguments(grid: Grid, form: dict, seed: int, steps: int, folder: str) -> H2CTrainingArguments:
    """A form's own learning rate counts before the grid's."""
    values = {
        "per_device_train_batch_size": BATCH, "learning_rate": 3e-3, "save_strategy": "no",
        "report_to": "none", "logging_steps": 10, "disable_tqdm": True,
        "train_sampling_strategy": "group_by_length", "dataloader_pin_memory": torch.cuda.is_available(),
        **grid.training, "output_dir": folder, "seed": seed, "max_steps": steps,
    }  # fmt: skip
    return H2CTrainingArguments(**{**values, RATE: form.get(RATE, values["learning_rate"])})


def compute(
    path: Path, grid: Grid, form: str | None = None, run: str | None = None, seed: int | None = None
) -> None:
    """Compute a cell, or (without a form) the answers of both models alone, and write it atomically."""
    torch.set_num_threads(1)
    started = time.monotonic()
    if form is None:
        cell = ask(*pair(), grid.split, ALONE)
    else:
        model, facts = train(grid, grid.forms[form] or {}, grid.runs[run] or {}, seed)
        trained = time.monotonic() - started
        cell = {
            "form": form, "run": run, "seed": seed, "fields": grid.forms[form] or {}, "facts": facts,
            "training_seconds": trained, "parameters": model.bridge.num_parameters(),
            **ask(model, pair()[1], grid.split, ON_FEW if grid.runs[run] else ON_ALL),
        }  # fmt: skip
    write_text(path, json.dumps(cell) + "\n")
    print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)


def run_grid(grid: Grid, output: Path, processes: int = 1) -> None:
    """Compute missing cells, seed by seed, so that a grid that is stopped has whole rows of fewer seeds."""
    output.mkdir(parents=True, exist_ok=True)
    kept, names = output / "settings.json", ("split", "sources", "training", "runs")
    settings = json.dumps({name: getattr(grid, name) for name in names}, sort_keys=True)
    if kept.exists() and kept.read_text(encoding="utf-8") != settings:
        raise ValueError(
            f"{output} holds cells of other settings, {kept.read_text(encoding='utf-8')}; expected another "
            "--output."
        )
    kept.write_text(settings, encoding="utf-8")
    cells = [(output / "alone.json", grid)]
    cells += [
        (output / f"{form}.{run}.{seed}.json", grid, form, run, seed)
        for seed in grid.seeds
        for run in grid.runs
        for form in grid.forms
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
        ValueError: if it is of a form of the same name with other fields.
    """
    path, grid, *what = cell
    if not path.exists():
        return False
    if what and (got := json.loads(path.read_text(encoding="utf-8"))["fields"]) != (
        grid.forms[what[0]] or {}
    ):
        raise ValueError(
            f"{path} is of a form with {got}; expected {grid.forms[what[0]]}: give it another name, or "
            "another --output."
        )
    return True


def tables(grid: Grid, output: Path) -> str:
    """Return the finished cells as two Markdown tables: carried facts, a row a form and run; and other
    questions to those that saw all."""
    alone = json.loads((output / "alone.json").read_text(encoding="utf-8"))
    rows = []
    for form in grid.forms:
        for run in grid.runs:
            paths = [output / f"{form}.{run}.{seed}.json" for seed in grid.seeds]
            if cells := [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]:
                rows.append((form, run, grid.runs[run] or {}, cells))
    whole = [(form, cells) for form, _, options, cells in rows if not options]
    return "\n\n".join(
        [knowledge_table(rows, alone, grid.split), *([harm_table(whole, alone)] if whole else [])]
    )


def main(arguments: list[str] | None = None) -> int:
    """`h2c ablate`."""
    options = parser().parse_args(arguments)
    grid, output = Grid.read(options.grid), Path(options.output)
    run_grid(grid, output, options.processes)
    text = tables(grid, output)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0
