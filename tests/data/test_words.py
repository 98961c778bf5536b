import json
import random
import re

import pytest

from h2c_hf.atlas.facts import load_facts
from h2c_hf.data.sources import DataSource, ReportSource, reader
from h2c_hf.data.words import count_words, load_words, split_words


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def book(tmp_path) -> str:
    """A file in which 300 words occur three times, and others twice, or in capitals, or too short or long."""
    rng = random.Random(0)
    common = ["".join(rng.choices(LETTERS, k=rng.randint(4, 12))) for _ in range(300)]
    lines = [
        *common,
        *common,
        *common,
        "twice",
        "twice",
        *3 * ["Capital", "abc", "abcdefghijklm", "with2digits"],
    ]
    path = tmp_path / "book.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return str(path)


def passages(source: str, kind=DataSource) -> list[dict]:
    return kind.parse(source).load().to_list()


def test_words_are_those_that_occur_three_times(book):
    rows = [json.loads(line) for line in open(book)]
    words = count_words(rows)
    assert len(words) == 300 and set(words) == {row["text"] for row in rows[:300]}


def test_new_words_are_a_part_of_their_own_whatever_the_order():
    words = [f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(500)]
    seen, new = split_words(words)
    assert len(new) == 50 and not set(seen) & set(new) and sorted(seen + new) == sorted(words)
    assert split_words(words[::-1]) == (seen, new)
    assert len(split_words(str(number) for number in range(20000))[1]) == 600


@pytest.mark.parametrize("facts", [1, 2, 4, 16])
def test_a_passage_states_the_value_that_is_asked_for(book, facts):
    source = DataSource.parse(f"path=atlas,form=words,words={book},facts={facts},count=60")
    records = source.load()
    seen = set(load_words(book)[0])
    entities = {fact.entity for fact in load_facts() if fact.split == "train"}
    lengths = set()
    for record in records:
        ((asked, answer, told),) = reader(records.column_names, source)(record)
        assert (
            asked[0]["content"] == record["question"]
            and told[0]["content"] == f"{record['passage']}\n\n{record['question']}"
        )
        assert record["entity"] in entities and record["entity"] in record["question"]
        sentences = re.split(r"(?<=\.) (?=The |We )", record["passage"])
        assert len(sentences) == facts
        (about,) = [
            one for one in sentences if re.search(rf"(?<!\w){re.escape(record['entity'])}(?!\w)", one)
        ]
        assert about.endswith(f" {answer}.") and set(answer.split()) <= seen
        lengths.add(len(answer.split()))
    assert len(records) == 60 and lengths == {1, 2}


def test_words_and_entities_are_split_apart(book):
    seen, new = map(set, load_words(book))
    sets = {
        "train": passages(f"path=atlas,form=words,words={book},facts=1"),
        "seen": passages(f"path=atlas,form=words,words={book},facts=1,split=validation"),
        "new": passages(f"path=atlas,form=words,words={book},facts=1,split=validation,new_words=true"),
        "test": passages(
            f"path=atlas,form=words,words={book},facts=1,split=test,new_words=true", ReportSource
        ),
    }
    used = {
        name: {word for record in records for word in record["answers"][0].split()}
        for name, records in sets.items()
    }
    assert used["train"] <= seen and used["seen"] <= seen and used["new"] <= new and used["test"] <= new
    asked = {name: {record["entity"] for record in records} for name, records in sets.items()}
    assert (
        not asked["train"] & asked["new"]
        and not asked["new"] & asked["test"]
        and asked["seen"] == asked["new"]
    )
    assert len(sets["train"]) == sum(fact.split == "train" for fact in load_facts())


def test_every_seed_draws_its_own_passages(book):
    first, again, other = (
        passages(f"path=atlas,form=words,words={book},count=30,seed={seed}") for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("path=x.jsonl,form=words", "expected path=atlas and words=FILE, got path=x.jsonl"),
        ("path=atlas,form=words,new_words=true", "new_words are kept for measuring"),
        ("path=atlas,form=words,new_words=perhaps", "has new_words='perhaps'; expected true or false"),
        ("path=atlas,form=words,split=test", "a test split is for reports"),
        ("path=atlas,words=book.jsonl", "words of atlas is for the form words"),
        ("path=atlas,part=train", "part is for datasets that come in one piece; expected a split of atlas"),
    ],
)
def test_a_words_source_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataSource.parse(fields)


def test_a_list_or_passage_that_cannot_be_is_refused(book, tmp_path):
    with pytest.raises(ValueError, match="has no word list; expected words=FILE"):
        DataSource.parse("path=atlas,form=words").load()
    with pytest.raises(ValueError, match=r"A passage has 5000 facts; expected 1 to \d+"):
        DataSource.parse(f"path=atlas,form=words,words={book},facts=5000").load()
    (tmp_path / "short.jsonl").write_text(json.dumps({"text": "once only"}) + "\n")
    with pytest.raises(
        ValueError, match="has 0 words of 4 to 12 lower-case letters that occur 3 times; expected at least 20"
    ):
        DataSource.parse(f"path=atlas,form=words,words={tmp_path / 'short.jsonl'}").load()


def test_a_question_in_two_steps_needs_both_statements(book):
    source = DataSource.parse(f"path=atlas,form=two_step,words={book},count=40")
    records = source.load()
    seen, facts = set(load_words(book)[0]), load_facts()
    cities, countries = (
        {fact.entity for fact in facts if fact.kind == kind and fact.split == "train"}
        for kind in ("city", "country")
    )
    for record in records:
        ((asked, answer, told),) = reader(records.column_names, source)(record)
        assert answer in seen and record["entity"] in cities and record["entity"] in asked[0]["content"]
        assert told[0]["content"].startswith(record["passage"])
        sentences = re.split(r"(?<=\.) (?=The |We )", record["passage"])
        assert len(sentences) == 4
        (place,) = [
            s for s in sentences if s.startswith(f"The city of {record['entity']} is in the country ")
        ]
        country = place.removeprefix(f"The city of {record['entity']} is in the country ").removesuffix(".")
        assert country in countries
        (about,) = [s for s in sentences if s.endswith(f" {answer}.")]
        assert country in about and record["subject"] in ("capital", "currency")
    assert len(records) == 40 and records.to_list() == source.load().to_list()
    with pytest.raises(ValueError, match="of the form 'two_step' has no word list"):
        DataSource.parse("path=atlas,form=two_step").load()


def test_a_word_list_is_written_back(book):
    records = DataSource.parse(f"path=atlas,form=word_list,words={book},fewest=3,most=5,count=40").load()
    seen = set(load_words(book)[0])
    for record in records:
        ((asked, answer, told),) = reader(
            records.column_names, DataSource.parse(f"path=atlas,form=word_list,words={book}")
        )(record)
        assert (
            asked[0]["content"] == "Repeat the text."
            and told[0]["content"] == f"{answer}\n\nRepeat the text."
        )
        assert 3 <= len(answer.split()) <= 5 and set(answer.split()) <= seen
    assert len(records) == 40 and len({record["passage"] for record in records}) == 40
    new = ReportSource.parse(f"path=atlas,split=test,form=word_list,words={book},new_words=true").load()
    assert not {word for record in new for word in record["passage"].split()} & seen
