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
    from transformers import LlamaConfig, Qwen2Config

    from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel

    llama = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    qwen = Qwen2Config(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)
    published = H2CBridgeConfig.from_pretrained(ROOT / "hub_configs" / "llama-3.1-8b_to_qwen2.5-0.5b")
    with torch.device("meta"):
        new, old = (H2CBridgeModel(config).num_parameters() / 1e6 for config in (H2CBridgeConfig.from_pair(llama, qwen), published))
    assert f"{new:.1f} million parameters ({old:.1f} in the published form" in README
