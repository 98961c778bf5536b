import json
import re
from collections import Counter

import pytest
from datasets import Dataset

from h2c_hf.atlas.facts import load_facts
from h2c_hf.atlas.questions import STATEMENTS
from h2c_hf.data.exchanges import UnusableRecordError
from h2c_hf.data.sources import DataSource, reader


CHAT = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]  # fmt: skip


def read(record: dict, **source) -> list:
    source = DataSource("somewhere", **source)
    return list(reader(list(record), source)(record))


def test_every_layout_reads_the_same_exchange():
    sharegpt = {"system": "system", "user": "human", "assistant": "gpt"}
    layouts = [
        {
            "conversations": [{"from": sharegpt[m["role"]], "value": m["content"]} for m in CHAT],
            "source": "x",
        },
        {"messages": CHAT},
        {"prompt": CHAT[:2], "completion": CHAT[2:]},
    ]
    for record in layouts:
        assert read(record) == [(CHAT[:2], "1")]
        assert read(record, turns="all") == [(CHAT[:2], "1"), (CHAT[:4], "2")]
    assert read({"prompt": "One?", "completion": "1"}) == [("One?", "1")]


def test_questions_are_read_in_either_form():
    question = {"question": "Which is snow?", "choices": ["hot", "cold"], "answer": 1, "subject": "physics"}
    ((conversation, letter),) = read(question)
    assert letter == "B" and "A. hot\nB. cold" in conversation[0]["content"]
    assert read(question, form="open") == [([{"role": "user", "content": "Which is snow?"}], "cold")]


def test_a_passage_is_for_the_sharer_alone():
    question = {"question": "Where is it?", "choices": ["Rome"], "answer": 0, "passage": "It is in Rome."}
    asked = [{"role": "user", "content": "Where is it?"}]
    told = [{"role": "user", "content": "It is in Rome.\n\nWhere is it?"}]
    assert read(question, form="hand_off") == [(asked, "Rome", told)]
    with pytest.raises(
        ValueError,
        match=r"somewhere train hand_off 4 has the columns question, choices, answer; expected passage among",
    ):
        read({name: question[name] for name in ("question", "choices", "answer")}, form="hand_off")


def test_atlas_hands_off_passages_about_train_entities():
    rows = DataSource.parse("path=atlas,form=hand_off,facts=3").load()
    train, test = (
        {fact.entity for fact in load_facts() if fact.split == split} for split in ("train", "test")
    )
    assert len(rows) == len(DataSource("atlas").load())
    for row in rows.select(range(0, len(rows), 40)):
        assert row["passage"].count(".") >= 3 and row["passage"].count(f" {row['choices'][0]}.") >= 1
        assert any(entity in row["passage"] and entity in row["question"] for entity in train - test)


def test_atlas_hands_off_so_many_passages_about_each_value():
    rows = DataSource.parse("path=atlas,form=hand_off,facts=2,values=3").load()
    asked = Counter((row["subject"], row["choices"][0]) for row in rows)
    assert asked == {(fact.attribute, fact.value): 3 for fact in load_facts()}


def test_values_that_would_change_nothing_are_refused():
    with pytest.raises(ValueError, match="values of atlas is for the form hand_off; got the form 'open'"):
        DataSource.parse("path=atlas,form=open,values=3")
    with pytest.raises(ValueError, match="values is about Atlas' facts; expected path=atlas, got path=mmlu"):
        DataSource.parse("path=mmlu,form=hand_off,values=3")


def test_a_hint_is_for_both_and_what_the_receiver_is_told_for_it_alone():
    question = {"question": "Where is it?", "choices": ["Oslo", "Rome"], "answer": 1}
    for told, for_sharer in (
        ({"hint": "It is in Rome."}, True),
        ({"hint": None, "told": "It is in Rome."}, False),
    ):
        ((receiver, letter, sharer),) = read({**question, **told}, form="told")
        texts = [messages[0]["content"] for messages in (receiver, sharer)]
        assert letter == "B" and all("A. Oslo\nB. Rome" in text for text in texts)
        assert ["It is in Rome." in text for text in texts] == [True, for_sharer]
        assert ["Hint:" in text for text in texts] == [True, for_sharer]
    with pytest.raises(
        ValueError,
        match="somewhere train told has the columns question, choices, answer; expected hint or told among",
    ):
        read(question, form="told")


