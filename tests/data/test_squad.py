import json

import pytest

from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.sources import DataSource, reader
from h2c_hf.data.squad import crop


PASSAGE = (
    "One is a number. Two is twice as much as one. Is three odd? It is! Four is even, and five, as you may "
    "have heard, is not."
)


def squad(path, rows: list[tuple]) -> str:
    layout = [
        {
            "context": context,
            "question": question,
            "answers": {"text": texts, "answer_start": [context.find(text) for text in texts]},
        }
        for context, question, texts in rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in layout))
    return str(path)


def test_the_passage_is_read_by_the_sharer_only(tmp_path):
    source = DataSource(squad(tmp_path / "squad.jsonl", [(PASSAGE, "Which is odd?", ["three", "Is three"])]))
    records = source.load()
    ((asked, answer, told),) = reader(records.column_names, source)(records[0])
    assert (asked, answer) == ([{"role": "user", "content": "Which is odd?"}], "three")
    assert told == [{"role": "user", "content": f"{PASSAGE}\n\nWhich is odd?"}]
    ((question,), unusable) = source.questions()
    assert unusable == 0 and question["answers"] == ["three", "Is three"] and question["passage"] == PASSAGE


@pytest.mark.parametrize(
    ("answer", "most", "expected"),
    [
        ("three", 3, "Is three odd?"),
        ("three", 5, "Is three odd? It is!"),
        ("three", 12, "Two is twice as much as one. Is three odd? It is!"),
        ("One", 2, "One is a number."),  # kept whole
        ("five", 1, "Four is even, and five, as you may have heard, is not."),
        ("five", 14, "It is! Four is even, and five, as you may have heard, is not."),
        ("Two", 999, PASSAGE),
    ],
)
def test_a_crop_keeps_whole_sentences_around_the_answer(answer, most, expected):
    assert crop(PASSAGE, PASSAGE.index(answer), most) == expected


def test_a_crop_of_real_passages_holds_the_answer(real_data):
    rows = [json.loads(line) for line in open(real_data / "xquad" / "train.jsonl")]
    for row in rows:
        text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        cropped = crop(row["context"], start, 40)
        assert cropped in row["context"] and (text in cropped or ". " in text)
    assert (
        sum(len(crop(row["context"], row["answers"]["answer_start"][0], 40).split()) <= 40 for row in rows)
        > len(rows) * 0.75
    )


def test_questions_of_a_passage_stay_on_one_side(tmp_path, processor):
    rows = [
        (f"The {number}th passage. It says {number}.", f"What does it say, {n}?", [str(number)])
        for number in range(40)
        for n in range(3)
    ]
    kept, held_out, _ = build_dataset(
        [DataSource(squad(tmp_path / "squad.jsonl", rows))], processor, hold_out=0.3
    )
    decode = processor.sharer_tokenizer.decode
    sides = [
        {decode(row["sharer_input_ids"]).split("It says ")[1].split(".")[0] for row in side}
        for side in (kept, held_out)
    ]
    assert all(sides) and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40


def test_a_question_without_an_answer_is_counted(tmp_path, processor):
    path = squad(
        tmp_path / "squad.jsonl", [(PASSAGE, "Which is odd?", ["three"]), (PASSAGE, "Which is blue?", [])]
    )
    kept, _, report = build_dataset([DataSource(path)], processor)
    assert len(kept) == 1 and report.sources[0].dropped == {"no answer": 1}


def test_closed_book_questions_are_read_by_both(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "1", "question": "who is it?", "answers": ["Ann", "Anna"]}) + "\n")
    source = DataSource(str(path))
    records = source.load()
    assert list(reader(records.column_names, source)(records[0])) == [
        ([{"role": "user", "content": "who is it?"}], "Ann")
    ]
    ((question,), _) = source.questions()
    assert question["answers"] == ["Ann", "Anna"] and "passage" not in question


def test_a_crop_of_what_is_no_passage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="and crop=40; expected passages in `context`"):
        reader(["question", "answers"], DataSource("x.jsonl", crop=40))


def test_conversations_are_no_questions_in_words(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n")
    with pytest.raises(
        ValueError,
        match=r"has the columns messages; expected one of: "
        r"context \+ question \+ answers; question \+ answers",
    ):
        DataSource(str(tmp_path / "a.jsonl")).questions()
