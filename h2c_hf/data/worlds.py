"""Sources that are made, not loaded. A world registers itself under the path that names it in a mixture."""

from collections.abc import Callable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .sources import DataSource

# path: function of the source that returns its records
WORLDS: dict[str, Callable[["DataSource"], list[dict]]] = {}


def register_world(path: str) -> Callable:
    """Register the decorated function under a path."""

    def register(records: Callable[["DataSource"], list[dict]]) -> Callable[["DataSource"], list[dict]]:
        WORLDS[path] = records
        return records

    return register
