"""What is broken on purpose must show in the report: no information gain."""

import pytest
import torch

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.evaluation import runner
from h2c_hf.evaluation.methods import H2C, METHODS
from h2c_hf.reports.report import beats_controls, build_report


QUESTIONS = atlas_questions("test")[:300]
ASKED = ["receiver", "h2c", "sharer", "shuffled", "zeros"]


def gain(model, processor) -> dict:
    report = build_report(runner.evaluate(model, processor, QUESTIONS, ASKED, batch_size=100), {}, QUESTIONS)
    return {**report["information_gain"], "beats": beats_controls(report)}


def test_the_bridge_that_ships_gains(atlas):
    found = gain(*atlas)
    assert found["beats"] and found["value"] > 0.6


@pytest.fixture
def random_weights(atlas):
    bridge = atlas[0].bridge
    weights = {name: tensor.clone() for name, tensor in bridge.state_dict().items()}
    torch.manual_seed(0)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    yield
    bridge.load_state_dict(weights)


@pytest.fixture
def wrong_layers(monkeypatch):
    """Every bridged layer reads the Sharer's embeddings, where nothing is known yet. (The answer stands in
    neighbouring layers as well, and a bridge understands those: not every wrong layer is without
    information.)"""
    read = H2C.states

    def states(self, batch):
        kept, mask = read(self, batch)
        ids = batch.inputs["sharer_input_ids"], batch.inputs["sharer_attention_mask"]
        embeddings = batch.model.read(*ids, [0])[0]
        return tuple(None if state is None else embeddings for state in kept), mask

    monkeypatch.setattr(H2C, "states", states)
    assert METHODS["h2c"].states.__func__ is states


@pytest.fixture
def wrong_answer_ids(monkeypatch):
    """Each letter is read where the next one's logit stands. (Any other four tokens would not do: their
    logits go with the letters', or against them, by chance.)"""
    ids = runner.letter_ids

    def turned(*arguments):
        first, *others = ids(*arguments)
        return [*others, first]

    monkeypatch.setattr(runner, "letter_ids", turned)


@pytest.mark.parametrize("broken", ["random_weights", "wrong_layers", "wrong_answer_ids"])
def test_a_broken_set_up_gains_nothing(atlas, request, broken):
    request.getfixturevalue(broken)
    found = gain(*atlas)
    print(broken, found)
    assert not found["beats"]
    assert found["value"] < 0.06
