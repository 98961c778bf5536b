import numpy as np
import pytest

from h2c_hf.atlas.questions import STATEMENTS
from h2c_hf.evaluation.batch import Batch
from h2c_hf.experiments.merits import (
    ALONE,
    FEWER,
    FORMS,
    ON_ALL,
    ON_FEW,
    conversations,
    harm_table,
    knowledge_table,
    questions_of,
)
from h2c_hf.pair import atlas_pair


SPLIT = "test"  # which has more questions than `FEWER`


@pytest.fixture(scope="module")
def asked():
    return {merit: questions_of(merit, SPLIT) for merit in FORMS}


@pytest.fixture
def answers(asked):
    """(what both models answer alone, cells of three seeds), drawn at random."""
    rng = np.random.default_rng(0)

    def draw(merits):
        correct = {
            f"{merit}/{method}": (rng.random(len(asked[merit])) < (0.9 if method == "sharer" else 0.4))
            .astype(int)
            .tolist()
            for merit, methods in merits.items()
            for method in methods
            if merit != "text"
        }
        return {
            "correct": correct,
            "perplexity": {method: rng.uniform(1, 3) for method in merits.get("text", [])},
        }

    return draw(ALONE), [{"facts": 7, "parameters": 1234, **draw(ON_ALL)} for _ in range(3)]


def rows_of(table: str) -> list[list[str]]:
    return [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]


def numbers(cell: str) -> list[float]:
    """The value, and the least and the most of a seed."""
    seeds = cell.partition("[")[2].rstrip("]").split(", ") if "[" in cell else []
    return [float(cell.split()[0]), *map(float, seeds)]


@pytest.mark.parametrize("without", [[], ["sport", "sector"]])
def test_what_is_carried_is_plain_arithmetic_on_the_answers(asked, answers, without):
    alone, cells = answers
    (row,) = rows_of(knowledge_table([("form", "run", {"without": without}, cells)], alone, SPLIT))
    kept = [i for i, q in enumerate(asked["choice"]) if not without or q["subject"] in without]
    base = {
        name: np.array(alone["correct"][name])[kept].mean()
        for name in ("choice/receiver", "choice/sharer", "open/sharer")
    }
    right = {
        name: [np.array(cell["correct"][name])[kept].mean() for cell in cells]
        for name in ("choice/h2c", "open/h2c")
    }
    lead = [
        (x - base["choice/receiver"]) / (base["choice/sharer"] - base["choice/receiver"])
        for x in right["choice/h2c"]
    ]
    written = [x / base["open/sharer"] for x in right["open/h2c"]]
    assert row[:5] == ["form", "run", "3", "7", "1,234"]
    for cell, values in ((row[5], lead), (row[7], written)):
        assert numbers(cell) == pytest.approx(
            [100 * x for x in (np.mean(values), min(values), max(values))], abs=0.051
        )
    for cell, name in ((row[6], "choice/shuffled"), (row[8], "open/shuffled")):
        assert float(cell) == pytest.approx(
            100 * np.mean([np.array(c["correct"][name])[kept].mean() for c in cells]), abs=0.051
        )


def test_what_is_harmed_is_plain_arithmetic_on_the_answers(answers):
    alone, cells = answers
    (row,) = rows_of(harm_table([("form", cells)], alone))
    mean = {name: [np.mean(cell["correct"][name]) for cell in cells] for name in cells[0]["correct"]}
    expected = [mean[f"facts_{n}/h2c"] for n in (1, 4, 16)]
    lost = [
        [np.mean(alone["correct"][f"{m}/receiver"]) - x for x in mean[f"{m}/h2c"]]
        for m in ("told", "against")
    ]
    for cell, values in zip([*row[2:5], *row[6:8]], [*expected, *lost], strict=True):
        assert numbers(cell) == pytest.approx(
            [100 * x for x in (np.mean(values), min(values), max(values))], abs=0.051
        )
    assert float(row[5]) == pytest.approx(100 * np.mean(mean["facts_16/shuffled"]), abs=0.051)
    text = [cell["perplexity"]["h2c"] / alone["perplexity"]["receiver"] for cell in cells]
    assert float(row[8].split()[0]) == pytest.approx(np.mean(text), abs=0.00051)


def test_each_model_reads_what_the_merit_says(asked):
    model, processor = atlas_pair()
    for merit, form in FORMS.items():
        question = asked[merit][3]
        inputs = Batch(model, processor, [question], form).inputs
        receiver = processor.receiver_tokenizer.decode(inputs["input_ids"][0])
        sharer = processor.sharer_tokenizer.decode(inputs["sharer_input_ids"][0])
        for text in (receiver, sharer):
            assert question["question"] in text
        known = {name: question.get(name) for name in ("passage", "hint", "told") if question.get(name)}
        expected = {"told": {"hint"}, "against": {"told"}}.get(
            merit, {"passage"} if merit.startswith("facts") else set()
        )
        assert set(known) == expected
        for name, words in known.items():
            assert (words in receiver) == (name != "passage") and (words in sharer) == (name != "told"), merit


def test_what_is_told_is_right_and_what_the_sharer_knows_is_not(asked):
    true = {(q["entity"], q["subject"]): q["choices"][q["answer"]] for q in asked["choice"]}
    for merit, statement in (("told", "hint"), ("against", "told")):
        assert len(asked[merit]) == min(FEWER, len(true))
        for q in asked[merit]:
            answer = q["choices"][q["answer"]]
            assert q[statement] == STATEMENTS[q["subject"]][0].format(q["entity"], answer)
            assert (answer == true[q["entity"], q["subject"]]) == (merit == "told")


def test_conversations_are_of_several_turns_and_end_in_an_answer():
    found = conversations(SPLIT)
    assert found == conversations(SPLIT) and found != conversations("validation")
    for messages, answer in found:
        assert [m["role"] for m in messages] == ["user", "assistant"] * 3 + ["user"] and answer in "ABCD"
        assert all("Hint:" in m["content"] for m in messages[::2])
    assert set(ON_FEW) < set(ON_ALL) == set(ALONE) == {*FORMS, "text"}
