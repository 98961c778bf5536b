"""Guards: another question's message, and the Receiver's own answer to learn."""

import json

import pytest
import torch
from pairs import text_pair

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.cli import main
from h2c_hf.data.examples import encode_questions
from h2c_hf.training.guard import ANSWER_TOKENS, until_end, with_guards


def test_a_guard_has_another_message_and_the_receivers_own_answer():
    processor, model = text_pair()
    data = encode_questions(processor, atlas_questions("validation")[:40])
    guards = with_guards(data, model, processor)
    assert guards["input_ids"] == data["input_ids"] and guards.column_names == data.column_names
    for row in range(0, 40, 7):
        assert guards[row]["sharer_input_ids"] == data[(row + 20) % 40]["sharer_input_ids"]
        prompt = torch.tensor([data[row]["input_ids"]])
        own = model.receiver.generate(prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        assert guards[row]["target_ids"] == own[0, prompt.shape[1] :].tolist()
    assert any(a != b for a, b in zip(guards["target_ids"], data["target_ids"], strict=True))


def test_an_answer_ends_with_its_end_token_or_is_cut():
    assert until_end([5, 6, 2, 0, 0], [2, 3]) == [5, 6, 2] and until_end([5, 6], [2]) == [5, 6]


def test_a_run_counts_and_trains_on_guards(tmp_path, capsys):
    run = [
        "atlas", "--max_steps", "-1", "--num_train_epochs", "1", "--output_dir", str(tmp_path / "out"),
        "--eval_strategy", "no", "--train_data", "path=atlas,form=repeat,count=32", "--save_strategy", "no",
        "--load_best_model_at_end", "false", "--per_device_train_batch_size", "16",
        "--guard_data", "path=atlas,form=repeat,count=48,seed=1",
    ]  # fmt: skip
    assert main(["train", *run, "--dry_run"]) == 0
    assert "5 steps" in capsys.readouterr().out
    assert main(["train", *run]) == 0
    history = json.loads((tmp_path / "out" / "log_history.json").read_text())
    assert max(entry["step"] for entry in history) == 5
    assert "guard" in json.loads((tmp_path / "out" / "data.json").read_text())["counts"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--blank_sharer", "true"], "guard_data needs the Sharer in memory"),
        (
            ["--validation_data", "path=atlas", "--eval_strategy", "steps"],
            "a source is in train_data or guard_data, and in validation_data",
        ),
    ],
)
def test_what_cannot_be_is_refused(more, message, capsys, tmp_path):
    guarded = ["train", "atlas", "--output_dir", str(tmp_path / "out"), "--guard_data", "path=atlas"]
    assert main([*guarded, *more]) != 0
    assert message in capsys.readouterr().err


def test_one_example_has_no_other_to_exchange_with():
    processor, model = text_pair()
    data = encode_questions(processor, atlas_questions("validation")[:1])
    with pytest.raises(ValueError, match="guard_data has 1 examples; expected at least 2"):
        with_guards(data, model, processor)


def test_lora_has_no_messages_to_exchange(capsys, tmp_path):
    arguments = [
        "lora",
        "atlas",
        "--output_dir",
        str(tmp_path / "out"),
        "--guard_data",
        "path=atlas,form=told",
    ]
    assert main(arguments) != 0
    assert "guard_data is for bridges" in capsys.readouterr().err
