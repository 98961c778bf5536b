"""Local files that are missing, empty or broken: told in one sentence, before the Hub is asked."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from datasets.exceptions import DatasetGenerationError, DatasetsError


DATA_SUFFIXES = (
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt", ".xlsx", ".gz",
    ".zst", ".xz", ".bz2", ".zip",
)  # fmt: skip


def refuse_missing(path: str) -> None:
    """Refuse a path that names no Hub repo and does not exist; the Hub would be asked for it for a while.

    Raises:
        ValueError: naming the path.
    """
    local = (
        path.lower().endswith(DATA_SUFFIXES)
        or path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or "\\" in path
    )
    if local and "://" not in path and not Path(path).exists():
        raise ValueError(f"there is no file or folder {path!r}; expected one, or a Hub id")


@contextlib.contextmanager
def told_of(prefix: str = "") -> Iterator[None]:
    """Tell the errors of `datasets` in one sentence after `prefix`: they are long, and name no file.

    Raises:
        ValueError: in their place.
    """
    try:
        yield
    except StopIteration:  # of an empty JSON file
        raise ValueError(f"{prefix}it is empty; expected at least one record.") from None
    except (OSError, EOFError, ValueError, DatasetsError) as error:
        # DatasetGenerationError says that there was an error, and no more.
        if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
            error = error.__cause__
        reason = " ".join(str(error).split()).rstrip(".")
        if "corresponds to no data" in reason:
            reason = "it has no records; expected at least one"
        raise ValueError(f"{prefix}{reason}.") from None
