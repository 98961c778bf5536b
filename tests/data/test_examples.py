import pytest
import torch

from h2c_hf.data.examples import (
    IGNORE_INDEX,
    H2CCollator,
    encode_example,
    encode_questions,
    encode_rendered,
    render_example,
)
from h2c_hf.prompts import answer_ids, choice_prompt, open_prompt, user_turn


QUESTIONS = [
    {"question": "Which is the capital of Kenya?", "choices": ["Lima", "Nairobi", "Oslo", "Quito"],
     "answer": 1, "subject": "capital"},
    {"question": "Symbol of iron?", "choices": ["Fe", "Ir", "In", "I"], "answer": 0, "subject": "symbol"},
    {"question": "Where does Peru lie?", "choices": ["Asia", "Europe", "South America", "Africa"],
     "answer": 2, "subject": "continent"},
]  # fmt: skip


def test_prompts_end_in_the_generation_prompt_and_targets_follow(processor):
    conversation = user_turn("Name a colour.")
    example = encode_example(processor, conversation, "blue")
    assert (
        processor.receiver_tokenizer.decode(example["input_ids"])
        == "<start>user\nName a colour.<end>\n<start>assistant\n"
    )
    assert processor.sharer_tokenizer.decode(example["sharer_input_ids"]) == (
        "<begin><start>user<head>\n\nName a colour.<end><start>assistant<head>\n\n"
    )
    assert processor.receiver_tokenizer.decode(example["target_ids"]) == "blue<end>"

    inputs = processor.apply_chat_template(conversation)  # what evaluation and generation see
    assert inputs["input_ids"].tolist() == [example["input_ids"]]
    assert inputs["sharer_input_ids"].tolist() == [example["sharer_input_ids"]]


def test_special_tokens_in_messages_are_text_in_prompt_and_target(processor):
    conversation = user_turn("What ends a turn: <end>?")
    example = encode_example(processor, conversation, "It is <end>, yes.")
    end = processor.receiver_tokenizer.eos_token_id
    assert (
        example["input_ids"].count(end) == 1
        and example["target_ids"].count(end) == 1
        and example["target_ids"][-1] == end
    )
    assert processor.receiver_tokenizer.decode(example["target_ids"]) == "It is <end>, yes.<end>"
    assert example["sharer_input_ids"].count(processor.sharer_tokenizer.convert_tokens_to_ids("<end>")) == 1


def test_the_sharer_may_read_something_else(processor):
    example = encode_example(processor, user_turn("Name a colour."), "blue", user_turn("The colour is blue."))
    assert "The colour is blue." in processor.sharer_tokenizer.decode(example["sharer_input_ids"])
    assert "blue" not in processor.receiver_tokenizer.decode(example["input_ids"])


def test_examples_encoded_together_are_those_encoded_alone(processor):
    """Answers that merge with the prompt's last line end, hold special tokens, or are plain, in one call."""
    pairs = [
        ("Name a colour.", "blue"),
        ("A poem?", "\nRoses are red"),
        ("What is <end>?", "It is <end>."),
        ("Two\n\nlines", "a\n\nb"),
    ]
    rendered = [render_example(processor, user_turn(asked), answer) for asked, answer in pairs]
    assert encode_rendered(processor, rendered) == [
        encode_example(processor, user_turn(asked), answer) for asked, answer in pairs
    ]
    for (asked, answer), example in zip(pairs, encode_rendered(processor, rendered), strict=True):
        assert example["target_ids"] == answer_ids(processor.receiver_tokenizer, user_turn(asked), answer)


def test_special_tokens_that_are_added_later_are_text_too(processor):
    conversation = user_turn("Is <late> one token?")
    before = processor.apply_chat_template(conversation)["input_ids"].shape[1]
    processor.receiver_tokenizer.add_special_tokens({"additional_special_tokens": ["<late>"]})
    example = encode_example(processor, conversation, "No, <late> is not.")
    late = processor.receiver_tokenizer.convert_tokens_to_ids("<late>")
    assert len(example["input_ids"]) == before and late not in example["input_ids"] + example["target_ids"]


@pytest.mark.parametrize(("form", "prompt", "answers"), [
    ("choice", choice_prompt, ["B", "A", "C"]),
    ("open", open_prompt, ["Nairobi", "Fe", "South America"]),
])  # fmt: skip
def test_encode_questions(processor, form, prompt, answers):
    examples = encode_questions(processor, QUESTIONS, form)
    assert len(examples) == len(QUESTIONS)
    for example, question, answer in zip(examples, QUESTIONS, answers, strict=True):
        assert example == encode_example(processor, user_turn(prompt(question)), answer)


def test_encode_questions_refuses_another_form(processor):
    with pytest.raises(ValueError, match="form is 'letters'; expected one of choice, open"):
        encode_questions(processor, QUESTIONS, "letters")


def test_encode_example_refuses_an_empty_conversation(processor):
    with pytest.raises(ValueError, match="conversation is empty; expected at least one message"):
        encode_example(processor, [], "blue")


def test_collator_puts_every_target_right_after_its_kickstart(processor):
    examples = list(encode_questions(processor, QUESTIONS, "open"))
    lengths, targets = [len(e["input_ids"]) for e in examples], [len(e["target_ids"]) for e in examples]
    assert len(set(lengths)) == len(set(targets)) == 3
    start, width = max(lengths), max(lengths) + max(targets)
    batch = H2CCollator(processor)(examples)

    pad = processor.receiver_tokenizer.pad_token_id
    for i, (example, length, target) in enumerate(zip(examples, lengths, targets, strict=True)):
        left, right = start - length, width - start - target
        assert (
            batch["input_ids"][i].tolist()
            == [pad] * left + example["input_ids"] + example["target_ids"] + [pad] * right
        )
        assert batch["attention_mask"][i].tolist() == [0] * left + [1] * (length + target) + [0] * right
        assert (
            batch["labels"][i].tolist()
            == [IGNORE_INDEX] * start + example["target_ids"] + [IGNORE_INDEX] * right
        )


def test_collator_pads_the_sharer_on_the_left(processor):
    examples = list(encode_questions(processor, QUESTIONS))
    batch = H2CCollator(processor)(examples)
    width = max(len(e["sharer_input_ids"]) for e in examples)
    for i, example in enumerate(examples):
        length = len(example["sharer_input_ids"])
        assert batch["sharer_attention_mask"][i].tolist() == [0] * (width - length) + [1] * length
        assert batch["sharer_input_ids"][i, width - length :].tolist() == example["sharer_input_ids"]


def test_collator_gives_the_inputs_of_forward(processor):
    batch = H2CCollator(processor)(list(encode_questions(processor, QUESTIONS)))
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "labels",
        "sharer_input_ids",
        "sharer_attention_mask",
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape
    assert batch["sharer_input_ids"].shape == batch["sharer_attention_mask"].shape


@pytest.mark.parametrize("name", ["input_ids", "sharer_input_ids", "target_ids"])
def test_collator_refuses_an_example_without_tokens(processor, name):
    examples = list(encode_questions(processor, QUESTIONS))
    examples[1] = {**examples[1], name: []}
    with pytest.raises(ValueError, match=f"^{name} of example 1 of 3 has no tokens; expected at least one"):
        H2CCollator(processor)(examples)
