import json
import math

import pytest
import torch

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.data.examples import encode_example
from h2c_hf.evaluation.perplexity import load_exchanges, perplexity
from h2c_hf.prompts import open_answer, open_prompt, user_turn


EXCHANGES = [
    (user_turn(open_prompt(question)), open_answer(question))
    for question in atlas_questions("validation")[:5]
]
LONGEST = {"receiver": 400, "sharer": 400}


@torch.no_grad()
def plain(name: str, model, processor) -> float:
    """One exchange at a time, by transformers' own losses."""
    nll = tokens = 0
    for messages, answer in EXCHANGES:
        if name == "text_to_text":
            ids = processor.apply_chat_template(messages)["sharer_input_ids"]
            hint = processor.sharer_tokenizer.decode(
                model.sharer.generate(input_ids=ids, max_new_tokens=48, do_sample=False)[0, ids.shape[1] :],
                skip_special_tokens=True,
            )
            messages = user_turn(f"{messages[0]['content']}\nHint: {hint}")
        example = encode_example(processor, messages, answer)
        ids = torch.tensor([example["input_ids"] + example["target_ids"]])
        labels = ids.clone()
        labels[:, : len(example["input_ids"])] = -100
        if name == "h2c":
            loss = model(
                ids, labels=labels, sharer_input_ids=torch.tensor([example["sharer_input_ids"]])
            ).loss
        else:
            loss = model.receiver(input_ids=ids, labels=labels).loss
        nll, tokens = nll + loss.item() * len(example["target_ids"]), tokens + len(example["target_ids"])
    return math.exp(nll / tokens)


def test_perplexity_is_that_of_one_answer_at_a_time(atlas):
    rows, counts = perplexity(
        *atlas, EXCHANGES, ["receiver", "text_to_text", "h2c", "zeros", "sharer"], LONGEST, batch_size=3
    )
    assert counts == {"exchanges": 5, "asked": 5, "refused": 0}
    assert set(rows) == {"receiver", "text_to_text", "h2c", "zeros"}  # the Sharer has other tokens
    for name in ("receiver", "text_to_text", "h2c"):
        assert rows[name]["perplexity"] == pytest.approx(plain(name, *atlas), rel=1e-3)
        assert rows[name]["low"] <= rows[name]["perplexity"] <= rows[name]["high"]


def test_what_is_too_long_is_counted(atlas):
    long = [*EXCHANGES, (user_turn("Which? " * 400), "B")]
    rows, counts = perplexity(*atlas, long, ["receiver", "h2c"], LONGEST, batch_size=3)
    assert counts == {"exchanges": 6, "asked": 5, "refused": 1} and rows["h2c"]["n"] == 5
    with pytest.raises(ValueError, match="None of 1 conversations fits"):
        perplexity(*atlas, long[-1:], ["receiver", "h2c"], LONGEST)


def test_real_instructions_are_read(real_data, tmp_path):
    exchanges, unusable = load_exchanges(str(real_data / "instructions" / "train.jsonl"), None, "train", 50)
    assert len(exchanges) + unusable == 50 and len(exchanges) > 40
    assert all(messages[-1]["role"] == "user" and answer for messages, answer in exchanges)
    rows = [
        {"messages": [*user_turn("Why?"), {"role": "assistant", "content": "So."}]},
        {"messages": user_turn("Alone?")},
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_exchanges(str(path), None, "train") == ([(user_turn("Why?"), "So.")], 1)
