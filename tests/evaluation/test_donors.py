import random

import pytest

from h2c_hf.atlas.questions import atlas_passages, atlas_questions
from h2c_hf.evaluation.donors import can_give, donor_row
from h2c_hf.evaluation.runner import batches


def asked(question: str, answer: str, **more) -> dict:
    return {
        "question": question,
        "choices": [answer],
        "answer": 0,
        "answers": [answer],
        "subject": "",
        **more,
    }


ROME = asked("Where is it?", "Rome", entity="it", passage="It is in Rome.")


@pytest.mark.parametrize(
    ("donor", "gives"),
    [
        (asked("Where is she?", "Oslo", entity="she", passage="She is in Oslo."), True),
        (asked("Where is it now?", "Oslo", entity="it", passage="It is in Oslo."), False),  # the same entity
        # The same answer.
        (asked("Where is she?", "the Rome!", entity="she", passage="She is in Rome."), False),
        # Its passage has the answer.
        (asked("Where is she?", "Oslo", entity="she", passage="She is in Oslo. He is in Rome."), False),
        # Its passage names the entity.
        (asked("Where is she?", "Oslo", entity="she", passage="She is in Oslo. IT is in Bonn."), False),
        (asked("Where is she?", "Oslo", entity="she", passage="She is in Oslo. Romeo is not."), True),
        (asked("Where is she?", "Oslo"), True),
    ],
)
def test_a_donor_gives_nothing_away(donor, gives):
    assert can_give(donor, ROME) == gives


def test_questions_about_one_passage_are_no_donors():
    first, second = (
        asked(question, answer, passage="Ann is in Bonn, Bob in Oslo.")
        for question, answer in (("Ann?", "Bonn"), ("Bob?", "Oslo"))
    )
    assert not can_give(first, second)


def test_the_nearest_question_before_gives_and_another_batch_if_none_can():
    same = [asked(f"{n}?", "yes", entity=str(n)) for n in range(4)]
    other = asked("else?", "no", entity="else")
    questions = [other, *same]
    assert donor_row(questions, 0) == 4 and donor_row(questions, 2) == 0
    assert donor_row(questions, 2, [1, 2, 3]) == 0  # nobody in the batch
    with pytest.raises(ValueError, match=r"with another answer than \['yes'\]: got none among 4"):
        donor_row(same, 0)


@pytest.mark.parametrize("facts", [None, 1, 16])
def test_donors_of_atlas_are_about_something_else(facts):
    questions = atlas_passages("test", facts, invented=True) if facts else atlas_questions("test")
    questions = random.Random(0).sample(questions, 120)
    for part in batches(questions, "open", 16):
        for row in part:
            question, donor = questions[row], questions[donor_row(questions, row, part)]
            answers = [one["choices"][one["answer"]] for one in (question, donor)]
            assert donor["entity"] != question["entity"] and answers[0] != answers[1]
            assert f" {question['entity']} " not in f" {donor.get('passage', '')} ".replace(".", " ")
            assert f" {answers[0]} " not in f" {donor.get('passage', '')} ".replace(".", " ")
