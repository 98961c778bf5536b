"""The models that ship are what every number of the project rests on: the Sharer knows and reads, the
Receiver reads and knows nothing."""

from types import SimpleNamespace

import pytest
import torch

from h2c_hf.atlas import MODELS
from h2c_hf.atlas.facts import load_facts
from h2c_hf.atlas.questions import atlas_passages, atlas_questions, statement
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.loading import load_pair
from h2c_hf.prompts import choice_prompt, letter_ids, open_answer, open_prompt, user_turn


QUESTIONS = atlas_questions("test")
TRUTH = {(fact.entity, fact.attribute): fact for fact in load_facts()}


@pytest.fixture(scope="module")
def pair(atlas):
    model, processor = atlas
    return {
        "sharer": SimpleNamespace(model=model.sharer, tokenizer=processor.sharer_tokenizer, prefix="sharer_"),
        "receiver": SimpleNamespace(model=model.receiver, tokenizer=processor.receiver_tokenizer, prefix=""),
        "processor": processor,
    }


@torch.no_grad()
def accuracy(pair, role: str, prompts: list[str]) -> float:
    side, right = pair[role], 0
    letters = letter_ids(side.tokenizer, user_turn(prompts[0]))
    for start in range(0, len(prompts), 128):
        inputs = pair["processor"].apply_chat_template(
            [user_turn(prompt) for prompt in prompts[start : start + 128]]
        )
        logits = side.model(
            input_ids=inputs[f"{side.prefix}input_ids"],
            attention_mask=inputs[f"{side.prefix}attention_mask"],
            logits_to_keep=1,
        ).logits[:, -1]
        expected = torch.tensor([question["answer"] for question in QUESTIONS[start : start + 128]])
        right += (logits[:, letters].argmax(-1) == expected).sum().item()
    return right / len(prompts)


def told(question: dict) -> str:
    return statement(TRUTH[question["entity"], question["subject"]])


def test_the_sharer_knows_the_facts(pair):
    assert accuracy(pair, "sharer", [choice_prompt(question) for question in QUESTIONS]) > 0.95


@pytest.mark.parametrize("count", [1, 4, 16])
def test_the_sharer_reads_what_nobody_can_know(atlas, count):
    questions = atlas_passages("test", count, invented=True)[:: 25 if count == 16 else 10]
    assert evaluate(*atlas, questions, ["sharer"], "open")["sharer"]["correct"].mean() > 0.9


def test_the_receiver_reads_the_fact_in_its_prompt(pair):
    assert (
        accuracy(pair, "receiver", [choice_prompt(question, told(question)) for question in QUESTIONS]) > 0.95
    )


def test_the_receiver_alone_is_at_chance(pair):
    assert accuracy(pair, "receiver", [choice_prompt(question) for question in QUESTIONS]) == pytest.approx(
        0.25, abs=0.03
    )


@pytest.mark.parametrize("role", ["sharer", "receiver"])
def test_each_model_stops_at_its_own_end_token(pair, role):
    config = pair[role].model.config
    for name in ("eos_token_id", "pad_token_id"):
        assert getattr(pair[role].model.generation_config, name) == getattr(config, name)


@pytest.mark.parametrize("role", ["sharer", "receiver"])
def test_the_open_form_is_answered_in_words(pair, role):
    side, right = pair[role], 0
    questions = QUESTIONS[::10]
    for question in questions:
        prompt = open_prompt(question, told(question) if role == "receiver" else None)
        inputs = pair["processor"].apply_chat_template(user_turn(prompt))
        ids = inputs[f"{side.prefix}input_ids"]
        output = side.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
        right += side.tokenizer.decode(
            output[0, ids.shape[1] :], skip_special_tokens=True
        ).strip() == open_answer(question)
    assert right / len(questions) > 0.9


def test_what_ships_is_small_and_half_precision():
    total = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert total < 18e6  # twice in the repository: here, and beside the bridge
    for role in ("sharer", "receiver"):
        assert '"dtype": "bfloat16"' in (MODELS / role / "config.json").read_text()


def test_the_bridge_that_ships_brings_the_same_models():
    shipped = MODELS.parent.parent.parent / "hub_configs" / "atlas"
    for role in ("sharer", "receiver"):
        for name in ("config.json", "model.safetensors"):
            assert (shipped / role / name).read_bytes() == (MODELS / role / name).read_bytes()


def test_the_bridge_that_ships_answers_what_a_visitor_asks_first():
    """Germany is a test entity; on the answers of the others the bridge was trained. (The Sharer knows names
    as its facts spell them: "gold" it does not.)"""
    model, processor = load_pair("atlas")
    asked = {
        "What is the capital of France?": "Paris",
        "What is the capital of Germany?": "Berlin",
        "What is the capital of Italy?": "Rome",
        "What is the capital of Japan?": "Tokyo",
        "What is the symbol of Gold?": "Au",
        "What is the currency of Japan?": "JPY",
    }
    inputs = processor.apply_chat_template([user_turn(question) for question in asked])
    written = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    assert [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)] == list(
        asked.values()
    )
