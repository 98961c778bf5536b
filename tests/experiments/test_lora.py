"""The Receiver fine-tuned without a Sharer, from its command to its row in a report."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from h2c_hf.atlas import MODELS
from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.cli import main
from h2c_hf.data.examples import H2CCollator, encode_questions
from h2c_hf.evaluation.batch import Batch
from h2c_hf.evaluation.evaluate import load_lora
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.experiments.lora import ReceiverCollator
from h2c_hf.reports.schema import load_report


ROOT = Path(__file__).parents[2]
BRIDGE = str(ROOT / "hub_configs" / "atlas")
TRAIN = [
    "lora", f"{BRIDGE}/training.yaml", "--train_data", "path=atlas,form=told", "--validation_data",
    "path=atlas,split=validation,form=told", "--per_device_train_batch_size=8", "--lora_rank=4", "--use_cpu",
    "--disable_tqdm=true", "--logging_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    assert (
        main([*TRAIN, "--max_steps=3", "--lora_learning_rates", "1e-5", "1e-3", f"--output_dir={folder}"])
        == 0
    )
    return folder


def test_a_batch_is_the_bridges_without_what_the_sharer_reads(atlas):
    _, processor = atlas
    examples = list(encode_questions(processor, atlas_questions("validation")[:5], "open"))
    batch, bridges = ReceiverCollator(processor)(examples), H2CCollator(processor)(examples)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "position_ids"}
    assert all(torch.equal(batch[name], bridges[name]) for name in ("input_ids", "attention_mask", "labels"))
    first = batch["attention_mask"].argmax(1)
    assert all(
        batch["position_ids"][row, at] == 0 and batch["position_ids"][row, -1] > 0
        for row, at in enumerate(first.tolist())
    )


def test_the_rate_of_the_lowest_validation_loss_is_kept(adapter):
    told = json.loads((adapter / "lora.json").read_text())
    losses = told["validation_losses"]
    assert (
        set(losses) == {"1e-05", "0.001"}
        and told["learning_rate"] == float(min(losses, key=losses.get)) == 1e-3
    )
    assert told["rank"] == 4 and told["parameters"] > 0 and (adapter / "adapter_config.json").is_file()


def test_the_adapter_answers_and_the_receiver_stays_as_it_is(atlas, adapter):
    model, processor = atlas
    before = {name: tensor.clone() for name, tensor in model.receiver.state_dict().items()}
    batch = Batch(
        model, processor, atlas_questions("validation")[:6], lora=load_lora(str(adapter), model.receiver)
    )
    plain = METHODS["receiver"].logits(batch)
    tuned = METHODS["lora"].logits(batch)
    assert not torch.allclose(plain, tuned, atol=1e-3)
    # padding changes nothing
    single = Batch(model, processor, batch.questions[:1], lora=batch.lora)
    torch.testing.assert_close(METHODS["lora"].logits(single)[0], tuned[0], atol=1e-4, rtol=1e-4)
    assert METHODS["lora"].generate(single, max_new_tokens=4, do_sample=False)[0]
    assert before.keys() == model.receiver.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.receiver.state_dict().items())
    receiver = AutoModelForCausalLM.from_pretrained(MODELS / "receiver", dtype=torch.float32)
    # The weights that ship.
    torch.testing.assert_close(
        receiver(input_ids=single.inputs["input_ids"]).logits[0, -1], plain[0], atol=1e-3, rtol=1e-3
    )


def test_a_report_has_the_row_of_the_adapter(adapter, tmp_path):
    few = [
        "--dtype",
        "float32",
        "--timed_questions",
        "1",
        "--output_lengths",
        "1",
        "--limit",
        "8",
        "--output_dir",
        str(tmp_path),
    ]
    methods = ["receiver", "lora", "h2c", "sharer", "shuffled"]
    assert main(["evaluate", "--model", BRIDGE, "--lora", str(adapter), "--methods", *methods, *few]) == 0
    row = load_report(tmp_path / "report.json")["methods"]["lora"]
    assert (
        row["n"] == 8
        and row["ttft_ms_median"] > 0
        and "Receiver with LoRA" in (tmp_path / "report.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--lora_learning_rates", "0"],
            r"lora_learning_rates is \[0.0\]; expected one or more numbers above 0",
        ),
        (["--lora_rank", "0"], "lora_rank is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message, tmp_path, capsys):
    assert main([*TRAIN, *arguments, f"--output_dir={tmp_path}"]) == 2
    assert re.search(message, capsys.readouterr().err)
