"""Answers in words, against SQuAD's own evaluation script (v1.1), written out here."""

import random
import re
import string
from collections import Counter

import pytest

from h2c_hf.evaluation.answers import contained, exact, f1, judged


def normalize_answer(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def f1_score(prediction, ground_truth):
    prediction_tokens = normalize_answer(prediction).split()
    ground_truth_tokens = normalize_answer(ground_truth).split()
    common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


@pytest.mark.parametrize(
    ("text", "answers", "is_exact", "overlap"),
    [
        ("1976", ["1976"], True, 1.0),  # the example of the published metric
        ("the Denver Broncos!", ["Denver Broncos"], True, 1.0),
        ("Denver Broncos won", ["Denver Broncos", "The Broncos"], False, 0.8),
        ("Santa Clara", ["Levi's Stadium", "Santa Clara, California"], False, 0.8),
        ("gold gold", ["gold"], False, 2 / 3),  # a word counts as often as it occurs
        ("", ["gold"], False, 0.0),
        ("The", ["a"], False, 0.0),  # nothing is left of either, as in SQuAD 2.0
        ("blue", ["gold", "the"], False, 0.0),
    ],
)
def test_answers_that_were_worked_out_by_hand(text, answers, is_exact, overlap):
    assert exact(text, answers) == is_exact and f1(text, answers) == pytest.approx(overlap)


def test_random_texts_are_scored_as_the_published_script_scores_them():
    rng = random.Random(0)
    words = ["the", "a", "An", "red", "Red", "fox's", "fox", "7", "7.", "-", "state-of", "Ü"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 5)))

    for _ in range(500):
        prediction, answers = text(), [text() for _ in range(rng.randint(1, 3))]
        if not all(map(normalize_answer, [prediction, *answers])):
            continue
        assert f1(prediction, answers) == pytest.approx(
            max(f1_score(prediction, answer) for answer in answers)
        )
        assert exact(prediction, answers) == any(
            normalize_answer(prediction) == normalize_answer(answer) for answer in answers
        )


def test_an_answer_is_contained_by_whole_words():
    assert contained("It is Rome, surely", ["Rome"]) and contained("the great wall of China", ["Great Wall"])
    assert not contained("Romeo", ["Rome"]) and not contained("wall great", ["great wall"])


def test_every_question_is_judged_by_its_own_answers():
    found = judged(["Rome", "Rome"], [{"answers": ["Oslo", "rome"]}, {"answers": ["Rome city"]}])
    assert found["exact"].tolist() == [True, False] == (found["f1"] == 1).tolist()
    assert found["contained"].tolist() == [True, False] and found["f1"][1] == pytest.approx(2 / 3)


@pytest.mark.parametrize("answer", ["A", "the", "+", "a the"])
def test_nothing_is_no_answer_to_articles_and_punctuation(answer):
    assert exact(answer.lower(), [answer]) and contained(answer, [answer]) and f1(answer, [answer]) == 1
    for other in ("", "-", "an"):
        assert not exact(other, [answer]) and not contained(other, [answer]) and f1(other, [answer]) == 0
