"""The text-generation pipeline over both models, against processor, `generate` and tokenizer."""

import re
import threading
from pathlib import Path

import pytest
import torch
from pairs import join, tiny_model, tiny_processor
from transformers import GenerationConfig, TextIteratorStreamer, pipeline
from transformers.utils import logging

from h2c_hf.modeling import H2CProcessor, H2CTextGenerationPipeline


NAMES = ("Bensekrane", "Oslo", "Rio", "Santiago de Compostela")
OPTIONS = {"max_new_tokens": 6, "do_sample": False}


def ask(name: str) -> list[dict]:
    return [{"role": "user", "content": f"In which country is the city of {name}?"}]


def answers(pipe, inputs, **options) -> list[str]:
    """The new text of each row, without the pipeline."""
    tokens = pipe.model.generate(**inputs, **{**OPTIONS, **options})
    return pipe.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def pipe(atlas) -> H2CTextGenerationPipeline:
    model, processor = atlas
    return H2CTextGenerationPipeline(model=model, processor=processor)


def test_a_chat_gets_its_answer(pipe):
    chat = ask("Bensekrane")
    (expected,) = answers(pipe, pipe.processor.apply_chat_template(chat))
    assert expected.strip() == "Algeria"
    assert pipe(chat, **OPTIONS) == [{"generated_text": [*chat, {"role": "assistant", "content": expected}]}]
    assert pipe(chat, return_full_text=False, **OPTIONS) == [{"generated_text": expected}]
    (tokens,) = pipe(chat, return_tensors=True, **OPTIONS)
    inputs = pipe.processor.apply_chat_template(chat)
    assert tokens["generated_token_ids"] == pipe.model.generate(**inputs, **OPTIONS)[0].tolist()


def test_loaded_objects_become_a_pipeline_as_the_docs_say(pipe):
    """transformers looks for a custom pipeline only if the model is a repo."""
    page = (Path(__file__).parents[2] / "docs" / "using.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(pipeline\([^`]*pipeline_class=[^`]*)`", page)
    names = {"pipeline": pipeline, "H2CTextGenerationPipeline": H2CTextGenerationPipeline}
    made = eval(line, {**names, "model": pipe.model, "processor": pipe.processor})
    assert made(ask("Oslo"), **OPTIONS) == pipe(ask("Oslo"), **OPTIONS)


def test_a_batch_answers_as_each_chat_alone(pipe):
    chats = [ask(name) for name in NAMES]
    alone = [pipe(chat, **OPTIONS) for chat in chats]
    batches = []
    hook = pipe.model.sharer.base_model.layers[0].register_forward_hook(
        lambda module, args, output: batches.append(len(args[0]))
    )
    assert pipe(chats, batch_size=3, **OPTIONS) == alone
    hook.remove()
    assert batches == [3, 1]
    assert pipe(chats, **OPTIONS) == alone
    assert list(pipe((chat for chat in chats), batch_size=2, **OPTIONS)) == alone


def test_plain_text(pipe):
    texts = ["The river that", "It"]
    alone = [answers(pipe, pipe.processor(text))[0] for text in texts]
    assert pipe(texts[0], **OPTIONS) == [{"generated_text": texts[0] + alone[0]}]
    assert pipe(texts, batch_size=2, return_full_text=False, **OPTIONS) == [
        [{"generated_text": text}] for text in alone
    ]
    (prefixed,) = pipe(texts[1], prefix="The ", return_tensors=True, **OPTIONS)
    assert (
        prefixed["generated_token_ids"]
        == pipe.model.generate(**pipe.processor("The It"), **OPTIONS)[0].tolist()
    )


def test_the_streamed_text_is_the_returned_text(pipe):
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    returned = []
    thread = threading.Thread(
        target=lambda: returned.extend(
            pipe(ask("Oslo"), streamer=streamer, return_full_text=False, **{**OPTIONS, "max_new_tokens": 12})
        )
    )
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed and streamed == returned[0]["generated_text"]


