import torch

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.cli import main
from h2c_hf.data.examples import H2CCollator, encode_questions
from h2c_hf.modeling import H2CBridgeModel
from h2c_hf.training.blank import BlankSharerCollator


def test_the_loss_is_that_of_zero_states_whatever_the_sharer_read(atlas):
    model, processor = atlas
    examples = list(encode_questions(processor, atlas_questions("train")[:6]))
    plain, blank = H2CCollator(processor)(examples), BlankSharerCollator(processor, model.config)(examples)
    states = tuple(torch.zeros_like(state) for state in model.read(plain["sharer_input_ids"]))
    with torch.no_grad():
        expected = model(**{**plain, "sharer_hidden_states": states}).loss
        assert torch.equal(model(**blank).loss, expected)
        other = {**blank, "sharer_input_ids": blank["sharer_input_ids"].flip(1)}
        assert torch.equal(model(**other).loss, expected)
        assert not torch.equal(model(**plain).loss, expected)


def test_the_command_trains_an_adapter_without_a_sharer(tmp_path, monkeypatch):
    from h2c_hf.pair import Pair

    monkeypatch.setattr(
        Pair, "_sharer", lambda *_: (_ for _ in ()).throw(AssertionError("the Sharer was loaded"))
    )
    few = [
        "--train_data",
        "path=atlas,split=validation",
        "--max_steps",
        "2",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
    ]
    models = [
        "--sharer",
        "atlas",
        "--receiver",
        "atlas",
        "--per_device_train_batch_size",
        "4",
        "--output_dir",
        str(tmp_path / "adapter"),
    ]
    assert main(["train", *models, *few, "--blank_sharer", "true"]) == 0
    bridge = H2CBridgeModel.from_pretrained(tmp_path / "adapter")
    assert bridge.config.sharer_hidden_size == 192


def test_blanked_states_cannot_also_be_stored_ones(capsys):
    few = [
        "--sharer",
        "atlas",
        "--receiver",
        "atlas",
        "--train_data",
        "atlas",
        "--blank_sharer",
        "true",
        "--sharer_states",
        "x",
    ]
    assert main(["train", *few]) == 2
    assert "blank_sharer and sharer_states are both given" in capsys.readouterr().err
