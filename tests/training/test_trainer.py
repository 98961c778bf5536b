import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from pairs import join, random_inputs, random_pair, tiny_model, tiny_processor
from transformers import EvalPrediction, Trainer
from transformers.utils import PushInProgress

from h2c_hf.data.examples import IGNORE_INDEX, encode_questions
from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.muon import Muon
from h2c_hf.training.arguments import H2CTrainingArguments
from h2c_hf.training.trainer import H2CTrainer, target_metrics, target_scores


QUESTIONS = [
    {"question": f"Which is {word}?", "choices": ["sun", "moon", word, "sea"], "answer": 2, "subject": "test"}
    for word in ("rain", "snow", "wind", "fog")
]


@pytest.fixture(params=["rewrite", "message"])
def form(request) -> str:
    return request.param


@pytest.fixture
def trained(tmp_path, form):
    return four_steps(tmp_path, bridge_form=form)


def four_steps(folder, **bridge):
    """A random pair of byte vocabularies after four steps: (model, old parameters, trainer, checkpoint)."""
    processor = tiny_processor()
    sizes = {"vocab_size": 300, "max_position_embeddings": 512}
    torch.manual_seed(0)
    model = join(tiny_model("llama", 0, **sizes), tiny_model("qwen2", 1, **sizes), **bridge)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = H2CTrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        report_to="none", learning_rate=1e-2, warmup_steps=0, save_steps=4, logging_steps=2,
        eval_strategy="steps", eval_steps=4, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    examples = encode_questions(processor, QUESTIONS)
    trainer = H2CTrainer(model, arguments, processor, train_dataset=examples, eval_dataset=examples)
    trainer.train()
    return model, before, trainer, folder / "checkpoint-4"


def test_every_bridge_parameter_moved_and_no_base_parameter_did(trained):
    model, before, _, _ = trained
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == name.startswith("bridge."), name


@pytest.mark.parametrize("muon", [False, True])
def test_the_trainer_takes_the_optimizer_that_its_arguments_name(tmp_path, muon):
    model = join(tiny_model("llama"), tiny_model("qwen2", 1))
    arguments = H2CTrainingArguments(
        output_dir=str(tmp_path), muon=muon, adam_beta2=0.9, weight_decay=0.1, use_cpu=True
    )
    optimizer = H2CTrainer(model, arguments, tiny_processor()).create_optimizer()
    assert isinstance(optimizer, Muon) == muon
    assert all(group["betas"] == (0.9, 0.9) for group in optimizer.param_groups)
    stacks = {id(weight) for weight in model.bridge.parameters() if weight.ndim == 3}
    moved = {id(w) for group in optimizer.param_groups if group.get("muon") for w in group["params"]}
    assert moved == (stacks if muon else set())


def test_dictionary_of_a_message_is_left_as_it_is(tmp_path):
    model, before, trainer, _ = four_steps(
        tmp_path, bridge_form="message", token_rank=8, token_hidden_size=12
    )
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {
        f"bridge.message.{part}.{kind}"
        for part in ("norm", "kv_proj", "token_kv_proj")
        for kind in ("weight", "bias")
    }
    assert any("grad_norm/message" in entry for entry in trainer.state.log_history)


