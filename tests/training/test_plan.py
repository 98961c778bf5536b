import re
import shutil

import pytest
import torch
from pairs import tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, LlamaConfig, Qwen2Config

from h2c_hf.atlas import MODELS
from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel
from h2c_hf.training.plan import bridge_parameters, weight_bytes
from h2c_hf.training.train import main


LLAMA = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
)
QWEN = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
)  # fmt: skip


def test_parameters_by_part_add_up_to_the_bridge():
    config = H2CBridgeConfig.published(LLAMA, QWEN)
    sizes = bridge_parameters(config)
    assert sum(sizes.values()) == 58_669_104 and sizes["gate"] == 48
    with torch.device("meta"):
        bridge = H2CBridgeModel(config)
    assert sizes["ffn"] == sum(p.numel() for name, p in bridge.named_parameters() if "ffn" in name)


def test_weights_are_counted_without_being_there():
    assert weight_bytes(LLAMA, "bfloat16", "none") == 2 * 8_030_261_248
    assert weight_bytes(QWEN, "float32", "none") == 4 * 494_032_768


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_are_as_large_as_bitsandbytes_makes_them(tmp_path, quantization):
    tiny_model("llama", 0, vocab_size=300, hidden_size=128, intermediate_size=512).to(
        torch.bfloat16
    ).save_pretrained(tmp_path)
    settings = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "int8": {"load_in_8bit": True}}[
        quantization
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**settings))
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    absmax = sum(
        s.absmax.numel() * 4
        for m in model.modules()
        if (s := getattr(getattr(m, "weight", None), "quant_state", None))
    )
    assert weight_bytes(model.config, "bfloat16", quantization) == pytest.approx(held + absmax, rel=0.01)


@pytest.fixture
def pair_without_weights(tmp_path):
    for role in ("sharer", "receiver"):
        shutil.copytree(MODELS / role, tmp_path / role, ignore=shutil.ignore_patterns("*.safetensors"))
    return [f"--{role}={tmp_path / role}" for role in ("sharer", "receiver")]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (["--bridge_form=rewrite"], ("attention ", "ffn ", "gate ")),
        ([], ("a message of one cache position a Sharer token in 5 layers",)),
    ],
)
def test_a_dry_run_says_what_would_be_done_and_needs_no_weights(
    form, told, pair_without_weights, tmp_path, capsys
):
    output = tmp_path / "out"
    assert (
        main(
            [
                *pair_without_weights,
                *form,
                f"--output_dir={output}",
                "--train_data=atlas",
                "--num_train_epochs=2",
                "--dry_run",
            ]
        )
        == 0
    )
    plan = capsys.readouterr().out
    records = int(re.search(r"atlas train: ([\d,]+) records", plan)[1].replace(",", ""))
    assert f"{2 * -(-records // 8):,} steps" in plan
    for line in ("Bridge: ", *told, "Sharer weights", "Receiver weights", "gradients and AdamW"):
        assert line in plan
    assert not output.exists()


def test_a_dry_run_names_what_training_would_miss(pair_without_weights, tmp_path):
    with pytest.raises(OSError, match="no file named model.safetensors"):
        main([*pair_without_weights, f"--output_dir={tmp_path / 'out'}", "--train_data=atlas"])


def test_an_estimate_of_another_family_stops_no_run(tmp_path, capsys):
    """GPT-2 has no `intermediate_size`, and calls its FFN's width `n_inner`, or leaves it out."""
    shutil.copytree(MODELS / "receiver", tmp_path / "receiver")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 1024}
    shutil.copytree(MODELS / "sharer", tmp_path / "sharer", ignore=shutil.ignore_patterns("*.safetensors"))
    GPT2Config(**sizes).save_pretrained(tmp_path / "sharer")
    models = [f"--{role}={tmp_path / role}" for role in ("sharer", "receiver")]
    assert (
        main(
            [*models, f"--output_dir={tmp_path / 'out'}", "--train_data=atlas", "--max_steps=1", "--dry_run"]
        )
        == 0
    )
    assert re.search(r"Peak memory a device, estimated: [\d,]+ MiB", capsys.readouterr().out)


def test_an_estimate_that_fails_is_left_out(monkeypatch, pair_without_weights, tmp_path, capsys):
    def fails(*arguments):
        raise AttributeError("no such width")

    monkeypatch.setattr("h2c_hf.training.plan.memory", fails)
    assert (
        main(
            [
                *pair_without_weights,
                f"--output_dir={tmp_path / 'out'}",
                "--train_data=atlas",
                "--max_steps=1",
                "--dry_run",
            ]
        )
        == 0
    )
    assert "Peak memory a device: not estimated (AttributeError: no such width)." in capsys.readouterr().out
