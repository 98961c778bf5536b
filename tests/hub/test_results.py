"""The two forms of results that the Hub reads, as its client reads them back."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from h2c_hf.hub.model_card import write_model_card
from h2c_hf.hub.push import push
from h2c_hf.hub.results import FILE, model_index
from h2c_hf.modeling import H2CBridgeConfig


ATLAS = Path(__file__).parents[2] / "hub_configs" / "atlas"
MMLU = {
    "data": "cais/mmlu", "data_name": "all", "split": "test", "shots": 5, "limit": None,
    "hand_off": "rajpurkar/squad", "hand_off_split": "validation",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ATLAS / "config.json", tmp_path)
    return tmp_path


def write(folder: Path, **config) -> dict:
    report = json.loads((ATLAS / "report.json").read_text())
    report["config"].update(config)
    report["methods"]["h2c"]["accuracy"] = 0.45216
    (folder / "report.json").write_text(json.dumps(report))
    write_model_card(folder, H2CBridgeConfig.from_pretrained(folder), "u/r")
    return report


def test_a_score_on_a_dataset_of_the_hub_goes_to_its_leaderboard(folder):
    report = write(folder, **MMLU)
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / FILE).read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("cais/mmlu", "all", 45.22)
    assert entry.source_url == "https://huggingface.co/u/r/blob/main/report.json"
    assert (
        entry.notes
        == f"multiple choice by letter, split test, 5-shot, {report['methods']['h2c']['n']} questions"
    )
    index = {(r.dataset_type, r.dataset_config, r.dataset_split) for r in model_index(report)}
    assert {
        ("cais/mmlu", "all", "test"),
        ("rajpurkar/squad", None, "validation"),
        ("cais/mmlu", "capital", "test"),
    } <= index


@pytest.mark.parametrize(
    "config", [{"data": "atlas"}, {"data": "/a/folder/mmlu"}, {"data": "mine/mmlu"}, {**MMLU, "limit": 100}]
)
def test_what_belongs_on_no_leaderboard_is_not_written_and_what_was_is_removed(folder, config, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "mine" / "mmlu").mkdir(parents=True)
    write(folder, **MMLU)
    assert (folder / FILE).exists()
    write(folder, **config)
    assert not (folder / FILE).exists()


def test_the_hub_reads_it_from_a_pushed_repo(hub, online, bridge):
    write(bridge, **MMLU)
    (bridge / ".secret.yaml").write_text("x: 1")
    (bridge / ".eval_results" / "notes.txt").write_text("x")
    push(bridge, "u/r")
    assert [name for name in hub.repos["u/r"].files() if name.startswith(".")] == [
        ".eval_results/report.yaml"
    ]
    (entry,) = online.model_info("u/r", expand=["evalResults"]).eval_results
    assert (entry.dataset_id, entry.task_id, entry.value) == ("cais/mmlu", "all", 45.22)
