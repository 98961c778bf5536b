"""The bridge that ships for two published language models, asked on passages that it was not trained on."""

from pathlib import Path

import pytest

from h2c_hf.atlas.questions import atlas_passages
from h2c_hf.data.rows import spread_rows
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.hub.models import PUBLISHED, fetch
from h2c_hf.loading import load_pair


SHIPPED = Path(__file__).parents[2] / "hub_configs" / "gemma-3-270m_to_smollm2-135m"
PASSAGES = 64


@pytest.fixture(scope="module")
def pair():
    for name in PUBLISHED:
        try:
            fetch(name)
        except OSError as error:
            pytest.skip(f"{name} is neither stored nor can it be fetched: {error}")
    return load_pair(str(SHIPPED))


@pytest.mark.real
def test_the_bridge_that_ships_answers_what_the_sharer_read_and_not_without_it(pair):
    questions = atlas_passages("test", 1, invented=True)
    questions = [questions[row] for row in spread_rows(len(questions), PASSAGES)]
    results = evaluate(*pair, questions, ["h2c", "shuffled"], "open", batch_size=32)
    assert len(questions) == PASSAGES
    assert results["h2c"]["correct"].mean() >= 0.85
    assert results["shuffled"]["correct"].mean() <= 0.05
