"""The data of a run: training and validation examples, and their lengths."""

import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset

from ..atomic import write_text
from ..data.mixture import DataReport, build_dataset
from ..data.rows import spread_rows
from ..modeling import H2CProcessor
from .arguments import H2CArguments, H2CTrainingArguments


SAMPLE = 1000  # examples whose lengths stand for all


@dataclass
class Lengths:
    """Tokens an example, of a sample of the training data: means and largest."""

    counted: int
    sharer: float
    prompt: float
    target: float
    sharer_max: int
    prompt_max: int
    target_max: int


@dataclass
class Data:
    """`guards`: examples of `guard_data`, as they are encoded. `validation` holds a dataset for each source;
    `answered`: examples for the model to answer in words."""

    train: Dataset | IterableDataset
    guards: Dataset | None
    validation: dict[str, Dataset]
    reports: dict[str, DataReport]
    answered: list[dict]
    lengths: Lengths

    def describe(self) -> str:
        return "\n".join(f"{role}:\n{report}" for role, report in self.reports.items())

    def save(self, directory: Path) -> None:
        """Write `data.json`: counts by source and reason."""
        directory.mkdir(parents=True, exist_ok=True)
        counts = {role: report.to_dict() for role, report in self.reports.items()}
        write_text(
            directory / "data.json",
            json.dumps({"counts": counts, "lengths": asdict(self.lengths)}, indent=1) + "\n",
        )


def load_data(
    h2c: H2CArguments, training: H2CTrainingArguments, processor: H2CProcessor, together: int | None = None
) -> Data:
    """Encode the data that the arguments name. Other ranks wait for the first, then read the datasets cache.

    Args:
        together: see `build_dataset`.
    """
    settings = {
        "max_length": h2c.max_length,
        "together": together,
        "seed": training.seed,
        "num_proc": h2c.num_proc,
    }
    with training.main_process_first(desc="encoding the data"):
        train, held_out, report = build_dataset(
            h2c.train_data, processor, streaming=h2c.streaming, hold_out=h2c.validation_fraction, **settings
        )
        reports, validation = {"train": report}, {} if held_out is None else {"held_out": held_out}
        guards = None
        if h2c.guard_data:
            guards, _, reports["guard"] = build_dataset(h2c.guard_data, processor, **settings)
        for source in h2c.validation_data:
            name = unused_name(validation, f"{Path(source.path).stem.lower()}_{source.form}")
            validation[name], _, reports[name] = build_dataset([source], processor, **settings)
    answered = [
        example
        for dataset in validation.values()
        for example in islice(dataset, -(-h2c.generations // len(validation)))
    ]
    lengths = sampled_lengths(train)
    if h2c.streaming:
        reports["train"].reset()  # the sample is read again
    return Data(train, guards, validation, reports, answered, lengths)


def unused_name(taken: dict, name: str) -> str:
    """Return `name`, with a number if it is taken."""
    return next(
        candidate
        for n in range(1, len(taken) + 2)
        if (candidate := name if n == 1 else f"{name}_{n}") not in taken
    )


def sampled_lengths(train: Dataset | IterableDataset) -> Lengths:
    if isinstance(train, Dataset):  # from all over it: sources and forms differ
        train = train.select(spread_rows(len(train), SAMPLE))
    rows = list(islice(train, SAMPLE))
    columns = [
        np.array([len(row[name]) for row in rows]) for name in ("sharer_input_ids", "input_ids", "target_ids")
    ]
    return Lengths(
        len(rows), *(float(column.mean()) for column in columns), *(int(column.max()) for column in columns)
    )
