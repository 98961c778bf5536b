"""Bridges of several forms, trained alike on Atlas, in two tables by form and run.

A cell is a bridge of one form, trained in one run (on how much of which questions) with one seed, and then
asked. The questions and the tables: `h2c_hf.experiments.merits`.
"""

import json
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


# A form may say, beside the fields of its config, that it is the other system, and its own learning rate.
FUSION, RATE = "cache_fusion", "learning_rate"
BATCH = 16  # examples a step, where the grid says nothing


@dataclass
class AtlasGrid:
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
    def read(cls, path: str | Path) -> "AtlasGrid":
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
        grid.forms, grid.runs = (
            {name: told or {} for name, told in named.items()} for named in (grid.forms, grid.runs)
        )
        for form in grid.forms.values():
            refuse_unknown(form, [*PUBLISHED, FUSION, RATE], path)
            H2CBridgeConfig.published(**bridge_fields(form))
        if other := [source.path for source in map(DataSource.parse, grid.sources) if source.path != "atlas"]:
            raise ValueError(f"A source of {path} is {other[0]}; expected atlas, of which the questions are.")
        if grid.split not in SPLITS[1:]:
            raise ValueError(f"split is {grid.split!r}; expected {' or '.join(SPLITS[1:])}.")
        for name, run in grid.runs.items():
            refuse_unknown(run, ["fraction", "without"], path)
            if not 0 < run.get("fraction", 1) <= 1:
                raise ValueError(
                    f"fraction of run {name} is {run['fraction']}; expected more than 0 and at most 1."
                )
            if unknown := set(run.get("without", ())) - {fact.attribute for fact in load_facts()}:
                raise ValueError(
                    f"Run {name} is without {', '.join(sorted(unknown))}, which no question is about."
                )
        return grid

    def settings(self) -> dict:
        """The fields that all cells of one folder share, beside the forms."""
        return {name: getattr(self, name) for name in ("split", "sources", "training", "runs")}

    def cells(self) -> list[tuple[str, str, int]]:
        return [(form, run, seed) for seed in self.seeds for run in self.runs for form in self.forms]

    def compute_alone(self) -> dict:
        """The answers of both models without a bridge."""
        return ask(*pair(), self.split, ALONE)

    def compute(self, form: str, run: str, seed: int) -> dict:
        """Train a bridge and ask it."""
        started = time.monotonic()
        model, facts = train(self, self.forms[form], self.runs[run], seed)
        return {
            "form": form, "run": run, "seed": seed, "fields": self.forms[form], "facts": facts,
            "training_seconds": time.monotonic() - started, "parameters": model.bridge.num_parameters(),
            **ask(model, pair()[1], self.split, ON_FEW if self.runs[run] else ON_ALL),
        }  # fmt: skip

    def tables(self, cells: dict[tuple, dict]) -> str:
        """Two Markdown tables: carried facts, a row a form and run; and other questions to those that saw
        all."""
        alone, rows = cells[()], []
        for form in self.forms:
            for run, options in self.runs.items():
                found = [cells[form, run, seed] for seed in self.seeds if (form, run, seed) in cells]
                if found:
                    rows.append((form, run, options, found))
        whole = [(form, found) for form, _, options, found in rows if not options]
        return "\n\n".join(
            [knowledge_table(rows, alone, self.split), *([harm_table(whole, alone)] if whole else [])]
        )


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


def training_rows(grid: AtlasGrid, run: dict, seed: int) -> tuple[Dataset, int, int]:
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


def train(grid: AtlasGrid, form: dict, run: dict, seed: int) -> tuple[H2CForCausalLM, int]:
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


def training_arguments(
    grid: AtlasGrid, form: dict, seed: int, steps: int, folder: str
) -> H2CTrainingArguments:
    """A form's own learning rate counts before the grid's."""
    values = {
        "per_device_train_batch_size": BATCH, "learning_rate": 3e-3, "save_strategy": "no",
        "report_to": "none", "logging_steps": 10, "disable_tqdm": True,
        "train_sampling_strategy": "group_by_length", "dataloader_pin_memory": torch.cuda.is_available(),
        **grid.training, "output_dir": folder, "seed": seed, "max_steps": steps,
    }  # fmt: skip
    return H2CTrainingArguments(**{**values, RATE: form.get(RATE, values["learning_rate"])})
