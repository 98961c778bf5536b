"""What the README says runs: each Python block, as it stands but for the ids of models that are not at hand."""

import re
from pathlib import Path

import pytest
import torch

from h2c_hf.atlas import MODELS


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(block: str, replacements: dict[str, str], monkeypatch, tmp_path) -> dict:
    for old, new in replacements.items():
        assert old in block
        block = block.replace(old, new)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_there_are_two_blocks():
    assert len(BLOCKS) == 2


def test_loading_a_bridge(monkeypatch, tmp_path, capsys):
    run(BLOCKS[0], {"hub_configs/atlas": str(ROOT / "hub_configs" / "atlas")}, monkeypatch, tmp_path)
    assert capsys.readouterr().out.strip() == "Algeria"


def test_training_a_pair(monkeypatch, tmp_path):
    replacements = {
        "meta-llama/Llama-3.1-8B-Instruct": str(MODELS / "sharer"),
        "Qwen/Qwen2.5-0.5B-Instruct": str(MODELS / "receiver"),
        "outputs/my-bridge": str(tmp_path / "bridge"),
    }
    names = run(BLOCKS[1], replacements, monkeypatch, tmp_path)
    assert (tmp_path / "bridge" / "model.safetensors").exists()
    assert names["trainer"].state.global_step == 2
    assert "Linear4bit" in str(names["sharer"])


@pytest.mark.parametrize("path", re.findall(r"^\| `([^`]+)`", README, re.MULTILINE))
def test_where_things_are(path):
    assert (ROOT / path).exists()


def test_the_reference_bridge_has_the_parameters_it_says():
    from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel

    with torch.device("meta"):
        bridge = H2CBridgeModel(H2CBridgeConfig.from_pretrained(ROOT / "hub_configs" / "llama-3.1-8b_to_qwen2.5-0.5b"))
    assert f"{bridge.num_parameters() / 1e6:.1f} million parameters" in README
