"""What is streamed is what the methods and `generate` return; a reader that leaves, or an error, ends it."""

from itertools import pairwise

import pytest

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.evaluation.batch import Batch
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.evaluation.streaming import Writing, stream
from h2c_hf.prompts import open_prompt, user_turn


QUESTION, OTHER = atlas_questions("test")[:2]
LONG = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


def batch(atlas, form: str = "open") -> Batch:
    return Batch(*atlas, [QUESTION], form, Batch(*atlas, [OTHER], form))


@pytest.mark.parametrize("form", ["open", "choice"])
@pytest.mark.parametrize("name", ["receiver", "text_to_text", "h2c", "shuffled", "zeros", "sharer"])
def test_what_is_streamed_is_what_the_method_returns(atlas, name, form):
    texts = [answer.text for answer in stream(name, batch(atlas, form), **LONG)]
    assert texts[-1] == METHODS[name].generate(batch(atlas, form), **LONG)[0]
    pieces = sorted(set(texts), key=len)
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(pieces))
    assert len(pieces) > 3 or name == "sharer"  # which writes end tokens after its word


def test_h2c_streams_what_generate_returns(atlas):
    model, processor = atlas
    inputs = processor.apply_chat_template(user_turn(open_prompt(QUESTION)))
    output = model.generate(**inputs, **LONG)[0, inputs["input_ids"].shape[1] :]
    assert [*stream("h2c", batch(atlas), **LONG)][-1].text == processor.decode(
        output, skip_special_tokens=True
    )


def test_the_clock_starts_with_the_question_and_the_pace_needs_a_second_token(atlas):
    one, text_to_text = (
        [*stream(name, batch(atlas), max_new_tokens=count, do_sample=False)][-1]
        for name, count in (("h2c", 1), ("text_to_text", 2))
    )
    assert one.first_token > 0 and one.tokens_per_second is None and one.hint == ""
    assert text_to_text.tokens_per_second > 0
    assert QUESTION["choices"][QUESTION["answer"]] in text_to_text.hint


def test_a_reader_that_leaves_ends_the_writing(atlas):
    asked = batch(atlas)
    long = {"max_new_tokens": 300, "min_new_tokens": 300, "do_sample": False}
    writing = Writing(
        lambda streamer: METHODS["receiver"].generate(asked, streamer=streamer, **long),
        atlas[1].receiver_tokenizer,
    )
    reader = iter(writing)
    next(reader)
    reader.close()
    assert 1 <= len(writing.times) < 300


def test_an_error_reaches_the_reader(atlas):
    def refuse(streamer):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        list(Writing(refuse, atlas[1].receiver_tokenizer))
