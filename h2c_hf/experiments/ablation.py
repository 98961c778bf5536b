"""`h2c ablate GRID.yaml`: bridges of several forms, trained alike, and tables of their answers.

A cell of a grid is a bridge of one form, trained with one seed and then asked. It is kept as a json file, so
that a grid that was stopped goes on where it was. There are grids of Atlas (`atlas_grid`), and of the pair
and the data of a training.yaml (`pair_grid`).
"""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from ..atomic import write_text
from ..config_parser import read_yaml
from .atlas_grid import AtlasGrid
from .pair_grid import PairGrid
from .parsers import ablate as parser


ALONE = ()  # the cell of the models without a bridge


def read(path: str | Path) -> AtlasGrid | PairGrid:
    """
    Raises:
        ValueError: see `AtlasGrid.read` and `PairGrid.read`.
    """
    return PairGrid.read(path) if "config" in read_yaml(path) else AtlasGrid.read(path)


def run_grid(grid: AtlasGrid | PairGrid, output: Path, processes: int = 1) -> None:
    """Compute missing cells, seed by seed, so that a grid that is stopped has whole rows of fewer seeds.

    Raises:
        ValueError: if `output` holds cells of other settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    kept, settings = output / "settings.json", json.dumps(grid.settings(), sort_keys=True)
    if kept.exists() and kept.read_text(encoding="utf-8") != settings:
        raise ValueError(
            f"{output} holds cells of other settings, {kept.read_text(encoding='utf-8')}; expected another "
            "--output."
        )
    kept.write_text(settings, encoding="utf-8")
    missing = [(grid, output, cell) for cell in (ALONE, *grid.cells()) if not done(grid, output, cell)]
    if processes == 1:
        for arguments in missing:
            compute(*arguments)
        return
    # Not a Pool, which waits for ever for a cell whose process was killed.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            for done_cell in [pool.submit(compute, *arguments) for arguments in missing]:
                done_cell.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "A process was killed, most often for memory; expected fewer --processes. The same command "
                "goes on from the cells that are done."
            ) from error


def cell_path(output: Path, cell: tuple) -> Path:
    return output / f"{'.'.join(map(str, cell)) or 'alone'}.json"


def done(grid: AtlasGrid | PairGrid, output: Path, cell: tuple) -> bool:
    """Whether a cell is there.

    Raises:
        ValueError: if it is of a form of the same name with other fields.
    """
    path = cell_path(output, cell)
    if not path.exists():
        return False
    if cell and (got := json.loads(path.read_text(encoding="utf-8"))["fields"]) != grid.forms[cell[0]]:
        raise ValueError(
            f"{path} is of a form with {got}; expected {grid.forms[cell[0]]}: give it another name, or "
            "another --output."
        )
    return True


def compute(grid: AtlasGrid | PairGrid, output: Path, cell: tuple) -> None:
    """Compute a cell and write it atomically."""
    torch.set_num_threads(1)
    started = time.monotonic()
    computed = grid.compute(*cell) if cell else grid.compute_alone()
    write_text(cell_path(output, cell), json.dumps(computed) + "\n")
    print(f"{cell_path(output, cell).name}: {time.monotonic() - started:.0f} s", flush=True)


def tables(grid: AtlasGrid | PairGrid, output: Path) -> str:
    """Return the finished cells as Markdown tables."""
    paths = {cell: cell_path(output, cell) for cell in (ALONE, *grid.cells())}
    return grid.tables(
        {cell: json.loads(path.read_text(encoding="utf-8")) for cell, path in paths.items() if path.exists()}
    )


def main(arguments: list[str] | None = None) -> int:
    """`h2c ablate`."""
    options = parser().parse_args(arguments)
    grid, output = read(options.grid), Path(options.output)
    run_grid(grid, output, options.processes)
    text = tables(grid, output)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0
