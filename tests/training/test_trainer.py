import numpy as np
import pytest
import torch
from datasets import Dataset
from pairs import join, random_inputs, random_pair, tiny_model, tiny_processor
from transformers import EvalPrediction

from h2c_hf.data.examples import IGNORE_INDEX, encode_questions
from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.training.trainer import H2CTrainer, H2CTrainingArguments, mean_accuracy, right_answers


QUESTIONS = [
    {"question": f"Which is {word}?", "choices": ["sun", "moon", word, "sea"], "answer": 2, "subject": "test"}
    for word in ("rain", "snow", "wind", "fog")
]


@pytest.fixture
def trained(tmp_path):
    """A random pair with byte vocabularies after four steps; (model, its parameters before, trainer)."""
    processor = tiny_processor()
    sizes = {"vocab_size": 300, "max_position_embeddings": 512}
    torch.manual_seed(0)
    model = join(tiny_model("llama", 0, **sizes), tiny_model("qwen2", 1, **sizes))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = H2CTrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to="none",
        learning_rate=1e-2, warmup_steps=0, save_steps=4, eval_strategy="steps", eval_steps=4, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    examples = encode_questions(processor, QUESTIONS)
    trainer = H2CTrainer(model, arguments, processor, train_dataset=examples, eval_dataset=examples)
    trainer.train()
    return model, before, trainer, tmp_path / "checkpoint-4"


def test_every_bridge_parameter_moved_and_no_base_parameter_did(trained):
    model, before, _, _ = trained
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == name.startswith("bridge."), name


def test_optimizer_and_checkpoint_hold_the_bridge_alone(trained):
    model, _, trainer, checkpoint = trained
    bridge = sum(parameter.numel() for parameter in model.bridge.parameters())
    assert sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"]) == bridge
    size = (checkpoint / "model.safetensors").stat().st_size
    assert 4 * bridge <= size < 4 * bridge + 10_000
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert sum(tensor.numel() for entry in state.values() for tensor in entry.values() if tensor.dim()) == 2 * bridge


def test_a_checkpoint_loads_as_a_bridge(trained):
    model, _, _, checkpoint = trained
    loaded = H2CForCausalLM.from_pretrained(checkpoint, sharer=model.sharer, receiver=model.receiver)
    for name, parameter in loaded.bridge.state_dict().items():
        assert torch.equal(parameter, model.bridge.state_dict()[name])
    assert (checkpoint / "processor_config.json").exists() and (checkpoint / "modeling_h2c.py").exists()


def test_evaluation_reports_loss_and_accuracy(trained):
    metrics = trained[2].evaluate()
    assert np.isfinite(metrics["eval_loss"]) and 0 <= metrics["eval_accuracy"] <= 1


def test_accuracy_counts_answers_right_to_the_last_token():
    labels = torch.full((3, 6), IGNORE_INDEX)
    labels[0, 3:5] = torch.tensor([4, 5])
    labels[1, 3:6] = torch.tensor([4, 5, 6])
    labels[2, 3:6] = torch.tensor([4, 5, 6])
    logits = torch.zeros(3, 4, 9)
    for row, tokens in enumerate([[4, 5, 8], [4, 5, 6], [4, 5, 7]]):
        logits[row, range(3), tokens] = 1
    right = right_answers(logits, labels)
    assert right.tolist() == [True, True, False]
    assert mean_accuracy(EvalPrediction(right.numpy(), None)) == {"accuracy": pytest.approx(2 / 3)}


def test_accumulated_batches_weigh_by_tokens():
    """`num_items_in_batch`: two halves with their common number of targets give the loss of the whole."""
    model, inputs = random_pair(0), random_inputs(0, batch=4)
    targets = torch.tensor([[3, 4, 5], [6, -100, -100], [7, 8, -100], [9, -100, -100]])
    ids = torch.cat([inputs["input_ids"], targets.clamp(min=0)], 1)
    mask = torch.cat([inputs["attention_mask"], (targets != IGNORE_INDEX).long()], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], IGNORE_INDEX), targets], 1)

    def loss(rows, **kwargs):
        return model(
            ids[rows], mask[rows], inputs["sharer_input_ids"][rows], inputs["sharer_attention_mask"][rows], labels=labels[rows], **kwargs
        ).loss

    count = (targets != IGNORE_INDEX).sum()
    halves = loss(slice(0, 2), num_items_in_batch=count) + loss(slice(2, 4), num_items_in_batch=count)
    torch.testing.assert_close(halves, loss(slice(0, 4)), atol=1e-5, rtol=1e-5)


def test_examples_are_plain_columns():
    examples = encode_questions(tiny_processor(), QUESTIONS, "open")
    assert isinstance(examples, Dataset) and examples.column_names == ["input_ids", "sharer_input_ids", "target_ids"]
