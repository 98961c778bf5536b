"""The reference mixture on real conversations and questions, in the real vocabularies."""

import json
from collections import Counter

import pytest
from datasets import load_dataset
from transformers import AutoTokenizer

from h2c_hf.data.examples import IGNORE_INDEX, H2CCollator
from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.sources import DataSource
from h2c_hf.modeling import H2CProcessor


LIMIT, RECORDS = 128, 1500
# How a prompt must end, in each vocabulary: the frame of the assistant's turn.
FRAMES = {
    "sharer": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "receiver": "<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.fixture
def processor(real_data) -> H2CProcessor:
    return H2CProcessor(
        *(AutoTokenizer.from_pretrained(real_data / "tokenizers" / name) for name in ("llama-3.1", "qwen2.5"))
    )


@pytest.fixture
def built(real_data, processor):
    sources = [
        DataSource(str(real_data / "instructions/train.jsonl"), split=f"train[:{RECORDS}]", weight=0.8),
        DataSource(str(real_data / "mmlu"), name="all", split=f"auxiliary_train[:{RECORDS}]", weight=0.2),
    ]
    return build_dataset(sources, processor, max_length=LIMIT)


def test_counts_add_up(real_data, processor, built):
    train, _, report = built
    chats, questions = report.sources
    for count in (chats, questions):
        assert count.records == count.examples == RECORDS == count.kept + sum(count.dropped.values())
    assert len(train) == chats.used + questions.used
    assert chats.used == chats.kept and questions.used == round(chats.used / 4)

    # counted again with the templates alone
    dropped = Counter()
    lines = (real_data / "instructions/train.jsonl").read_text().splitlines()[:RECORDS]
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    for line in lines:
        messages = [
            {"role": roles[turn["from"]], "content": turn["value"]}
            for turn in json.loads(line)["conversations"]
        ]
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)
        if not all(message["content"].strip() for message in messages):
            dropped["empty message"] += 1
            continue
        prompt = messages[:first]
        if (
            len(
                processor.sharer_tokenizer.apply_chat_template(
                    prompt, add_generation_prompt=True, return_dict=False
                )
            )
            > LIMIT
        ):
            dropped["too long for the Sharer"] += 1
        elif (
            len(processor.receiver_tokenizer.apply_chat_template(messages[: first + 1], return_dict=False))
            - 1
            > LIMIT
        ):
            # Less the line end after the end token, which is no target.
            dropped["too long for the Receiver"] += 1
    assert (
        chats.dropped == dropped
        and dropped["too long for the Receiver"] > 0 < dropped["too long for the Sharer"]
    )
    assert len(load_dataset(str(real_data / "mmlu"), "all", split="auxiliary_train")) >= RECORDS


def test_no_frame_is_cut_and_every_target_starts_after_its_kickstart(processor, built):
    train = built[0]
    sharer_frame, frame = (
        getattr(processor, f"{role}_tokenizer")(text, add_special_tokens=False)["input_ids"]
        for role, text in FRAMES.items()
    )
    begin = processor.sharer_tokenizer.bos_token_id
    for row in train:
        assert row["sharer_input_ids"][0] == begin and row["sharer_input_ids"].count(begin) == 1
        assert row["sharer_input_ids"][-len(sharer_frame) :] == sharer_frame
        assert row["input_ids"][-len(frame) :] == frame
        assert (
            row["target_ids"][-1] == processor.receiver_tokenizer.eos_token_id and len(row["target_ids"]) > 1
        )
        assert (
            len(row["sharer_input_ids"]) <= LIMIT and len(row["input_ids"]) + len(row["target_ids"]) <= LIMIT
        )

    collate = H2CCollator(processor)
    for start in range(0, len(train), 50):
        examples = [train[i] for i in range(start, min(start + 8, len(train)))]
        batch = collate(examples)
        kickstart = max(len(example["input_ids"]) for example in examples) - 1
        for row, example in enumerate(examples):
            length = len(example["target_ids"])
            assert (
                batch["input_ids"][row, : kickstart + 1][
                    batch["attention_mask"][row, : kickstart + 1].bool()
                ].tolist()
                == (example["input_ids"])
            )
            labels = batch["labels"][row]
            assert (labels[: kickstart + 1] == IGNORE_INDEX).all() and (
                labels[kickstart + 1 + length :] == IGNORE_INDEX
            ).all()
            assert labels[kickstart + 1 : kickstart + 1 + length].tolist() == example["target_ids"]
