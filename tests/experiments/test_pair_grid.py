"""`h2c ablate` with the pair and the data of a training.yaml."""

import json

import pytest

from h2c_hf.experiments.ablation import ALONE, main, read


TRAINING = """
sharer: atlas
receiver: atlas
train_data: [{path: atlas, form: hand_off, facts: 1}]
max_steps: 2
per_device_train_batch_size: 4
dropout: 0.0
"""
GRID = """
config: {config}
sets: [{{name: one fact, regime: private, path: atlas, split: test, form: hand_off, facts: 1, limit: 8}}]
forms:
  message: {{bridge_form: message, fit_examples: 64, learning_rate: 1.0e-3}}
  rewrite: {{bridge_form: rewrite, recency_bias: false, sharer_rank: 0}}
  fusion: {{cache_fusion: true, inner_size: 16}}
seeds: [0]
"""


def written(folder, text=GRID):
    (folder / "training.yaml").write_text(TRAINING)
    (folder / "grid.yaml").write_text(text.format(config=folder / "training.yaml"))
    return folder / "grid.yaml"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sets: ": "questions: "}, "has a field 'questions'; expected one of config, forms, sets, seeds"),
        ({"forms:": "forms: {}\nseeds:"}, "has no forms; expected a mapping of names to fields of the"),
        ({"sharer_rank: 0": "gates: 1"}, "gates"),
        ({"bridge_form: message": "bridge_form: letter"}, "bridge_form is 'letter'"),
        ({"regime: private": "regime: secret"}, "regime of the set 'one fact' is 'secret'"),
        ({"inner_size: 16": "inner_size: 0"}, "inner_size of fusion is 0; expected at least 1"),
        ({"cache_fusion: true, ": ""}, "inner_size"),
        ({"seeds: [0]": "seeds: []"}, "has no seeds; expected a list of numbers"),
    ],
)
def test_bad_grids(tmp_path, change, message):
    text = GRID
    for old, new in change.items():
        text = text.replace(old, new)
    if "forms:" in change:
        text = "config: {config}\nforms: {{}}\nsets: [a]\n"
    path = written(tmp_path, text)
    with pytest.raises((ValueError, SystemExit), match=message):
        main([str(path), "--output", str(tmp_path / "cells")])
    assert not (tmp_path / "cells").exists()


def test_a_grid_trains_and_asks_every_form_and_goes_on(tmp_path, capsys):
    path, output = written(tmp_path), tmp_path / "cells"
    assert main([str(path), "--output", str(output)]) == 0
    cells = {
        name: json.loads((output / f"{name}.0.json").read_text()) for name in ("message", "rewrite", "fusion")
    }
    alone = json.loads((output / "alone.json").read_text())
    assert set(alone["correct"]) == {"one fact/receiver", "one fact/sharer"}
    for cell in cells.values():
        assert set(cell["correct"]) == {"one fact/h2c", "one fact/shuffled"}
        assert all(len(right) == 8 for right in cell["correct"].values())
    assert len({cell["parameters"] for cell in cells.values()}) == 3
    table = (output / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| message", "| rewrite", "| fusion", "| receiver alone", "| sharer alone",
    ]  # fmt: skip
    kept = (output / "fusion.0.json").stat().st_mtime_ns
    (output / "rewrite.0.json").unlink()
    assert main([str(path), "--output", str(output)]) == 0
    assert (output / "fusion.0.json").stat().st_mtime_ns == kept
    assert json.loads((output / "rewrite.0.json").read_text())["correct"] == cells["rewrite"]["correct"]


def test_a_table_holds_the_mean_over_seeds_and_its_interval(tmp_path):
    grid = read(written(tmp_path))
    grid.seeds = [0, 1]
    correct = {"one fact/h2c": [1, 1, 0, 0], "one fact/shuffled": [0, 0, 0, 1]}
    more = {**correct, "one fact/h2c": [1, 1, 1, 1]}
    alone = {"correct": {"one fact/receiver": [0, 0, 0, 0], "one fact/sharer": [1, 0, 0, 0]}}
    cells = {
        ALONE: alone,
        ("message", 0): {"parameters": 1000, "correct": correct},
        ("message", 1): {"parameters": 1000, "correct": more},
    }
    _, _, message, receiver, sharer = grid.tables(cells).splitlines()
    assert message.startswith("| message | 2 | 1,000 | 75.0 (") and message.endswith("[50.0, 100.0] | 25.0 |")
    assert receiver == "| receiver alone |  |  | 0.0 |  |" and sharer == "| sharer alone |  |  | 25.0 |  |"
