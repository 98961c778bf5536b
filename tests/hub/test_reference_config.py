"""The config of the reference pair, as it lies in hub_configs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel


FOLDER = Path(__file__).parents[2] / "hub_configs" / "llama-3.1-8b_to_qwen2.5-0.5b"
LLAMA = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, vocab_size=128256,
)  # fmt: skip
QWEN = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, vocab_size=151936,
)  # fmt: skip
SHAPE_FIELDS = (
    "sharer_hidden_size", "sharer_num_hidden_layers", "receiver_num_hidden_layers",
    "receiver_num_key_value_heads", "receiver_head_dim", "num_attention_heads", "ffn_multiplier",
    "layer_alignment",
)  # fmt: skip


@pytest.fixture(scope="module")
def config() -> H2CBridgeConfig:
    return H2CBridgeConfig.from_pretrained(FOLDER)


def test_names_the_pair(config):
    assert config.sharer_model_id == "meta-llama/Llama-3.1-8B-Instruct"
    assert config.receiver_model_id == "Qwen/Qwen2.5-0.5B-Instruct"


def test_has_the_published_number_of_parameters(config):
    with torch.device("meta"):
        bridge = H2CBridgeModel(config)
    assert bridge.num_parameters() == 58_669_104
    assert len(bridge.alignment) == 24
    assert bridge.gate.shape == (48,)


def test_fits_the_real_shapes(config):
    pair = H2CBridgeConfig.published(LLAMA, QWEN)
    assert {name: getattr(config, name) for name in SHAPE_FIELDS} == {
        name: getattr(pair, name) for name in SHAPE_FIELDS
    }


def test_is_what_the_class_writes(config, tmp_path):
    """The file holds every field in its present form: a field that is renamed or added is missed here."""
    config.save_pretrained(tmp_path)
    written, kept = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, FOLDER))
    for values in (written, kept):
        values.pop("transformers_version")
    assert written == kept
