"""Lists as text in a CSV file: each way of writing them, through pandas where pandas writes it."""

import json

import numpy as np
import pandas
import pytest

from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.parsing import parse_answer, parse_question, parse_text
from h2c_hf.data.sources import DataSource, UnusableRecordError, reader
from h2c_hf.evaluation.hand_off import hand_off_questions
from h2c_hf.evaluation.perplexity import load_exchanges
from h2c_hf.evaluation.questions import load_questions


CHOICES = [
    "it's",
    'a "b", c',
    "10",
    "Nairobi, the capital of Kenya, which lies on no river that ships can use",
]


@pytest.mark.parametrize(
    "write", [json.dumps, str, lambda x: str(np.array(x, object)), lambda x: repr(tuple(x))]
)
def test_a_list_is_read_as_it_was_written(write):
    assert parse_text(write(CHOICES)) == CHOICES


def test_what_pandas_writes_of_a_parquet_file_is_read(tmp_path):
    """`read_parquet` gives numpy arrays, which `to_csv` prints without commas."""
    answers = {"text": ["China", "the China"], "answer_start": [0, 3]}
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "It's 1"}]
    pandas.DataFrame({"choices": [CHOICES], "answers": [answers], "messages": [turns]}).to_parquet(
        tmp_path / "a.parquet"
    )
    pandas.read_parquet(tmp_path / "a.parquet").to_csv(tmp_path / "a.csv", index=False)
    row = pandas.read_csv(tmp_path / "a.csv").iloc[0]
    assert "' '10'" in row["choices"] and "array(" in row["answers"]
    assert (
        parse_text(row["choices"]) == CHOICES
        and parse_text(row["answers"]) == answers
        and parse_text(row["messages"]) == turns
    )


@pytest.mark.parametrize(
    "text",
    ["", "red", "red|green", "red, green", "'red', 'green'", "[red, green]", "['a' ... 'b']", "[f(1)]", "7"],
)
def test_a_text_that_writes_no_list_is_refused(text):
    with pytest.raises(
        ValueError, match="is the text .*expected a list, or a text that writes one as JSON or Python do"
    ):
        parse_text(text)


@pytest.mark.parametrize(("answer", "index"), [(1, 1), ("B", 1), (" D ", 3), (2.0, 2)])
def test_an_answer_is_an_index_or_a_letter(answer, index):
    assert parse_answer(answer, ["w", "x", "y", "z"]) == index


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"answer": None},
            "answer is empty; expected the index of one of its 2 choices, 0 to 1, or its letter",
        ),
        ({"answer": float("nan")}, "answer is nan; expected the index"),
        ({"answer": 0.5}, "answer is 0.5; expected the index"),
        ({"answer": True}, "answer is True; expected the index"),
        ({"answer": "C"}, "answer is 'C'; expected the index"),
        ({"answer": "this"}, "answer is 'this'; expected the index"),
        ({"answer": "1"}, "answer is '1'; expected the index"),  # whose count may begin at 0 or at 1
        (
            {"choices": ["B", "A"], "answer": "A"},
            "answer is 'A', the letter of 'B' and the text of another choice; expected an index",
        ),
        ({"choices": None}, "choices is None; expected a list"),
        ({"choices": ["a", None]}, "choices holds None; expected texts"),
        ({"choices": [str(n) for n in range(11)]}, "choices has 11 texts; expected 1 to 10"),
        ({"question": None}, "question is None; expected a text"),
    ],
)
def test_a_question_that_is_none_says_why(record, message):
    with pytest.raises(ValueError, match=message):
        parse_question({"question": "Which?", "choices": ["this", "that"], "answer": 0, **record})


