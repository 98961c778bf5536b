import random

import numpy as np
import pytest

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.evaluation.progress import Progress
from h2c_hf.evaluation.runner import evaluate


QUESTIONS = atlas_questions("validation")[:24]
METHODS = ["receiver", "h2c", "shuffled"]


def test_a_torn_line_is_dropped_and_asked_again(tmp_path):
    """Cut at random bytes: whole lines are kept, the rest is computed again, and the records are the same."""
    asked, computed = {"what": "squares"}, []

    def compute(number: int) -> dict:
        computed.append(number)
        return {"square": number**2}

    whole = list(Progress(tmp_path).each(asked, 9, compute))
    path = tmp_path / "progress-0.jsonl"
    content = path.read_bytes()
    for size in random.Random(0).sample(range(len(content)), 12):
        path.write_bytes(content[:size])
        computed.clear()
        assert list(Progress(tmp_path).each(asked, 9, compute)) == whole
        assert computed == list(range(content[:size].count(b"\n"), 9))
        assert path.read_bytes() == content


def test_other_questions_are_never_answered_from_disk(atlas, tmp_path):
    model, processor = atlas
    whole = evaluate(model, processor, QUESTIONS, METHODS, batch_size=5, progress=Progress(tmp_path))
    lines = (tmp_path / "progress-0.jsonl").read_bytes().count(b"\n")
    again = evaluate(model, processor, QUESTIONS, METHODS, batch_size=5, progress=Progress(tmp_path))
    assert (tmp_path / "progress-0.jsonl").read_bytes().count(b"\n") == lines == 5
    for name, result in whole.items():
        assert again[name]["predictions"] == result["predictions"]
        np.testing.assert_array_equal(again[name]["scores"], result["scores"])
    evaluate(model, processor, QUESTIONS[::-1], METHODS, batch_size=5, progress=Progress(tmp_path))
    with_gates = model.bridge.gate.detach().clone()
    model.bridge.gate.data += 0.1
    try:
        evaluate(model, processor, QUESTIONS, METHODS, batch_size=5, progress=Progress(tmp_path))
    finally:
        model.bridge.gate.data.copy_(with_gates)
    assert (tmp_path / "progress-0.jsonl").read_bytes().count(b"\n") == 3 * lines


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_take_every_batch_once(tmp_path, ranks):
    class State:
        num_processes = ranks

    taken = []
    for rank in range(ranks):
        State.process_index = rank
        taken += [
            record["number"]
            for record in Progress(tmp_path, State).each({}, 7, lambda number: {"number": number})
        ]
    assert sorted(taken) == list(range(7))
    alone = Progress(tmp_path)  # goes on from what all of them wrote
    assert [
        record["number"] for record in alone.each({}, 7, lambda number: pytest.fail("asked again"))
    ] == list(range(7))
