"""A curriculum: stages in one yaml, each from the bridge of the one before."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from h2c_hf.cli import main
from h2c_hf.training.stages import runs


TEXTS = {"path": "atlas", "form": "repeat", "count": 256, "fewest": 4, "most": 8}
BASE = {
    "sharer": "atlas", "receiver": "atlas", "base_dtype": "float32", "max_steps": 2, "report_to": "none",
    "per_device_train_batch_size": 8, "learning_rate": 1e-3, "fit_examples": 200, "save_strategy": "no",
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """Write a training.yaml whose runs write to tmp_path / "out"."""

    def write(**fields) -> str:
        path = tmp_path / "training.yaml"
        path.write_text(yaml.safe_dump({**BASE, "output_dir": str(tmp_path / "out"), **fields}))
        return str(path)

    return write


def weights(folder):
    return load_file(folder / "model.safetensors")


def steps(folder):
    return max(entry["step"] for entry in json.loads((folder / "log_history.json").read_text()))


def test_each_stage_goes_on_from_the_one_before(config, tmp_path, capsys):
    longer = {**TEXTS, "fewest": 9, "most": 12}
    stages = [
        {"train_data": [TEXTS]},
        {"train_data": [longer], "max_steps": 3, "learning_rate": 0.0},
        {"train_data": [TEXTS, longer], "max_steps": 1, "learning_rate": 0.0},
    ]
    assert main(["train", config(stages=stages)]) == 0
    out = tmp_path / "out"
    assert [steps(out / "stage_1"), steps(out / "stage_2"), steps(out)] == [2, 3, 1]
    first, last = weights(out / "stage_1"), weights(out)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert capsys.readouterr().out.count("Wrote the bridge to") == 3
    recipe = json.loads((out / "training.json").read_text())
    assert [(run["max_steps"], run["learning_rate"]) for run in recipe["earlier"]] == [(2, 1e-3), (3, 0.0)]
    assert recipe["max_steps"] == 1


def test_a_resumed_run_leaves_out_the_stages_that_have_ended(config, tmp_path):
    stages = [{"train_data": [TEXTS]}, {"train_data": [TEXTS], "max_steps": 1, "learning_rate": 0.0}]
    path, out = config(stages=stages), tmp_path / "out"
    assert main(["train", path]) == 0
    written = (out / "stage_1" / "model.safetensors").stat().st_mtime_ns
    (out / "model.safetensors").unlink()
    assert main(["train", path, "--resume_from_checkpoint", "true"]) == 0
    assert (out / "stage_1" / "model.safetensors").stat().st_mtime_ns == written
    assert all(torch.equal(a, weights(out)[name]) for name, a in weights(out / "stage_1").items())


def test_a_resumed_run_begins_after_the_last_stage_that_has_ended(config, tmp_path):
    """The first stage's folder is gone; the second's bridge is what the third needs."""
    path, out = config(stages=[{"train_data": [TEXTS]}] * 3), tmp_path / "out"
    (out / "stage_2").mkdir(parents=True)
    (out / "stage_2" / "model.safetensors").touch()
    (last,) = runs([path, "--resume_from_checkpoint", "true"])
    assert (last[0].init_from, last[1].output_dir) == (str(out / "stage_2"), str(out))
    assert len(runs([path])) == 3


def test_a_checkpoint_of_one_stage_is_not_resumed_by_all(config, tmp_path, capsys):
    path = config(stages=[{"train_data": [TEXTS]}] * 2)
    checkpoint = tmp_path / "out" / "stage_1" / "checkpoint-1"
    assert main(["train", path, "--resume_from_checkpoint", str(checkpoint)]) != 0
    assert "expected true with stages" in capsys.readouterr().err


def test_a_dry_run_tells_every_stage(config, capsys):
    stages = [{"train_data": [TEXTS], "max_steps": 7}, {"train_data": [TEXTS], "max_steps": 9}]
    assert main(["train", config(stages=stages), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "7 steps" in told and "9 steps" in told


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"train_data": [TEXTS]}, {"learning_rat": 1e-3}], "did you mean 'learning_rate'?"),
        ([{"train_data": [TEXTS]}, "repeat"], "Stage 2 is 'repeat'; expected a mapping"),
        ([{"train_data": [TEXTS]}, {"max_steps": 2}], "train_data is missing"),
        ([{"train_data": [TEXTS], "output_dir": "mine"}], "Stage 1 has 'output_dir'; expected it outside"),
    ],
)
def test_a_wrong_stage_is_refused_before_the_first_starts(stages, message, config, tmp_path, capsys):
    assert main(["train", config(stages=stages)]) != 0
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_commands_refuse_stages(config, capsys):
    assert main(["precompute", config(train_data=[TEXTS], stages=[{"max_steps": 1}])]) != 0
    assert "h2c precompute reads no stages" in capsys.readouterr().err


def test_a_run_that_is_resumed_before_its_first_checkpoint_is_fitted_to_texts(config, tmp_path):
    path = config(train_data=[TEXTS], max_steps=1, learning_rate=0.0)
    other = str(tmp_path / "other")
    assert main(["train", path]) == 0
    assert main(["train", path, "--output_dir", other, "--resume_from_checkpoint", "true"]) == 0
    assert all(
        torch.equal(a, weights(tmp_path / "other")[name]) for name, a in weights(tmp_path / "out").items()
    )
