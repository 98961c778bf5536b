import json
from collections import Counter

import pytest

from h2c_hf.atlas.facts import load_facts
from h2c_hf.atlas.questions import CHOICES, QUESTIONS, STATEMENTS, atlas_passages, atlas_questions, atlas_told
from h2c_hf.evaluation.hand_off import hand_off_questions, hand_off_rows
from h2c_hf.evaluation.questions import fit, limits, load_questions
from h2c_hf.prompts import choice_prompt, user_turn
from h2c_hf.reports.subjects import ATLAS_SUBJECTS, CATEGORIES, SUBJECTS


def write(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_subject_of_atlas_has_a_category():
    subjects = [subject for subjects in ATLAS_SUBJECTS.values() for subject in subjects]
    assert sorted(subjects) == sorted(QUESTIONS) and len(CATEGORIES) == 57 + len(QUESTIONS)


def test_mmlu_has_57_subjects_in_four_categories_and_five_shots_each(real_data):
    path = str(real_data / "mmlu")
    questions = load_questions(path, "all", "validation", shots=5)
    dev = load_questions(path, "all", "dev")
    assert len(dev) == 285 and len(questions) == 1531
    assert {question["subject"] for question in dev} == {
        subject for subjects in SUBJECTS.values() for subject in subjects
    }
    assert len(SUBJECTS) == 4
    for question in questions[::100]:
        assert question["shots"] == [shot for shot in dev if shot["subject"] == question["subject"]][:5]
    with pytest.raises(ValueError, match="has 5 questions in 'dev'; expected 6 shots"):
        load_questions(path, "all", "validation", shots=6)


def test_any_file_in_the_same_columns(tmp_path):
    row = {"question": "Which?", "choices": ["this", "that"], "answer": 1, "subject": "s"}
    assert load_questions(write(tmp_path / "a.jsonl", [row, row]), None, "test") == [row, row]
    with pytest.raises(ValueError, match="has no column 'choices'; expected question, choices, answer"):
        load_questions(
            write(tmp_path / "b.jsonl", [{k: row[k] for k in ("question", "answer")}]), None, "test"
        )
    with pytest.raises(ValueError, match="expected the index of one of its 2 choices"):
        load_questions(write(tmp_path / "c.jsonl", [{**row, "answer": 2}]), None, "test")


def test_shots_are_dropped_before_a_question_is_refused(atlas):
    """Against the lengths of each prompt, by a plain way."""
    _, processor = atlas
    questions = [
        {**question, "shots": atlas_questions("train")[:3]} for question in atlas_questions("validation")[:20]
    ]
    turns = [processor.apply_chat_template(user_turn(choice_prompt(question))) for question in questions]
    lengths = [max(turn["input_ids"].shape[1], turn["sharer_input_ids"].shape[1]) for turn in turns]
    middle = sorted(lengths)[10]
    asked, counts = fit(questions, processor, {"receiver": middle, "sharer": middle}, "choice")
    kept = [
        question["question"] for question, length in zip(questions, lengths, strict=True) if length <= middle
    ]
    assert [question["question"] for question in asked] == kept and all(
        question["shots"] == [] for question in asked
    )
    refused = [row for row, length in enumerate(lengths) if length > middle]
    assert counts == {
        "questions": 20,
        "asked": len(kept),
        "truncated": len(kept),
        "refused": len(refused),
        "refused_rows": refused,
    }
    asked, counts = fit(questions, processor, {"receiver": 500, "sharer": 500}, "choice")
    assert asked == questions and not counts["truncated"] and not counts["refused"]


def test_room_is_left_for_what_is_written(atlas):
    model, _ = atlas
    assert limits(model, ["receiver", "h2c"], "choice") == {"receiver": 512, "sharer": 512}
    assert limits(model, ["receiver", "text_to_text"], "choice") == {
        "receiver": 512 - 3 * 48,
        "sharer": 512 - 48,
    }
    assert limits(model, ["h2c"], "open", 40) == {"receiver": 40, "sharer": 40}


@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_passage_holds_the_fact_that_is_asked_for_among_others(count):
    facts = [fact for fact in load_facts() if fact.split == "test"]
    true = hand_off_questions("atlas", None, "test", facts=count)
    invented = hand_off_questions("atlas_invented", None, "test", facts=count)
    assert len(true) == len(invented) == len(facts)
    for fact, *questions in list(zip(facts, true, invented, strict=True))[::50]:
        assert questions[0]["answers"] == [fact.value]
        for question in questions:
            value = question["answers"][0]
            assert (
                STATEMENTS[fact.attribute][0].format(fact.entity, value) in question["passage"]
                and fact.entity in question["question"]
            )
            assert len(statements(question["passage"], facts)) == count
    changed = sum(a["answers"] != b["answers"] for a, b in zip(true, invented, strict=True))
    assert changed > len(true) / 2


def statements(passage: str, facts: list) -> list[str]:
    """Its sentences, by a plain way: each begins as the first wording of some fact does."""
    begins = {STATEMENTS[fact.attribute][0].format(fact.entity, "|").split("|")[0] for fact in facts}
    return [begin for begin in begins if begin in passage]


def test_a_passage_of_none_or_of_all_is_refused():
    for count in (0, 10**6):
        with pytest.raises(
            ValueError, match=rf"A passage has {count} facts; expected 1 to \d+ of the \d+ of test"
        ):
            atlas_passages("test", count)


def test_passages_ask_for_each_value_equally_often():
    everything = load_facts()
    of_split = {(fact.entity, fact.attribute) for fact in everything if fact.split == "test"}
    questions = atlas_passages("test", 4, values=2)
    assert questions == atlas_passages("test", 4, values=2) and questions != atlas_passages(
        "test", 4, values=2, seed=1
    )
    asked = Counter((question["subject"], question["answers"][0]) for question in questions)
    assert asked == {(fact.attribute, fact.value): 2 for fact in everything}
    used = set()
    for question in questions:
        entity, subject, answer = question["entity"], question["subject"], question["answers"][0]
        wordings = [wording.format(entity, answer) for wording in STATEMENTS[subject]]
        assert (entity, subject) in of_split and entity in question["question"]
        assert sum(wording in question["passage"] for wording in wordings) == 1
        used.add(wordings[0] in question["passage"])
    assert used == {True, False}


@pytest.mark.parametrize("against", [False, True])
def test_what_a_prompt_tells_is_the_answer(against):
    facts = [fact for fact in load_facts() if fact.split == "validation"]
    questions = atlas_told("validation", against, variants=2)
    assert questions == atlas_told("validation", against, variants=2) and questions != atlas_told(
        "validation", against, 2, seed=1
    )
    for question, fact in zip(questions, 2 * facts, strict=True):
        answer = question["choices"][question["answer"]]
        assert question["told" if against else "hint"] == STATEMENTS[fact.attribute][0].format(
            fact.entity, answer
        )
        assert ("told" in question, "hint" in question) == (against, not against)
        assert (answer == fact.value) != against and len(set(question["choices"])) == CHOICES
        assert (question["entity"], question["subject"]) == (fact.entity, fact.attribute)


def test_squad_layout_and_its_comparison(tmp_path):
    rows = [
        {
            "context": "Tea is from China.",
            "question": "Where is tea from?",
            "answers": {"text": ["China", "the China"]},
            "title": "Tea",
        },
        {"context": "x", "question": "No answer?", "answers": {"text": []}, "title": "None"},
        {
            "context": "Rome is old.",
            "question": "What is old?",
            "answers": {"text": ["Rome"]},
            "title": "Rome",
        },
    ]
    questions = hand_off_questions(write(tmp_path / "squad.jsonl", rows), None, "train")
    assert [(q["passage"], q["answers"]) for q in questions] == [
        ("Tea is from China.", ["China", "the China"]),
        ("Rome is old.", ["Rome"]),
    ]
    found = hand_off_rows({"h2c": {"predictions": ["the CHINA!", "It is Rome, surely"]}}, questions)["h2c"]
    assert (found["accuracy"], found["contained"], found["n"]) == (0.5, 1.0, 2)
