"""The main job from end to end, in its own process, and the bridge that it made and the project ships."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import h2c_hf.modeling
from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.modeling.configuration_h2c import REMOTE_CODE
from h2c_hf.reports.schema import load_report
from h2c_hf.reports.statistics import recovered
from h2c_hf.visualization.figures import FIGURES, left_out


CONTROLS = ("shuffled", "zeros")
SHIPPED = Path(__file__).parents[2] / "hub_configs" / "atlas"


def test_the_bridge_that_ships_recovers_the_lead_and_its_controls_do_not(atlas):
    results = evaluate(*atlas, atlas_questions("test"), ["receiver", "h2c", "sharer", *CONTROLS])
    correct = {name: result["correct"] for name, result in results.items()}
    assert recovered(correct["h2c"], correct["receiver"], correct["sharer"])["low"] >= 0.9
    for name in CONTROLS:
        assert correct[name].mean() == pytest.approx(0.25, abs=0.04)
    shipped = load_report(SHIPPED / "report.json")
    for name, values in correct.items():
        assert shipped["methods"][name]["accuracy"] == pytest.approx(values.mean(), abs=0.003)


@pytest.mark.parametrize("name", REMOTE_CODE)
def test_the_code_that_ships_with_the_bridges_is_this_code(name):
    """`./scripts/sync` writes it."""
    folders = [path.parent for path in SHIPPED.parent.glob("*/model.safetensors")]
    assert SHIPPED in folders
    for folder in folders:
        assert (folder / name).read_bytes() == (Path(h2c_hf.modeling.__file__).parent / name).read_bytes(), (
            folder.name
        )


def quickstart(output: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "h2c_hf.cli", "quickstart", "--output", str(output), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_quickstart_does_what_it_says(tmp_path):
    result = quickstart(tmp_path / "run")
    assert result.returncode == 0, result.stderr[-2000:]
    report = load_report(tmp_path / "run" / "report.json")
    assert report["recovered"]["value"] >= 0.9
    for name in CONTROLS:
        assert report["methods"][name]["accuracy"] == pytest.approx(0.25, abs=0.04)
    assert all(row["n"] >= 1000 and row["ttft_ms_median"] > 0 for row in report["methods"].values())
    assert len(report["examples"]) == 3
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        f"{name}.png" for name in FIGURES if name not in left_out(report)
    }
    assert (tmp_path / "run" / "report.md").exists()
    assert re.search(r"through AutoModelForCausalLM and asked it: .* -> \w+$", result.stdout, re.MULTILINE)
    for name in (
        "model.safetensors",
        "config.json",
        "modeling_h2c.py",
        "sharer/model.safetensors",
        "receiver/model.safetensors",
    ):
        assert (tmp_path / "run" / "bridge" / name).exists()
    assert (
        json.loads((tmp_path / "run" / "bridge" / "config.json").read_text())["sharer_model_id"] == "./sharer"
    )


@pytest.mark.slow
def test_a_bridge_that_learned_nothing_is_reported_as_a_failure(tmp_path):
    result = quickstart(tmp_path, "--epochs", "0.01")
    assert result.returncode == 1
    assert "H2C does not beat its controls" in result.stdout
