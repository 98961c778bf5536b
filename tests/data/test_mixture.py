import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from datasets import Dataset

from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.sources import DataSource


IDS = ["input_ids", "sharer_input_ids", "target_ids"]


@pytest.fixture
def chats(tmp_path):
    """Writes chats of random lengths as a dataset; returns its path and the records."""

    def write(name: str, count: int, seed: int = 0, longest: int = 120) -> tuple[str, list[dict]]:
        rng = random.Random(seed)
        text = lambda: "".join(rng.choices("abc ", k=rng.randint(1, longest))).strip() or "a"  # noqa: E731
        records = [
            {
                "messages": [
                    {"role": role, "content": f"{name} {i} {text()}"}
                    for role in ("user", "assistant") * rng.randint(1, 3)
                ]
            }
            for i in range(count)
        ]
        path = tmp_path / f"{name}.parquet"
        Dataset.from_list(records).to_parquet(path)
        return str(path), records

    return write


def plain_lengths(processor, conversation: list[dict], answer: str) -> tuple[int, int]:
    """Tokens of (the Sharer's prompt, the Receiver's prompt and target through its end token)."""
    sharer = processor.sharer_tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=False
    )
    whole = [*conversation, {"role": "assistant", "content": answer}]
    receiver = processor.receiver_tokenizer.apply_chat_template(whole, return_dict=False)
    last = len(receiver) - receiver[::-1].index(processor.receiver_tokenizer.eos_token_id)
    return len(sharer), last


@pytest.mark.parametrize("turns", ["first", "all"])
def test_the_length_filter_counts_both_models_tokens_and_adds_up(processor, chats, turns):
    path, records = chats("a", 60)
    limit = 140
    expected, dropped = 0, Counter()
    for record in records:
        messages = record["messages"]
        for i in range(1, len(messages) if turns == "all" else 2, 2):
            sharer, receiver = plain_lengths(processor, messages[:i], messages[i]["content"])
            if sharer > limit:
                dropped["too long for the Sharer"] += 1
            elif receiver > limit:
                dropped["too long for the Receiver"] += 1
            else:
                expected += 1
    assert len(dropped) == 2  # each limit was met
    train, held_out, report = build_dataset([DataSource(path, turns=turns)], processor, max_length=limit)
    (count,) = report.sources
    assert (
        train.column_names == IDS and len(train) == expected == count.kept == count.used and held_out is None
    )
    assert (
        count.dropped == dropped
        and count.examples == count.kept + sum(dropped.values())
        and count.records == 60
    )
    assert f"dropped, too long for the Sharer: {dropped['too long for the Sharer']}" in str(report)


def test_weights_are_exact_and_the_scarcer_source_is_used_whole(processor, chats):
    sources = [DataSource(chats("a", 100)[0], weight=0.8), DataSource(chats("b", 10)[0], weight=0.2)]
    train, _, report = build_dataset(sources, processor)
    assert [count.used for count in report.sources] == [40, 10]
    texts = [processor.receiver_tokenizer.decode(row["input_ids"]) for row in train]
    assert len(set(texts)) == 50 and sum("user\nb " in text for text in texts) == 10
    again, other = (build_dataset(sources, processor, seed=seed)[0] for seed in (0, 1))
    assert train.to_list() == again.to_list() != other.to_list()
    with pytest.raises(
        ValueError, match=r"Some sources have a weight and others have none: got \[0.8, None\]"
    ):
        build_dataset([sources[0], DataSource(sources[1].path)], processor)


def test_no_conversation_is_on_both_sides_of_a_held_out_split(processor, chats):
    path, records = chats("a", 80)
    first = [f"user\n{record['messages'][0]['content']}<" for record in records]
    kept, held_out, report = build_dataset([DataSource(path, turns="all")], processor, hold_out=0.3)
    sides = []
    for side in (kept, held_out):
        texts = [processor.receiver_tokenizer.decode(row["input_ids"]) for row in side]
        sides.append({next(i for i, prompt in enumerate(first) if prompt in text) for text in texts})
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 80 and 10 <= len(sides[1]) <= 38
    (count,) = report.sources
    assert (count.kept, count.held_out, count.used) == (len(kept) + len(held_out), len(held_out), len(kept))
    # the same question twice is one group
    Dataset.from_list(records + records).to_parquet(path)
    kept, held_out, _ = build_dataset([DataSource(path)], processor, hold_out=0.3)
    assert not {tuple(row["input_ids"]) for row in kept} & {tuple(row["input_ids"]) for row in held_out}


