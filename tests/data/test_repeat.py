import hashlib
import json

import pytest

from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.sources import DataSource, ReportSource, reader


@pytest.fixture
def chats(tmp_path) -> str:
    """A file of 200 conversations; every tenth answer is the same text."""
    rows = [
        {
            "conversations": [
                {
                    "from": "human",
                    "value": f"What is the {number}th thing that one should know about the world?",
                },
                {
                    "from": "gpt",
                    "value": "I am sorry but nobody knows that yet, ask again later."
                    if number % 10 == 0
                    else words(number),
                },
            ]
        }
        for number in range(200)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def words(seed: int) -> str:
    digest = hashlib.sha256(str(seed).encode()).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, 64, 4))


def repeated(source: str, kind=DataSource) -> list[dict]:
    return kind.parse(source).load().to_list()


def test_the_sharer_reads_the_text_that_is_the_target(chats):
    source = DataSource.parse(f"path={chats},form=repeat,fewest=3,most=7,count=500")
    records = source.load()
    assert len(records) == 500
    texts = {turn["value"] for line in open(chats) for turn in json.loads(line)["conversations"]}
    for record in records:
        ((asked, answer, told),) = reader(records.column_names, source)(record)
        assert asked == [{"role": "user", "content": "Repeat the text."}]
        assert told == [{"role": "user", "content": f"{answer}\n\nRepeat the text."}]
        assert 3 <= len(answer.split()) <= 7 and any(answer in text for text in texts)
    assert {len(record["answers"][0].split()) for record in records} == {3, 4, 5, 6, 7}


def test_the_same_seed_draws_the_same_texts_and_another_does_not(chats):
    first, again, other = (repeated(f"path={chats},form=repeat,seed={seed}") for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 200 + 181  # one a text: 200 questions, 180 answers, and the common one once


def test_no_text_of_a_part_stands_in_another(chats):
    """Texts are at most 16 words here, so `most=16` and `fewest=9` cut pieces that tell the texts apart."""
    found = {
        part: {
            record["group"]
            for record in repeated(
                f"path={chats},form=repeat,part={part},fewest=9,most=16,count=800", ReportSource
            )
        }
        for part in ("train", "validation", "test")
    }
    assert found["train"] and found["validation"] and found["test"]
    assert not (
        found["train"] & found["validation"]
        or found["train"] & found["test"]
        or found["validation"] & found["test"]
    )
    assert len(found["train"]) > 10 * len(found["validation"])
    assert sum(map(len, found.values())) == 200 + 181
    common = repeated(f"path={chats},form=repeat,part=train,fewest=11,most=11")
    assert "I am sorry but nobody knows that yet, ask again later." in [
        record["answers"][0] for record in common
    ]


def test_a_held_out_share_holds_whole_texts(chats, processor):
    source = DataSource.parse(f"path={chats},form=repeat,fewest=9,most=9,count=900")
    train, held_out, _ = build_dataset([source], processor, hold_out=0.3)
    assert len(train) and len(held_out)
    decode = processor.receiver_tokenizer.decode
    sides = [
        {decode(row["target_ids"], skip_special_tokens=True).strip() for row in side}
        for side in (train, held_out)
    ]
    assert not sides[0] & sides[1]


def test_questions_and_sentences_of_atlas_can_be_repeated(tmp_path):
    sentences = repeated("path=atlas,form=repeat,fewest=4,most=30,split=validation,count=50")
    assert len(sentences) == 50 and all(len(record["passage"].split()) >= 4 for record in sentences)
    row = {"question": "Which of these is a warm and sunny place?", "choices": ["a", "b"], "answer": 1}
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(row) + "\n")
    (record,) = repeated(f"path={tmp_path / 'mmlu.jsonl'},form=repeat,fewest=9,most=9")
    assert record["answers"] == [row["question"]]


def test_part_keeps_the_records_of_any_layout_apart(chats):
    parts = [
        ReportSource.parse(f"path={chats},part={part}").load().to_list()
        for part in ("train", "validation", "test")
    ]
    assert sum(map(len, parts)) == 200 and all(parts)
    stream = list(DataSource.parse(f"path={chats},part=validation").load(streaming=True))
    assert stream == parts[1]


def test_parts_overlap_only_with_themselves_and_the_whole(chats):
    whole, train, validation = (
        DataSource.parse(f"path={chats},form=repeat{part}")
        for part in ("", ",part=train", ",part=validation")
    )
    assert (
        whole.overlaps(train)
        and whole.overlaps(validation)
        and train.overlaps(train)
        and not train.overlaps(validation)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("form=repeat,fewest=0", "fewest 0, most 12, .* expected"),
        ("form=repeat,fewest=9,most=4", "fewest 9, most 4"),
        ("form=repeat,part=test", "part of .* is 'test': a test split is for reports"),
        ("form=repeat,part=dev", "expected one of train, validation, test"),
        ("most=4", "most of .* is for the form repeat or word_list; got the form 'choice'"),
        ("form=repeat,most=few", "has most='few'; expected a whole number"),
        ("form=repeat,new_words=true", "new_words of .* is for the form words"),
    ],
)
def test_a_repeat_source_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataSource.parse(f"path=x.jsonl,{fields}")


def test_texts_that_are_all_too_short_are_refused(chats):
    with pytest.raises(ValueError, match="has no text of 99 words; expected some, or a smaller 'fewest'"):
        DataSource.parse(f"path={chats},form=repeat,fewest=99,most=99").load()
