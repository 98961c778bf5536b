"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the body ends, rename the file or folder that was
    written there to `path`.

    An older file or folder of the name is replaced then. If the body fails, it stays, and nothing is left of
    the new one.
    """
    temporary_path = path.with_name(f"{path.name}.part")
    remove(temporary_path)  # of a killed process
    try:
        yield temporary_path
        if path.is_dir():
            shutil.rmtree(path)
        temporary_path.replace(path)
    finally:
        remove(temporary_path)


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically, in UTF-8."""
    with atomic(path) as temporary_path:
        temporary_path.write_text(text, encoding="utf-8")
    return path


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