def test_optimizer_and_checkpoint_hold_the_bridge_alone(trained):
    model, _, trainer, checkpoint = trained
    bridge = sum(parameter.numel() for parameter in model.bridge.parameters())
    assert sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"]) == bridge
    file = (checkpoint / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    assert len(file) == header + 4 * bridge
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(state) == len(list(model.bridge.parameters()))
    saved = sum(tensor.nbytes for entry in state.values() for tensor in entry.values())
    assert saved == 2 * 4 * bridge + 4 * len(state)  # two moments, and a count of steps for each parameter


def test_a_checkpoint_loads_as_a_bridge(trained):
    model, _, _, checkpoint = trained
    loaded = H2CForCausalLM.from_pretrained(checkpoint, sharer=model.sharer, receiver=model.receiver)
    for name, parameter in loaded.bridge.state_dict().items():
        assert torch.equal(parameter, model.bridge.state_dict()[name])
    assert (checkpoint / "processor_config.json").exists() and (checkpoint / "modeling_h2c.py").exists()


def test_evaluation_reports_loss_and_accuracy(trained):
    metrics = trained[2].evaluate()
    assert (
        np.isfinite(metrics["eval_loss"])
        and 0 <= metrics["eval_accuracy"] <= 1
        and 0 <= metrics["eval_choice_accuracy"] <= 1
    )
    # One batch, so the same mean.
    assert metrics["eval_perplexity"] == pytest.approx(np.exp(metrics["eval_loss"]), rel=1e-4)


def test_scores_of_targets_against_plain_loops():
    generator = torch.Generator().manual_seed(0)
    letters = [4, 5, 6, 7]
    labels = torch.full((3, 6), IGNORE_INDEX)
    labels[0, 3:5] = torch.tensor([4, 5])
    labels[1, 3:6] = torch.tensor([6, 5, 6])
    labels[2, 3:6] = torch.tensor([8, 5, 6])
    logits = torch.randn(3, 4, 9, generator=generator)
    logits[0, range(2), [4, 5]] += 10  # the first row is right
    logits[1, 0, 8] += 10  # a token that is no letter is no answer by letter
    rows = target_scores(logits, labels, letters)
    for row in range(3):
        targets = [label for label in labels[row].tolist() if label != IGNORE_INDEX]
        right = all(logits[row, i].argmax() == target for i, target in enumerate(targets))
        nll = -sum(logits[row, i].log_softmax(-1)[target] for i, target in enumerate(targets))
        best = max(letters, key=lambda letter: logits[row, 0, letter].item())
        expected = [
            float(right),
            nll,
            len(targets),
            float(best == targets[0]) if targets[0] in letters else torch.nan,
        ]
        torch.testing.assert_close(rows[row], torch.tensor(expected), equal_nan=True)


def test_metrics_weigh_perplexity_by_token():
    rows = np.array([[1, 2.0, 1, 1], [0, 10.0, 5, 0]])
    metrics = target_metrics(EvalPrediction(rows, None))
    assert metrics == {"accuracy": 0.5, "perplexity": pytest.approx(np.exp(2.0)), "choice_accuracy": 0.5}
    rows[1, 3] = np.nan
    assert "choice_accuracy" not in target_metrics(EvalPrediction(rows, None))


def test_accumulated_batches_weigh_by_tokens():
    """`num_items_in_batch`: two halves with their common number of targets give the loss of the whole."""
    model, inputs = random_pair(0), random_inputs(0, batch=4)
    targets = torch.tensor([[3, 4, 5], [6, -100, -100], [7, 8, -100], [9, -100, -100]])
    ids = torch.cat([inputs["input_ids"], targets.clamp(min=0)], 1)
    mask = torch.cat([inputs["attention_mask"], (targets != IGNORE_INDEX).long()], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], IGNORE_INDEX), targets], 1)

    def loss(rows, **kwargs):
        return model(
            ids[rows],
            mask[rows],
            inputs["sharer_input_ids"][rows],
            inputs["sharer_attention_mask"][rows],
            labels=labels[rows],
            **kwargs,
        ).loss

    count = (targets != IGNORE_INDEX).sum()
    halves = loss(slice(0, 2), num_items_in_batch=count) + loss(slice(2, 4), num_items_in_batch=count)
    torch.testing.assert_close(halves, loss(slice(0, 4)), atol=1e-5, rtol=1e-5)


def test_gates_and_gradients_are_logged_by_layer_and_part(trained, form):
    model, _, trainer, _ = trained
    parts = ("attention", "ffn", "gate") if form == "rewrite" else ("message",)
    logged = [entry for entry in trainer.state.log_history if f"grad_norm/{parts[0]}" in entry]
    assert (
        [entry["step"] for entry in logged]
        == [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
        == [2, 4]
    )
    for kind, values in model.gate_values().items():
        assert [logged[-1].get(f"gate/{kind}/{layer}") for layer in range(len(values))] == values
    assert all(logged[-1][f"grad_norm/{part}"] > 0 for part in parts)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(trained):
    model, _, trainer, _ = trained
    with torch.no_grad():
        next(model.bridge.parameters()).fill_(torch.nan)
    before = {name: parameter.clone() for name, parameter in model.bridge.named_parameters()}
    trainer.args.max_steps, trainer.train_dataset = 8, trainer.train_dataset.select([1])
    with pytest.raises(FloatingPointError, match=r"The loss is nan in step 1; .*Which is snow"):
        trainer.train()
    for name, parameter in model.bridge.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


def test_examples_are_plain_columns(form):
    examples = encode_questions(tiny_processor(), QUESTIONS, "open")
    assert isinstance(examples, Dataset) and examples.column_names == [
        "input_ids",
        "sharer_input_ids",
        "target_ids",
    ]


def tiny_run(tmp_path, model=None, **options):
    """A trainer of a random pair of byte vocabularies, not started; `options` of it or its arguments."""
    processor = tiny_processor()
    examples = encode_questions(processor, QUESTIONS)
    of_trainer = {
        name: options.pop(name)
        for name in ("model_init", "compute_loss_func", "compute_metrics")
        if name in options
    }
    arguments = H2CTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, per_device_eval_batch_size=3,
        report_to="none", save_strategy="no", use_cpu=True, dataloader_pin_memory=False, learning_rate=1e-2,
        warmup_steps=0, **options,
    )  # fmt: skip
    return H2CTrainer(
        model, arguments, processor, train_dataset=examples, eval_dataset=examples, **of_trainer
    )


