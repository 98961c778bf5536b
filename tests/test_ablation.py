import json

import numpy as np
import pytest

from h2c_hf.ablation import Grid, main, questions_of, run_grid, table


GRID = """
forms: {published: {}, better: {recency_bias: true, sharer_rank: 16}}
runs: {few: {fraction: 0.01}, others: {fraction: 0.01, without: [sport, sector]}}
seeds: [0]
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def test_the_table_is_of_the_cells(grid, tmp_path):
    """Against plain arithmetic on answers that are drawn at random."""
    read, rng = Grid.read(grid), np.random.default_rng(0)
    subjects = np.array([question["subject"] for question in questions_of("validation")["plain"]])

    def answers(*names):
        return {name: (rng.random(len(subjects)) < (0.9 if "sharer" in name else 0.4)).astype(int).tolist() for name in names}

    alone = answers("choice/receiver", "choice/sharer", "open/sharer", "told/receiver")
    (tmp_path / "alone.json").write_text(json.dumps({"correct": alone}))
    cells = {}
    for run in read.runs:
        cells[run] = answers("choice/h2c", "choice/shuffled", "open/h2c", "told/h2c")
        cell = {"questions": 7, "parameters": 1234, "correct": cells[run]}
        (tmp_path / f"better.{run}.0.json").write_text(json.dumps(cell))
    rows = [row.strip("| ").split(" | ") for row in table(read, tmp_path).splitlines()[2:]]
    assert [row[:5] for row in rows] == [["better", run, "1", "7", "1,234"] for run in read.runs]
    for row, run in zip(rows, read.runs, strict=True):
        asked = np.isin(subjects, ["sport", "sector"]) if run == "others" else np.full(len(subjects), True)
        right = {name: np.array(values)[asked].mean() for name, values in {**alone, **cells[run]}.items()}
        expected = (
            (right["choice/h2c"] - right["choice/receiver"]) / (right["choice/sharer"] - right["choice/receiver"]),
            right["choice/shuffled"], right["open/h2c"] / right["open/sharer"], right["told/receiver"] - right["told/h2c"],
        )  # fmt: skip
        assert [float(value.split()[0]) for value in row[5:]] == pytest.approx([100 * value for value in expected], abs=0.051)


@pytest.mark.parametrize(
    "text, message",
    [
        ("seeds: [0]", "has no forms"),
        ("forms: {a: {}}\nseed: 0", "has a field 'seed'; expected one of forms, runs, seeds"),
        ("forms: {a: {gates: 1}}", "has a field 'gates'; expected one of num_attention_heads"),
        ("forms: {a: {sharer_rank: 0}}", "sharer_rank is 0; expected at least 1"),
        ("forms: {a: {}}\nruns: {r: {fraction: 2}}", "fraction of run r is 2; expected more than 0 and at most 1"),
        ("forms: {a: {}}\nruns: {r: {without: [weather]}}", "Run r is without weather, which no question is about"),
    ],
)
def test_bad_grids(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        main([str(tmp_path / "grid.yaml"), "--output", str(tmp_path / "cells")])
    assert not (tmp_path / "cells").exists()


def test_cells_of_other_settings_or_fields_are_not_taken_for_these(grid, tmp_path):
    read = Grid.read(grid)
    cells = tmp_path / "cells"
    cells.mkdir()
    (cells / "alone.json").write_text("{}")
    (cells / "better.few.0.json").write_text(json.dumps({"fields": {"recency_bias": True}}))
    with pytest.raises(ValueError, match="is of a form with {'recency_bias': True}; expected .*'sharer_rank': 16"):
        run_grid(read, cells)
    read.variants = 2
    with pytest.raises(ValueError, match="holds cells of other settings"):
        run_grid(read, cells)


@pytest.mark.slow
def test_a_grid_goes_on_where_it_was_stopped_and_a_seed_gives_the_same_answers(grid, tmp_path):
    assert main([str(grid), "--output", str(tmp_path / "first"), "--processes", "2"]) == 0
    cell = tmp_path / "first" / "better.others.0.json"
    before, kept = json.loads(cell.read_text()), (tmp_path / "first" / "published.few.0.json").stat().st_mtime_ns
    cell.unlink()
    assert main([str(grid), "--output", str(tmp_path / "first")]) == 0
    assert json.loads(cell.read_text())["correct"] == before["correct"]
    assert (tmp_path / "first" / "published.few.0.json").stat().st_mtime_ns == kept
    assert len((tmp_path / "first" / "table.md").read_text().splitlines()) == 2 + 4
