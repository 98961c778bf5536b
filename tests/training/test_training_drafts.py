"""Training on drafts: the examples end in what the Sharer writes, and the saved bridge asks for as much."""

import pytest
import torch
from pairs import text_pair

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.cli import main
from h2c_hf.data.examples import encode_questions
from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.training.drafts import with_drafts


def test_every_example_gets_the_draft_of_its_own_prompt_in_its_own_place():
    processor, model = text_pair()
    data = encode_questions(processor, atlas_questions("validation")[:40])
    drafted = with_drafts(data, model, processor, 3)
    assert drafted["input_ids"] == data["input_ids"] and drafted["target_ids"] == data["target_ids"]
    for before, after in list(zip(data["sharer_input_ids"], drafted["sharer_input_ids"], strict=True))[::7]:
        prompt = torch.tensor([before])
        ids = model.sharer.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False
        )[0].tolist()
        assert after == ids


def test_a_run_with_drafts_saves_how_many(tmp_path):
    run = [
        "atlas", "--max_steps", "2", "--draft_tokens", "2", "--output_dir", str(tmp_path / "out"),
        "--eval_strategy", "no", "--train_data", "path=atlas,form=repeat,count=64", "--save_strategy", "no",
        "--load_best_model_at_end", "false",
    ]  # fmt: skip
    assert main(["train", *run]) == 0
    assert H2CForCausalLM.from_pretrained(tmp_path / "out").generation_config.sharer_max_new_tokens == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--draft_tokens", "-1"], "draft_tokens is -1; expected at least 0"),
        (
            ["--draft_tokens", "2", "--blank_sharer", "true"],
            "expected no streaming, sharer_states or blank_sharer",
        ),
    ],
)
def test_what_cannot_be_is_refused(more, message, capsys, tmp_path):
    assert main(["train", "atlas", "--output_dir", str(tmp_path / "out"), *more]) != 0
    assert message in capsys.readouterr().err
