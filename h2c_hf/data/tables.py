"""Rows of a dataset by short name, Hub id, folder or file, and the texts that a row holds."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset

from .files import refuse_missing, told_of


# Short names of datasets on the Hub: (id, configuration).
NAMES = {"openhermes": ("teknium/OpenHermes-2.5", None), "mmlu": ("cais/mmlu", "all")}
FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# Parts of a dataset that comes in one piece, with the share of records that each holds.
PARTS = {"train": 0.9, "validation": 0.05, "test": 0.05}


def load_table(
    path: str,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Load the rows of one split.

    Args:
        path: a short name, Hub id, folder or file; `$NAME` in it is an environment variable, for data that
            lies elsewhere on each machine.

    Raises:
        ValueError: for a path, configuration or split that does not exist, or a variable that is not set, in
            one line.
    """
    path, default = NAMES.get(path, (path, None))
    path = expand(path)
    options = {"split": split, "streaming": streaming}
    with told_of():
        refuse_missing(path)
        if Path(path).is_file():
            if Path(path).suffix not in FILES:
                raise ValueError(
                    f"{path} is a {Path(path).suffix or 'nameless'} file; expected {', '.join(FILES)}"
                )
            return datasets.load_dataset(FILES[Path(path).suffix], data_files=path, **options)
        return datasets.load_dataset(path, name or default, revision=revision, **options)


def expand(path: str) -> str:
    """Return a path with its environment variables filled in.

    Raises:
        ValueError: for a variable that is not set.
    """
    expanded = os.path.expandvars(path)
    if found := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(
            f"the environment variable {found[1]} in {path!r} is not set; set it to the folder that holds "
            "the data."
        )
    return expanded


def texts(record: dict) -> Iterator[str]:
    """The texts of a record: of `text`, `context`, `passage`, `question`, `prompt`, `completion`, and of the
    turns of a conversation."""
    for column in (
        "text",
        "context",
        "passage",
        "question",
        "prompt",
        "completion",
        "conversations",
        "messages",
    ):
        value = record.get(column)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (turn.get("value") or turn.get("content") or "" for turn in value)


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text only, by its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def part_of(text: str) -> str:
    """The part in `PARTS` to which a record with this first text belongs."""
    place = share(text)
    return (
        "test"
        if place < PARTS["test"]
        else "validation"
        if place < PARTS["test"] + PARTS["validation"]
        else "train"
    )


def in_part(record: dict, part: str) -> bool:
    """Whether a record belongs to a part, by its first text that is not empty; without any, to "train"."""
    first = next((words for text in texts(record) if (words := text.split())), [])
    return (part_of(" ".join(first)) if first else "train") == part


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