def test_nothing_left_is_told(processor, chats):
    with pytest.raises(
        ValueError,
        match=r"Nothing of .*a.parquet train is left: 5 records, dropped {'too long for the Sharer': 5}",
    ):
        build_dataset([DataSource(chats("a", 5)[0])], processor, max_length=5)


def test_a_stream_gives_the_same_examples_and_counts_as_it_is_read(processor, chats):
    path, _ = chats("a", 40)
    fixed, _, whole = build_dataset([DataSource(path)], processor, max_length=140)
    stream, _, report = build_dataset([DataSource(path)], processor, max_length=140, streaming=True)
    assert report.sources[0].records == 0 and "streamed" in str(report)
    assert list(stream) == fixed.to_list()
    assert report.sources[0] == whole.sources[0]
    report.reset()
    assert report.sources[0].records == 0
    list(stream)
    assert report.sources[0] == whole.sources[0]


def test_a_stream_mixes_by_weight(processor, chats):
    sources = [
        DataSource(chats("a", 400, longest=9)[0], weight=3),
        DataSource(chats("b", 400, longest=9)[0], weight=1),
    ]
    stream, _, _ = build_dataset(sources, processor, streaming=True)
    rows = [processor.receiver_tokenizer.decode(row["input_ids"]) for row in stream]
    share = sum("user\na " in text for text in rows[:300]) / 300
    assert 0.65 < share < 0.85


def test_encoded_data_is_found_in_the_cache_again(processor, chats):
    source = DataSource(chats("a", 20)[0])
    first, _, _ = build_dataset([source], processor)
    # Changes what pickling it gives.
    processor.receiver_tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    second, _, _ = build_dataset([replace(source, weight=2.0)], processor)
    files = [{file["filename"] for file in data.cache_files} for data in (first, second)]
    assert files[0] and files[0] < files[1]  # the weights drew an order, of the same encoded file
    processor.receiver_tokenizer.chat_template = "x" + processor.receiver_tokenizer.chat_template
    assert {file["filename"] for file in build_dataset([source], processor)[0].cache_files} != files[0]


def test_processes_give_what_one_gives(processor, chats):
    source = DataSource(chats("a", 30)[0])
    assert (
        build_dataset([source], processor, num_proc=2)[0].to_list()
        == build_dataset([source], processor)[0].to_list()
    )


def test_a_template_that_refuses_a_turn_is_counted(processor, tmp_path):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    processor.receiver_tokenizer.chat_template = refusing + processor.receiver_tokenizer.chat_template
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
    Dataset.from_list(
        [{"messages": turns}, {"messages": [{"role": "system", "content": "x"}, *turns]}]
    ).to_parquet(tmp_path / "x.parquet")
    _, _, report = build_dataset([DataSource(str(tmp_path / "x.parquet"))], processor)
    assert report.sources[0].kept == 1 and report.sources[0].dropped == {"refused by a chat template": 1}


def test_a_passage_is_encoded_for_the_sharer_alone(processor):
    """The Receiver's side is the open form's; the Sharer's has the passage before it, by the template."""
    source = DataSource("atlas", split="validation", form="hand_off", facts=2)
    encoded, _, report = build_dataset([source], processor)
    assert len(encoded) == report.sources[0].kept == len(source.load())
    for row, example in list(zip(source.load(), encoded, strict=True))[::60]:
        asked = processor.apply_chat_template([{"role": "user", "content": row["question"]}])
        told = processor.apply_chat_template(
            [{"role": "user", "content": f"{row['passage']}\n\n{row['question']}"}]
        )
        assert example["input_ids"] == asked["input_ids"][0].tolist()
        assert example["sharer_input_ids"] == told["sharer_input_ids"][0].tolist()
        assert (
            processor.receiver_tokenizer.decode(example["target_ids"], skip_special_tokens=True).strip()
            == row["answers"][0]
        )


def test_a_message_shares_the_receivers_window(processor, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a" * n, "completion": "b"}) + "\n" for n in (3, 40)))
    source = DataSource(str(path))
    kept, _, _ = build_dataset([source], processor)
    most = max(sum(map(len, row.values())) for row in kept)
    kept, _, report = build_dataset([source], processor, together=most - 1)
    assert len(kept) == 1
    dropped = {"too long for the Receiver with the Sharer's message": 1}
    assert report.sources[0].dropped == dropped
    assert json.loads(json.dumps(report.to_dict()))["sources"][0]["dropped"] == dropped