def tiny_pair(form):
    sizes = {"vocab_size": 300, "max_position_embeddings": 512}
    return join(
        tiny_model("llama", 0, **sizes), tiny_model("qwen2", 1, **sizes), dropout=0.0, bridge_form=form
    )


def test_label_smoothing_is_that_of_the_targets(tmp_path, form):
    trainer = tiny_run(tmp_path, tiny_pair(form), label_smoothing_factor=0.1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    logits = trainer.model(**batch).logits[:, :-1]
    targets = batch["labels"][:, -logits.shape[1] :]
    expected = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), label_smoothing=0.1, ignore_index=IGNORE_INDEX
    )
    assert torch.allclose(trainer.compute_loss(trainer.model, dict(batch)), expected, atol=1e-5)
    assert np.isfinite(trainer.train().training_loss) and np.isfinite(trainer.evaluate()["eval_loss"])


def test_stock_arguments_leave_the_columns_to_the_collator(tmp_path, form):
    assert np.isfinite(tiny_run(tmp_path, tiny_pair(form), remove_unused_columns=True).train().training_loss)


def test_noise_on_frozen_embeddings_is_refused(tmp_path, form):
    with pytest.raises(
        ValueError, match=r"neftune_noise_alpha is 5.0; expected None: both models' embeddings are frozen."
    ):
        tiny_run(tmp_path, tiny_pair(form), neftune_noise_alpha=5.0)


def test_a_loss_function_gets_logits_and_labels_in_step(tmp_path, form):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append((outputs.logits.shape[1], labels.shape[1]))
        return F.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )

    trainer = tiny_run(tmp_path, tiny_pair(form), compute_loss_func=loss)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    assert torch.allclose(
        trainer.compute_loss(trainer.model, dict(batch)), trainer.model(**batch).loss, atol=1e-5
    )
    assert all(logits == labels for logits, labels in seen)


def test_a_model_init_is_called_for_each_run(tmp_path, form):
    made = []

    def model_init():
        made.append(tiny_pair(form))
        return made[-1]

    trainer = tiny_run(tmp_path, model_init=model_init)
    trainer.train()
    assert trainer.model is made[-1] and len(made) == 2
    assert made[-1]._ddp_params_and_buffers_to_ignore


@pytest.mark.parametrize("option", ["eval_do_concat_batches", "batch_eval_metrics"])
def test_metrics_over_batches_are_those_over_all(tmp_path, option, form):
    model = tiny_pair(form).eval()
    names = ["eval_loss", "eval_perplexity", "eval_accuracy", "eval_choice_accuracy"]
    expected = tiny_run(tmp_path, model).evaluate()
    trainer = tiny_run(tmp_path, model, **{option: option == "batch_eval_metrics"})
    for _ in range(2):  # nothing is left of the evaluation before
        metrics = trainer.evaluate()
        assert [metrics[name] for name in names] == pytest.approx([expected[name] for name in names])


def test_metrics_of_ones_own_get_logits_and_labels_in_step(tmp_path, form):
    def accuracy(prediction):
        guesses, targets = prediction.predictions[:, :-1].argmax(-1), prediction.label_ids[:, 1:]
        return {
            "own": ((guesses == targets) | (targets == IGNORE_INDEX)).all(1).mean(),
            "tokens": (targets != IGNORE_INDEX).sum(),
        }

    model = tiny_pair(form).eval()
    metrics = tiny_run(tmp_path, model, compute_metrics=accuracy).evaluate()
    expected = tiny_run(tmp_path, model).evaluate()
    examples = tiny_run(tmp_path, model).eval_dataset
    assert metrics["eval_own"] == expected["eval_accuracy"]
    assert metrics["eval_tokens"] == sum(len(example["target_ids"]) for example in examples)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_trains(tmp_path, form):
    trainer = tiny_run(tmp_path, tiny_pair(form), torch_compile=True, torch_compile_backend="aot_eager")
    before = [parameter.detach().clone() for parameter in trainer.model.bridge.parameters()]
    assert np.isfinite(trainer.train().training_loss)
    assert not any(map(torch.equal, trainer.model.bridge.parameters(), before))


def test_files_are_not_written_while_a_push_reads_them(trained, monkeypatch):
    """With `hub_always_push`: the next push begins when the one before has ended."""
    _, _, trainer, checkpoint = trained
    events, trainer.args.hub_always_push = [], True
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: events.append("writes"))
    with ThreadPoolExecutor() as pool:
        trainer.push_in_progress = PushInProgress(
            [pool.submit(lambda: (time.sleep(0.5), events.append("was read")))]
        )
        trainer._push_from_checkpoint(str(checkpoint))
    assert events == ["was read", "writes"]
