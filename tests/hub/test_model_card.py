"""The card is written from what lies beside it, and says nothing else."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from server import card_errors

from h2c_hf.hub.model_card import write_model_card
from h2c_hf.modeling import H2CBridgeConfig


ATLAS = Path(__file__).parents[2] / "hub_configs" / "atlas"
DATA = {
    "counts": {
        "train": {
            "streaming": False,
            "sources": [
                {"source": "openhermes train", "weight": 0.8, "records": 1234, "examples": 1230, "kept": 1111, "used": 1100, "held_out": 0,
                 "dropped": {"too long": 119}},
                {"source": "/somewhere/mine.jsonl train", "weight": 0.2, "records": 77, "examples": 77, "kept": 77, "used": 76,
                 "held_out": 0, "dropped": {}},
            ],
        }
    }
}  # fmt: skip
RECIPE = {"learning_rate": 0.001, "warmup_steps": 0.1, "seed": 42, "optim": "adamw_torch", "total_train_batch_size": 64}


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "report.json"):
        shutil.copy(ATLAS / name, tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    (tmp_path / "training.json").write_text(json.dumps(RECIPE))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "accuracy.png").write_bytes(b"")
    return tmp_path


def config(folder, **changes) -> H2CBridgeConfig:
    return H2CBridgeConfig.from_pretrained(folder, **changes)


LLAMA = {"sharer_model_id": "meta-llama/Llama-3.1-8B-Instruct", "receiver_model_id": "Qwen/Qwen2.5-0.5B-Instruct", "sharer_revision": "abc"}


def numbers_in(value) -> set[str]:
    """Every number in nested JSON, and in its texts, as a card may write it."""
    if isinstance(value, dict):
        return set().union(*map(numbers_in, [*value.keys(), *value.values()])) if value else set()
    if isinstance(value, list):
        return set().union(*map(numbers_in, value)) if value else set()
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, str):
        return set(re.findall(r"\d+(?:\.\d+)?", value))
    return {str(value), f"{value:.1f}", f"{100 * value:.1f}", f"{value:,}"}


def test_no_number_is_in_the_card_that_is_not_in_its_sources(folder):
    text = write_model_card(folder, config(folder, **LLAMA), "u/r").read_text()
    known = numbers_in(json.loads((folder / "report.json").read_text())) | numbers_in(DATA) | numbers_in(RECIPE)
    known |= numbers_in({**config(folder, **LLAMA).to_dict()})
    words = re.sub(r"H2C|h2c", "", text)
    written = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", words)
    assert len(written) > 100
    assert not [number for number in written if number not in known]


def test_a_report_changed_changes_the_card(folder):
    report = json.loads((folder / "report.json").read_text())
    report["methods"]["h2c"]["accuracy"] = 0.4321
    (folder / "report.json").write_text(json.dumps(report))
    text = write_model_card(folder, config(folder), "u/r").read_text()
    assert "| H2C | 43.2 % |" in text and "value: 0.4321" in text


def test_front_matter_says_what_the_hub_reads(folder, online):
    path = write_model_card(folder, config(folder, **LLAMA), "u/llama-r")
    card, report = ModelCard.load(path), json.loads((folder / "report.json").read_text())
    data = card.data
    assert data.base_model == [LLAMA["sharer_model_id"], LLAMA["receiver_model_id"]] and data.base_model_relation == "adapter"
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", "llama3.1")
    assert data.datasets == ["teknium/OpenHermes-2.5"] and data.metrics == ["accuracy"]
    results = {(r.dataset_config, r.metric_name): r.metric_value for r in data.eval_results}
    for method, title in (("h2c", "H2C"), ("receiver", "Receiver"), ("sharer", "Sharer"), ("zeros", "control: zeros")):
        assert results["multiple choice", f"accuracy, {title}"] == report["methods"][method]["accuracy"]
    assert results["in words, exact match", "accuracy, H2C"] == report["open_form"]["h2c"]["accuracy"]
    assert results["multiple choice", "information_gain"] == report["information_gain"]["value"]
    for subject, row in report["by_subject"].items():
        assert results[subject, "accuracy, H2C"] == row["h2c"]
    assert card_errors(path.read_text()) == []
    online._validate_yaml(path.read_text())  # over the wire, as `ModelCard.validate` and every commit do
    with pytest.raises(ValueError, match="base_model_relation"):
        online._validate_yaml(path.read_text().replace("relation: adapter", "relation: cousin"))


def test_a_llama_brings_its_notice_and_name(folder):
    text = write_model_card(folder, config(folder, **LLAMA), "u/bridge").read_text()
    assert "# Llama bridge" in text and "**Built with Llama.**" in text
    assert "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All\nRights Reserved." in text
    assert "# Llama-3.1-H2C" in write_model_card(folder, config(folder, **LLAMA), "u/Llama-3.1-H2C").read_text()
    plain = write_model_card(folder, config(folder, **{**LLAMA, "sharer_model_id": "Qwen/Qwen3-8B"}), "u/bridge", "apache-2.0").read_text()
    assert "Llama" not in plain and ModelCard(plain).data.license == "apache-2.0"


def test_the_text_tells_how_to_load_what_was_measured_and_of_what_it_was_made(folder):
    text = write_model_card(folder, config(folder), "u/r").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("u/r", trust_remote_code=True)' in text
    assert "| control: shuffled | 23.3 % | 21.1 % to 25.6 % | 1341 |" in text
    assert "| openhermes train | 0.8 | 1234 | 1111 | 1100 | too long: 119. |" in text
    assert "| learning_rate | 0.001 |" in text and "(figures/accuracy.png)" in text and "## Citation" in text
    assert "\n\n\n" not in text and re.search(r"[^\n]\n(#|\| ---)", text.split("---\n", 2)[2].replace("|\n| ---", "")) is None


def test_a_bridge_alone_has_a_card_that_says_so(folder):
    for name in ("report.json", "data.json", "training.json"):
        (folder / name).unlink()
    text = write_model_card(folder, config(folder), "u/r").read_text()
    assert "it was not measured" in text and "was not recorded" in text and "model-index" not in text


def test_a_report_that_is_none_is_refused_and_the_old_card_stays(folder):
    write_model_card(folder, config(folder), "u/r")
    before = (folder / "README.md").read_text()
    (folder / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="is no report"):
        write_model_card(folder, config(folder), "u/r")
    assert (folder / "README.md").read_text() == before and not (folder / "README.md.part").exists()