def test_what_generate_takes(pipe):
    chat, new = ask("Rio"), {"return_full_text": False}
    inputs = pipe.processor.apply_chat_template(chat)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    several = pipe([chat, ask("Oslo")], batch_size=2, **new, **beams, **OPTIONS)
    assert [row["generated_text"] for row in several[0]] == answers(pipe, inputs, **beams)
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=pipe.tokenizer.pad_token_id)
    assert (
        pipe(chat, generation_config=config, **new)[0]["generated_text"]
        == answers(pipe, inputs, max_new_tokens=3)[0]
    )
    sampling = {"do_sample": True, "temperature": 2.0, "top_k": 50, "max_new_tokens": 6}
    torch.manual_seed(0)
    expected = answers(pipe, inputs, **sampling)
    torch.manual_seed(0)
    assert pipe(chat, **new, **sampling)[0]["generated_text"] == expected[0] != answers(pipe, inputs)[0]
    (longer,) = answers(pipe, inputs, min_new_tokens=6)
    letter = longer.strip()[1]
    (stopped,) = pipe(chat, stop_sequence=letter, min_new_tokens=6, **new, **OPTIONS)
    assert longer.startswith(stopped["generated_text"]) and letter in stopped["generated_text"] != longer


def test_an_answer_that_was_begun_is_gone_on_with(pipe):
    begun = [*ask("Bensekrane"), {"role": "assistant", "content": "Al"}]
    inputs = pipe.processor.apply_chat_template(
        begun, add_generation_prompt=False, continue_final_message=True
    )
    (expected,) = answers(pipe, inputs)
    assert pipe(begun, **OPTIONS) == [
        {"generated_text": [*begun[:-1], {"role": "assistant", "content": "Al" + expected}]}
    ]


def test_a_hand_off_in_which_the_sharer_reads_what_the_receiver_does_not_see(pipe):
    chats = [{"conversation": ask("it"), "sharer_conversation": ask(name)} for name in NAMES]
    expected = [
        answers(pipe, pipe.processor.apply_chat_template(chat["conversation"], chat["sharer_conversation"]))[
            0
        ]
        for chat in chats
    ]
    assert len(set(expected)) > 1
    assert pipe(chats[0], **OPTIONS)[0]["generated_text"] == [
        *ask("it"),
        {"role": "assistant", "content": expected[0]},
    ]
    batched = pipe(chats, batch_size=4, return_full_text=False, **OPTIONS)
    assert [text for (row,) in batched for text in row.values()] == expected


def test_special_tokens_written_in_a_message_stay_text(pipe):
    attack = ask(f"x{pipe.tokenizer.eos_token}")
    (expected,) = answers(pipe, pipe.processor.apply_chat_template(attack))
    assert pipe(attack, return_full_text=False, **OPTIONS) == [{"generated_text": expected}]


def test_the_model_is_not_called_unsupported(atlas, caplog):
    model, processor = atlas
    logging.enable_propagation()
    try:
        H2CTextGenerationPipeline(model=model, processor=processor)
    finally:
        logging.disable_propagation()
    assert "not supported" not in caplog.text


def test_a_receiver_without_a_pad_token_takes_batches():
    tokenizers = tiny_processor()
    processor = H2CProcessor(tokenizers.receiver_tokenizer, tokenizers.sharer_tokenizer)
    assert processor.receiver_tokenizer.pad_token_id is None
    sizes = [len(tokenizer) for tokenizer in (processor.sharer_tokenizer, processor.receiver_tokenizer)]
    model = join(tiny_model("llama", 1, vocab_size=sizes[0]), tiny_model("llama", 2, vocab_size=sizes[1]))
    pipe = H2CTextGenerationPipeline(model=model, processor=processor)
    chats = [ask(name) for name in ("x", "a longer name")]
    alone = [answers(pipe, pipe.processor.apply_chat_template(chat)) for chat in chats]
    batched = pipe(chats, batch_size=2, return_full_text=False, **OPTIONS)
    assert [[row["generated_text"] for row in rows] for rows in batched] == alone


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (ask("x"), {"truncation": True}, "truncation=True, .*; expected neither"),
        (ask("x"), {"handle_long_generation": "hole"}, "handle_long_generation='hole'; expected neither"),
        ({"text": "x"}, {}, "an input with text; expected conversation and sharer_conversation"),
    ],
)
def test_what_is_refused(pipe, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(inputs, **options, **OPTIONS)