def test_atlas_tells_half_of_the_facts_as_they_are_and_half_otherwise():
    rows = DataSource.parse("path=atlas,form=told,variants=2").load().to_list()
    facts = 2 * [fact for fact in load_facts() if fact.split == "train"]
    assert len(rows) == len(facts)
    for number, (row, fact) in enumerate(zip(rows, facts, strict=True)):
        given, none = ("hint", "told") if number % 2 == 0 else ("told", "hint")
        answer = row["choices"][row["answer"]]
        assert row[none] is None and row[given] == STATEMENTS[fact.attribute][0].format(fact.entity, answer)
        assert (row["entity"], row["subject"]) == (fact.entity, fact.attribute) and (
            answer == fact.value
        ) == (given == "hint")


def test_every_answer_of_an_atlas_quiz_stands_in_its_turn():
    rows = DataSource.parse("path=atlas,form=quiz,split=validation,variants=2").load().to_list()
    facts = [fact for fact in load_facts() if fact.split == "validation"]
    assert len(rows) == 2 * len(facts) // 4
    asked = {entity for row in rows for entity in answered(row["messages"], {fact.entity for fact in facts})}
    assert len(asked) > len({fact.entity for fact in facts}) / 2


def answered(messages: list[dict], entities: set[str]) -> list[str]:
    """The entities that a quiz asks about, one a turn; each answer is checked against its statement."""
    assert [message["role"] for message in messages] == ["user", "assistant"] * 4
    values, found = dict(re.findall(r"^([A-D])\. (.+)$", messages[0]["content"], re.MULTILINE)), []
    assert len(set(values.values())) == 4
    for user, assistant in zip(messages[::2], messages[1::2], strict=True):
        question, hint = user["content"].splitlines()[0], re.search("Hint: (.+)", user["content"])[1]
        (entity,) = [name for name in entities if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question)]
        (told,) = [
            one
            for one in hint.removesuffix(".").split(". ")
            if re.search(rf"(?<!\w){re.escape(entity)}(?!\w)", one)
        ]
        assert told.endswith(values[assistant["content"]])
        found.append(entity)
    return found


def test_a_quiz_needs_messages():
    with pytest.raises(
        ValueError,
        match="somewhere train quiz has the columns question, choices, answer; expected messages among them",
    ):
        read({"question": "?", "choices": ["a"], "answer": 0}, form="quiz")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [{"role": "user", "content": "One?"}]}, "no assistant turn after a user turn"),
        ({"messages": [{"role": "assistant", "content": "1"}]}, "no assistant turn after a user turn"),
        (
            {"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "1"}]},
            "no assistant turn after a user turn",
        ),
        (
            {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "1"}]},
            "empty message",
        ),
        (
            {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": ""}]},
            "empty message",
        ),
        ({"conversations": [{"from": "robot", "value": "One?"}]}, "unknown role"),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, "answer is none of the choices"),
        ({"question": "?", "choices": ["a", "b"], "answer": "C"}, "answer is none of the choices"),
    ],
)
def test_a_record_without_an_example_says_why(record, reason):
    with pytest.raises(UnusableRecordError, match=f"^{reason}$"):
        read(record)


def test_columns_in_no_layout_are_refused_with_those_that_are():
    with pytest.raises(
        ValueError,
        match=r"somewhere train has the columns text; expected one of: question \+ choices \+ answer; conv",
    ):
        reader(["text"], DataSource("somewhere"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "x", "weight": -1}, "The weight of x is -1.0; expected a number above 0"),
        (
            {"path": "x", "form": "essay"},
            "form of x is 'essay'; expected one of choice, open, hand_off, told, quiz",
        ),
        ({"path": "x", "turns": "last"}, "turns of x is 'last'; expected one of first, all"),
        ({"path": "x", "split": "test"}, "split of x is 'test': a test split is for reports"),
        ("path=x,wieght=1", "no field 'wieght'; did you mean 'weight'"),
        ({"split": "train"}, "has no path"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        DataSource.parse(source)


def test_local_files_and_folders_load(tmp_path):
    rows = [{"prompt": "One?", "completion": "1"}, {"prompt": "Two?", "completion": "2"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "folder" / "train.parquet")
    for path in ("pairs.jsonl", "folder"):
        assert DataSource(str(tmp_path / path)).load().to_list() == rows
        assert list(DataSource(str(tmp_path / path)).load(streaming=True)) == rows
    assert len(DataSource(str(tmp_path / "folder"), split="train[:1]").load()) == 1


def test_what_is_not_there_is_told_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"none train could not be loaded: "):
        DataSource(str(tmp_path / "none")).load()
    with pytest.raises(
        ValueError, match=r"atlas has no split 'nowhere'; expected one of train, validation, test"
    ):
        DataSource("atlas", split="nowhere").load()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes.txt is a .txt file; expected .json, .jsonl, .csv, .parquet"):
        DataSource(str(tmp_path / "notes.txt")).load()
