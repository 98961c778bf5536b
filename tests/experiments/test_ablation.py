import json
import os
import signal

import pytest
from datasets import Dataset

from h2c_hf.atlas.facts import load_facts
from h2c_hf.experiments.ablation import main, read, run_grid, tables
from h2c_hf.experiments.atlas_grid import examples, pair, training_arguments, training_rows


SOURCES = "sources: [{path: atlas}, {path: atlas, form: hand_off, facts: 1}]"
GRID = f"""
{SOURCES}
forms:
  published: {{}}
  better: {{recency_bias: true, sharer_rank: 16}}
  other: {{cache_fusion: true, learning_rate: 1.0e-3}}
runs: {{all: {{}}, few: {{fraction: 0.01, without: [sport, sector]}}}}
seeds: [0]
training: {{max_steps: 2}}
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.mark.parametrize(
    "text, message",
    [
        ("seeds: [0]", "has no forms"),
        ("forms: {a: {}}", "has no sources; expected a list"),
        ("forms: {a: {}}\nseed: 0", "has a field 'seed'; expected one of forms, sources, runs, seeds"),
        (
            "forms: {a: {gates: 1}}\nsources: [atlas]",
            "has a field 'gates'; expected one of bridge_form, num_attention_heads",
        ),
        ("forms: {a: {sharer_rank: 0}}\nsources: [atlas]", "sharer_rank is 0; expected at least 1"),
        ("forms: {a: {}}\nsources: [openhermes]", "A source of .* is openhermes; expected atlas"),
        ("forms: {a: {}}\nsources: [atlas]\nsplit: train", "split is 'train'; expected validation or test"),
        (
            "forms: {a: {}}\nsources: [atlas]\nruns: {r: {fraction: 2}}",
            "fraction of run r is 2; expected more than 0 and at most 1",
        ),
        (
            "forms: {a: {}}\nsources: [atlas]\nruns: {r: {without: [weather]}}",
            "Run r is without weather, which no question is about",
        ),
    ],
)
def test_bad_grids(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        main([str(tmp_path / "grid.yaml"), "--output", str(tmp_path / "cells")])
    assert not (tmp_path / "cells").exists()


def test_a_run_keeps_the_same_entities_of_every_source(grid, monkeypatch):
    """Of records as they are, which stand for what they are encoded to."""
    from h2c_hf.experiments import atlas_grid

    def records_alone(source):
        records = list(atlas_grid.DataSource.parse(json.loads(source)).load())
        return records, Dataset.from_list(
            [{"entity": r["entity"], "subject": r["subject"], "source": source} for r in records]
        )

    monkeypatch.setattr(atlas_grid, "examples", records_alone)
    loaded, facts = read(grid), [fact for fact in load_facts() if fact.split == "train"]
    rows, whole, asked = training_rows(loaded, {}, 0)
    assert len(rows) == whole == 2 * len(facts) and asked == len(facts)
    options = {"fraction": 0.1, "without": ["sport", "sector"]}
    rows, again, asked = training_rows(loaded, options, 0)
    allowed = {fact.entity for fact in facts if fact.attribute not in options["without"]}
    by_source = [{row["entity"] for row in rows if row["source"] == source} for source in set(rows["source"])]
    assert again == whole and by_source[0] == by_source[1] and len(by_source[0]) == round(0.1 * len(allowed))
    assert not set(rows["subject"]) & set(options["without"])
    kept = sum(fact.entity in by_source[0] and fact.attribute not in options["without"] for fact in facts)
    assert (len(rows), asked) == (2 * kept, kept)
    assert set(training_rows(loaded, options, 1)[0]["entity"]) != by_source[0]


def test_every_turn_of_a_quiz_is_an_example_and_a_share_of_the_facts_keeps_it(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "forms: {a: {}}\nsources: [{path: atlas}, {path: atlas, form: quiz, turns: all}]\n"
        "runs: {few: {fraction: 0.01}}\n"
    )
    grid = read(path)
    records, encoded = examples(json.dumps(grid.sources[1], sort_keys=True))
    tokenizer = pair()[1].receiver_tokenizer
    assert len(records) == len(encoded) == 4 * (len(encoded) // 4)
    for number in (0, 1, 6, 11):
        users = [message["content"] for message in records[number]["messages"][::2]]
        text = tokenizer.decode(encoded[number]["input_ids"])
        assert [user in text for user in users] == [turn <= number % 4 for turn in range(4)]
    rows, whole, asked = training_rows(grid, grid.runs["few"], 0)
    assert (
        whole == len(encoded) + len(examples(json.dumps(grid.sources[0], sort_keys=True))[0])
        and len(rows) == len(encoded) + asked
    )


def test_a_forms_own_learning_rate_counts_before_the_grids(grid, tmp_path):
    loaded = read(grid)
    rates = []
    for training in ({}, {"learning_rate": 2e-3, "per_device_train_batch_size": 8, "max_steps": 5}):
        loaded.training = training
        for form in loaded.forms.values():
            arguments = training_arguments(loaded, form, 1, 7, str(tmp_path))
            assert (arguments.max_steps, arguments.seed) == (7, 1)
            rates.append((arguments.learning_rate, arguments.per_device_train_batch_size))
    assert rates == [(3e-3, 16), (3e-3, 16), (1e-3, 16), (2e-3, 8), (2e-3, 8), (1e-3, 8)]


def test_cells_of_other_settings_or_fields_are_not_taken_for_these(grid, tmp_path):
    loaded = read(grid)
    cells = tmp_path / "cells"
    cells.mkdir()
    (cells / "alone.json").write_text("{}")
    (cells / "better.all.0.json").write_text(json.dumps({"fields": {"recency_bias": True}}))
    with pytest.raises(
        ValueError, match="is of a form with {'recency_bias': True}; expected .*'sharer_rank': 16"
    ):
        run_grid(loaded, cells)
    loaded.split = "test"
    with pytest.raises(ValueError, match="holds cells of other settings"):
        run_grid(loaded, cells)


@pytest.mark.slow
def test_a_grid_goes_on_where_it_was_stopped_and_a_seed_gives_the_same_answers(grid, tmp_path):
    assert main([str(grid), "--output", str(tmp_path / "first"), "--processes", "2"]) == 0
    cell = tmp_path / "first" / "better.few.0.json"
    before = json.loads(cell.read_text())
    kept = (tmp_path / "first" / "published.few.0.json").stat().st_mtime_ns
    cell.unlink()
    examples.cache_clear()
    assert main([str(grid), "--output", str(tmp_path / "first")]) == 0
    assert json.loads(cell.read_text())["correct"] == before["correct"]
    assert (tmp_path / "first" / "published.few.0.json").stat().st_mtime_ns == kept
    knowledge, harm = tables(read(grid), tmp_path / "first").split("\n\n")
    assert [len(part.splitlines()) for part in (knowledge, harm)] == [2 + 6, 2 + 3]


class Killed:
    """A grid of which one process is killed, as the kernel does it for memory."""

    forms = {"a": {}}

    def settings(self):
        return {}

    def cells(self):
        return [("a", 0)]

    def compute_alone(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def compute(self, form, seed):
        return {"fields": {}}


def test_a_process_that_is_killed_is_told_of(tmp_path):
    """In place of waiting for its cell for ever."""
    with pytest.raises(ValueError, match="A process was killed, .*expected fewer --processes"):
        run_grid(Killed(), tmp_path / "cells", processes=2)
    assert not (tmp_path / "cells" / "alone.json").exists()
