"""Methods with drafts, on the Atlas pair that ships: each against a plain way, one question at a time."""

import json
import shutil

import pytest
import torch
from source import ATLAS_BRIDGE

from h2c_hf.atlas.questions import atlas_passages
from h2c_hf.cli import main
from h2c_hf.evaluation.batch import Batch
from h2c_hf.evaluation.methods import METHODS, end_tokens, sharer_text
from h2c_hf.evaluation.questions import limits
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.evaluation.sets import QuestionSet
from h2c_hf.loading import PLAIN
from h2c_hf.prompts import open_prompt, user_turn, with_passage
from h2c_hf.reports.schema import load_report


QUESTIONS = atlas_passages("validation", 1, invented=True)[:12]
OPTIONS = {"max_new_tokens": 6, "do_sample": False}
TOKENS = 4


def told(question: dict) -> list[dict]:
    return user_turn(with_passage(question["passage"], open_prompt(question)))


@torch.no_grad()
def plain(name: str, model, processor, question: dict) -> str:
    """The method, written out for one question."""
    inputs = processor.apply_chat_template(user_turn(open_prompt(question)), told(question))
    ends = end_tokens(model.sharer, processor.sharer_tokenizer)
    if name == "text_to_text_draft":
        start = inputs["sharer_input_ids"].shape[1]
        new = model.sharer.generate(
            inputs["sharer_input_ids"], max_new_tokens=TOKENS, do_sample=False, **ends
        )[0, start:]
        hint = processor.sharer_tokenizer.decode(new, skip_special_tokens=True)
        prompt = processor.apply_chat_template(user_turn(open_prompt(question, hint)))["input_ids"]
        ids = model.receiver.generate(prompt, **OPTIONS)[0, prompt.shape[1] :]
    else:
        ids = model.generate(**inputs, sharer_max_new_tokens=TOKENS, **OPTIONS)[
            0, inputs["input_ids"].shape[1] :
        ]
    return processor.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["h2c", "text_to_text_draft"])
def test_a_batch_with_drafts_answers_as_each_question_alone(atlas, name):
    model, processor = atlas
    texts = METHODS[name].generate(Batch(model, processor, QUESTIONS, "open", draft_tokens=TOKENS), **OPTIONS)
    expected = [plain(name, model, processor, question) for question in QUESTIONS]
    # A near-tie may fall the other way.
    assert sum(a == b for a, b in zip(texts, expected, strict=True)) >= len(QUESTIONS) - 1


def test_controls_get_the_drafts_of_their_donors(atlas):
    model, processor = atlas
    batch = Batch(model, processor, QUESTIONS, "open", draft_tokens=TOKENS)
    states, mask = METHODS["shuffled"].states(batch)
    assert torch.equal(mask, batch.draft.sharer_attention_mask.roll(1, 0))
    assert all(
        torch.equal(a, b.roll(1, 0))
        for a, b in zip(states, batch.draft.sharer_hidden_states, strict=True)
        if a is not None
    )


def test_the_generation_config_says_how_many_tokens(atlas):
    model, processor = atlas
    expected = evaluate(model, processor, QUESTIONS, ["h2c"], "open", draft_tokens=TOKENS)["h2c"][
        "predictions"
    ]
    model.generation_config.sharer_max_new_tokens = TOKENS
    try:
        assert evaluate(model, processor, QUESTIONS, ["h2c"], "open")["h2c"]["predictions"] == expected
        none = evaluate(model, processor, QUESTIONS, ["h2c"], "open", draft_tokens=0)["h2c"]["predictions"]
    finally:
        del model.generation_config.sharer_max_new_tokens
    assert none == evaluate(model, processor, QUESTIONS, ["h2c"], "open")["h2c"]["predictions"]


def test_the_rival_is_asked_in_sets_with_drafts_alone(atlas):
    source = {"name": "x", "regime": "private", "path": "atlas", "split": "test", "form": "hand_off"}
    methods = ["receiver", "text_to_text_draft", "h2c", "sharer"]
    assert QuestionSet.parse(source).methods(methods) == ["receiver", "h2c", "sharer"]
    assert QuestionSet.parse({**source, "draft_tokens": 8}).methods(methods) == methods
    with pytest.raises(ValueError, match="draft_tokens of the set 'x' is -1; expected at least 0"):
        QuestionSet.parse({**source, "draft_tokens": -1})
    model, processor = atlas
    with pytest.raises(ValueError, match="text_to_text_draft needs a draft: got draft_tokens 0"):
        METHODS["text_to_text_draft"].generate(Batch(model, processor, QUESTIONS[:2], "open"), **OPTIONS)
    windows = [limits(model, ["h2c"], "open", draft_tokens=tokens)["sharer"] for tokens in (0, 8)]
    assert windows[0] - windows[1] == 8


def test_of_a_base_model_the_first_line_is_the_answer(atlas, monkeypatch):
    model, processor = atlas
    batch = Batch(model, processor, QUESTIONS[:3], "open")
    tokenizer = processor.sharer_tokenizer
    monkeypatch.setattr(
        type(tokenizer), "batch_decode", lambda *args, **kwargs: [" Peru\n\nWhere?", "a b", "\nx\ny"]
    )
    assert sharer_text(batch, batch.inputs, max_new_tokens=1) == [" Peru\n\nWhere?", "a b", "\nx\ny"]
    monkeypatch.setattr(tokenizer, "chat_template", "{{ bos_token }}" + PLAIN)  # as it is saved
    assert sharer_text(batch, batch.inputs, max_new_tokens=1) == ["Peru", "a b", "x"]


def test_a_report_says_how_many_tokens_the_bridge_itself_drafts(tmp_path):
    bridge, config = tmp_path / "bridge", tmp_path / "evaluation.yaml"
    shutil.copytree(ATLAS_BRIDGE, bridge)
    settings = json.loads((bridge / "generation_config.json").read_text())
    (bridge / "generation_config.json").write_text(
        json.dumps({**settings, "_from_model_config": False, "sharer_max_new_tokens": 3})
    )
    config.write_text(
        f"model: {bridge}\noutput_dir: {tmp_path / 'out'}\ndata: none\ntimed_questions: 0\n"
        "methods: [receiver, text_to_text_draft, h2c, sharer, shuffled]\n"
        "sets: [{name: x, regime: private, path: atlas, split: test, form: hand_off, facts: 1, limit: 8}]\n"
    )
    assert main(["evaluate", str(config)]) == 0
    (found,) = load_report(tmp_path / "out" / "report.json")["sets"].values()
    assert found["draft_tokens"] == 3 and "text_to_text_draft" in found["methods"]
