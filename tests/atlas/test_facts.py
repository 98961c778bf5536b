from collections import Counter, defaultdict

import pytest

from h2c_hf.atlas.facts import CREDITS, FACTS_FILE, SPLITS, load_facts, save_facts, select_facts
from h2c_hf.atlas.questions import CHOICES, atlas_questions, statement


FACTS = load_facts()


def test_there_are_enough_real_facts():
    assert len(FACTS) >= 4000
    assert len({fact.attribute for fact in FACTS}) >= 8
    # One value each.
    assert Counter((fact.entity, fact.attribute) for fact in FACTS).most_common(1)[0][1] == 1


def test_an_entity_is_in_one_split_alone():
    splits = defaultdict(set)
    for fact in FACTS:
        splits[fact.kind, fact.entity].add(fact.split)
    assert {len(found) for found in splits.values()} == {1}
    assert {fact.split for fact in FACTS} == set(SPLITS)


def test_the_credits_travel_with_the_facts(tmp_path):
    header = "".join(line[2:] for line in FACTS_FILE.open(encoding="utf-8") if line.startswith("#"))
    assert header == CREDITS
    save_facts(FACTS, tmp_path / "facts.tsv")
    assert (tmp_path / "facts.tsv").read_bytes() == FACTS_FILE.read_bytes()


def test_the_facts_are_those_of_the_source_tables(real_data):
    assert select_facts(real_data / "facts", seed=0) == FACTS


@pytest.mark.parametrize("split", SPLITS)
def test_questions_ask_what_the_facts_say(split):
    truth = {(fact.entity, fact.attribute): fact for fact in FACTS}
    questions = atlas_questions(split)
    for question in questions:
        fact = truth[question["entity"], question["subject"]]
        assert fact.split == split
        assert question["choices"][question["answer"]] == fact.value
        assert len(set(question["choices"])) == len(question["choices"]) == CHOICES
        assert fact.entity in question["question"]
    assert questions == atlas_questions(split)  # the same every time


def test_there_are_enough_test_questions_and_no_letter_is_favoured():
    questions = atlas_questions("test")
    assert len(questions) >= 1000
    counts = Counter(question["answer"] for question in questions)
    assert set(counts) == set(range(CHOICES)) and max(counts.values()) - min(counts.values()) <= 1


def test_a_common_value_is_no_more_often_right_than_wrong():
    """Distractors are drawn as the values are: always choosing the commonest of the four must not pay."""
    questions = atlas_questions("test", variants=4)
    frequency = Counter((fact.attribute, fact.value) for fact in FACTS)
    right = 0
    for question in questions:
        counts = [frequency[question["subject"], choice] for choice in question["choices"]]
        right += counts[question["answer"]] == max(counts) and counts.count(max(counts)) == 1
    assert right / len(questions) < 0.32


def test_a_statement_holds_entity_and_value():
    for fact in FACTS[::50]:
        assert fact.entity in statement(fact) and fact.value in statement(fact)