def csv(path, **columns) -> str:
    pandas.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def test_evaluation_reads_choices_of_a_csv_file(tmp_path):
    columns = {"question": ["Which?", "What?"], "answer": ["B", "A"]}
    path = csv(tmp_path / "good.csv", **columns, choices=["['red' 'green']", '["x", "y", "z"]'])
    assert load_questions(path, None, "test") == [
        {"question": "Which?", "choices": ["red", "green"], "answer": 1, "subject": "no subject"},
        {"question": "What?", "choices": ["x", "y", "z"], "answer": 0, "subject": "no subject"},
    ]
    path = csv(tmp_path / "bad.csv", **columns, choices=["['red' 'green']", "red|green"])
    with pytest.raises(
        ValueError, match=r"^Row 1 of .*bad.csv \(test\): choices is the text 'red\|green'; expected a list"
    ):
        load_questions(path, None, "test")
    path = csv(
        tmp_path / "unanswered.csv",
        question=["Which?"] * 2,
        choices=["['red' 'green']"] * 2,
        answer=[1, None],
    )
    with pytest.raises(
        ValueError, match=r"^Row 1 of .*unanswered.csv \(test\): answer is empty; expected the index"
    ):
        load_questions(path, None, "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_training_reads_choices_of_a_csv_file(processor, tmp_path, streaming):
    columns = {"question": ["Which?", "What?"], "answer": [1, 0]}
    path = csv(tmp_path / "good.csv", **columns, choices=["['red' 'green']", '["x", "y"]'])
    examples, _, _ = build_dataset([DataSource(path)], processor, streaming=streaming)
    prompts = [processor.receiver_tokenizer.decode(example["input_ids"]) for example in examples]
    assert "Which?\nA. red\nB. green\n" in prompts[0] and "What?\nA. x\nB. y\n" in prompts[1]
    path = csv(tmp_path / "bad.csv", **columns, choices=["['red' 'green']", "red|green"])
    with pytest.raises(
        ValueError, match=r"^Row 1 of .*bad.csv train: choices is the text 'red\|green'; expected a list"
    ):
        list(build_dataset([DataSource(path)], processor, streaming=streaming)[0])


TURNS = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": str(TURNS)},
        {"messages": json.dumps(TURNS)},
        {"messages": str(np.array(TURNS, object))},
        {"conversations": str([{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}])},
        {"prompt": str(TURNS[:1]), "completion": str(TURNS[1:])},
        {"prompt": TURNS[:1], "completion": "1"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "On"}, {"type": "text", "text": "e?"}]},
                TURNS[1],
            ]
        },
    ],
)
def test_conversations_of_a_csv_file_are_read(record):
    assert list(reader(list(record), DataSource("somewhere"))(record)) == [(TURNS[:1], "1")]


@pytest.mark.parametrize("record", [{"messages": "Hello"}, {"conversations": "Hello"}])
def test_a_conversation_that_is_a_text_is_refused(record, tmp_path):
    path = csv(tmp_path / "chats.csv", **{name: [str(TURNS), text] for name, text in record.items()})
    (name,) = record
    if name == "messages":
        with pytest.raises(
            ValueError, match=f"^Row 1 of .*chats.csv train: {name} is the text 'Hello'; expected a list"
        ):
            load_exchanges(path, None, "train")
    with pytest.raises(ValueError, match=f"^{name} is the text 'Hello'; expected a list"):
        list(reader([name], DataSource("somewhere"))(record))


@pytest.mark.parametrize(
    "record",
    [{"messages": [{"role": "user"}]}, {"messages": ["Hello"]}, {"conversations": [{"from": "human"}]}],
)
def test_a_turn_without_its_fields_is_unusable(record):
    with pytest.raises(UnusableRecordError, match="without"):
        list(reader(list(record), DataSource("somewhere"))(record))


def test_a_part_that_is_not_text_is_unusable():
    record = {"messages": [{"role": "user", "content": [{"type": "image", "url": "x.png"}]}, TURNS[1]]}
    with pytest.raises(UnusableRecordError, match="part that is not text"):
        list(reader(list(record), DataSource("somewhere"))(record))


def test_answers_of_a_csv_file_are_read(tmp_path):
    columns = {"context": ["Tea is from China."] * 2, "question": ["Where is tea from?"] * 2}
    path = csv(tmp_path / "good.csv", **columns, answers=[str({"text": ["China"]}), "['China' 'PRC']"])
    assert [question["answers"] for question in hand_off_questions(path, None, "test")] == [
        ["China"],
        ["China", "PRC"],
    ]
    path = csv(tmp_path / "bad.csv", **columns, answers=[str({"text": ["China"]}), "China"])
    with pytest.raises(
        ValueError, match=r"^Row 1 of .*bad.csv \(test\): answers is the text 'China'; expected a list"
    ):
        hand_off_questions(path, None, "test")
