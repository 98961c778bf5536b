"""lm-eval's model on the Atlas pair that ships: against our own runner, lm-eval's own HFLM, and plain loops
of one request at a time."""

import random
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval_requests import QUESTIONS, chat, requests, text_of
from transformers import AutoTokenizer

from h2c_hf.evaluation.lm_eval_model import ASKED, H2CLM
from h2c_hf.evaluation.lm_eval_prompts import continuation_ids, encode, newest, pack
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.modeling import H2CBridgeModel, H2CForCausalLM
from h2c_hf.prompts import choice_prompt, letter_ids, user_turn
from h2c_hf.wording import ANSWER_INSTRUCTION, REASONING_INSTRUCTION


# The same questions, two ways


@pytest.mark.parametrize("method", ["receiver", "sharer", "h2c"])
def test_lm_eval_predicts_what_our_runner_predicts(atlas, tasks, method):
    lm = H2CLM(atlas, method, batch_size=64)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    out = simple_evaluate(
        lm, tasks=["atlas_choice"], task_manager=manager, apply_chat_template=True, bootstrap_iters=0
    )
    samples = sorted(out["samples"]["atlas_choice"], key=lambda sample: sample["doc_id"])
    scores = [[score for [[score, _]] in sample["resps"]] for sample in samples]
    ours = evaluate(*atlas, QUESTIONS, [method])[method]
    assert [row.index(max(row)) for row in scores] == ours["predictions"]
    assert out["results"]["atlas_choice"]["acc,none"] == pytest.approx(ours["correct"].mean())
    assert out["config"]["method"] == method and out["config"]["shortened_prompts"] == {
        "receiver": 0,
        "sharer": 0,
    }


# loglikelihood


# What the Sharer is asked in each variant of text-to-text.
INSTRUCTIONS = {
    "text_to_text": "Explain your answer in one sentence.",
    "text_to_text_answer": ANSWER_INSTRUCTION,
    "text_to_text_reasoning": REASONING_INSTRUCTION,
}


ADAPTER = Path(__file__).parents[2] / "hub_configs" / "atlas" / "adapter"


def with_adapter(method: str) -> dict:
    return {"adapter": str(ADAPTER)} if method == "adapter" else {}


def reference(atlas, method: str, context: str, conversation: bool, continuation: str, before: str):
    """(log-likelihood, greedy) for one request and the context before it: no batch, no shared cache."""
    model, processor = atlas

    def ids_of(role, text):
        tokenizer = getattr(processor, f"{role}_tokenizer")
        if conversation:
            text = tokenizer.apply_chat_template(user_turn(text), tokenize=False, add_generation_prompt=True)
        return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])

    role = "sharer" if method == "sharer" else "receiver"
    if method in INSTRUCTIONS:
        asked = processor.sharer_tokenizer.apply_chat_template(
            user_turn(f"{context}\n{INSTRUCTIONS[method]}"),
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        written = model.sharer.generate(
            input_ids=asked, max_new_tokens=METHODS[method].max_tokens, do_sample=False
        )[0, asked.shape[1] :]
        context = f"Hint: {processor.sharer_tokenizer.decode(written, skip_special_tokens=True)}\n{context}"
    prompt = ids_of(role, context)
    # Atlas's templates write a space before what the assistant says.
    said = f" {continuation}" if conversation else continuation
    target = torch.tensor(
        [getattr(processor, f"{role}_tokenizer")(said, add_special_tokens=False)["input_ids"]]
    )
    whole = torch.cat([prompt, target], 1)
    if role == "sharer" or method in ("receiver", *INSTRUCTIONS):
        logits = getattr(model, role)(input_ids=whole).logits[:, prompt.shape[1] - 1 : -1]
    else:
        states = model.read(ids_of("sharer", before if method == "shuffled" else context))
        if method in ("zeros", "adapter"):
            states = [torch.zeros_like(state) for state in states]
        labels = torch.cat([torch.full_like(prompt, -100), target], 1)
        if method == "adapter":
            model = H2CForCausalLM.from_pair(
                model.sharer, model.receiver, H2CBridgeModel.from_pretrained(ADAPTER).eval()
            )
        logits = model(whole, labels=labels, sharer_hidden_states=tuple(states)).logits[:, :-1]
    scores = logits.log_softmax(-1).gather(-1, target[..., None])
    return scores.sum().item(), bool((logits.argmax(-1) == target).all())


@pytest.mark.parametrize("conversation", [True, False], ids=["chat", "text"])
@pytest.mark.parametrize("method", [name for name in ASKED if name != "noise"])
@torch.no_grad()
def test_loglikelihood_is_that_of_one_request_at_a_time(atlas, method, conversation):
    questions = QUESTIONS[: 2 if method in INSTRUCTIONS else 5]  # hints take long to write
    # With its choices, the Sharer has something to say of a question; without, one letter is as likely as
    # another.
    with_choices = conversation or method in INSTRUCTIONS
    contexts = [choice_prompt(question) if with_choices else question["question"] for question in questions]
    continuations = [["A", "B"], ["C"], ["D", "B", "a longer one"], ["A"], ["C", "not this"]][
        : len(questions)
    ]
    if not conversation:
        continuations = [[f" {text}" for text in texts] for texts in continuations]
    arguments = [(row, text) for row, texts in enumerate(continuations) for text in texts]
    random.Random(0).shuffle(arguments)
    order = list(dict.fromkeys(row for row, _ in arguments))  # of the contexts, as they are met
    before = {row: contexts[order[index - 1]] for index, row in enumerate(order)}

    lm = H2CLM(atlas, method, batch_size=3, **with_adapter(method))
    asked = [(chat(lm, contexts[row]) if conversation else contexts[row], text) for row, text in arguments]
    batched = lm.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    single = H2CLM(atlas, method, batch_size=1, **with_adapter(method)).loglikelihood(
        requests("loglikelihood", asked), disable_tqdm=True
    )
    expected = [
        reference(atlas, method, contexts[row], conversation, text, before[row]) for row, text in arguments
    ]
    assert (
        [greedy for _, greedy in batched]
        == [greedy for _, greedy in single]
        == [greedy for _, greedy in expected]
    )
    for results in (batched, single):
        assert [score for score, _ in results] == pytest.approx(
            [score for score, _ in expected], abs=1e-4, rel=1e-5
        )
    if conversation and method in ("h2c", "sharer"):
        assert any(greedy for _, greedy in batched)


@pytest.mark.parametrize("role", ["receiver", "sharer"])
def test_a_model_alone_scores_as_in_lm_evals_own_class(atlas, role):
    model, processor = atlas
    theirs = HFLM(
        getattr(model, role),
        tokenizer=getattr(processor, f"{role}_tokenizer"),
        batch_size=4,
        add_bos_token=False,
    )
    ours = H2CLM(atlas, role, batch_size=4)
    arguments = [
        (question["question"] + " ", choice) for question in QUESTIONS[:4] for choice in question["choices"]
    ]
    expected = theirs.loglikelihood(requests("loglikelihood", arguments), disable_tqdm=True)
    results = ours.loglikelihood(requests("loglikelihood", arguments), disable_tqdm=True)
    assert [score for score, _ in results] == pytest.approx(
        [score for score, _ in expected], abs=1e-4, rel=1e-5
    )
    assert [greedy for _, greedy in results] == [greedy for _, greedy in expected]


def test_every_method_answers_every_kind_of_request(atlas):
    for method in ASKED:
        lm = H2CLM(atlas, method, batch_size=4, **with_adapter(method))
        prompts = [chat(lm, choice_prompt(question)) for question in QUESTIONS[:3]] + [""]
        scores = lm.loglikelihood(
            requests("loglikelihood", [(prompt, "B") for prompt in prompts]), disable_tqdm=True
        )
        assert all(score < 0 for score, _ in scores) and len(scores) == 4
        assert all(
            total < 0
            for total in lm.loglikelihood_rolling(
                requests("", [(text_of(3),), (text_of(2),)]), disable_tqdm=True
            )
        )
        texts = lm.generate_until(
            requests("", [(prompt, {"until": ["<"], "max_gen_toks": 3}) for prompt in prompts]),
            disable_tqdm=True,
        )
        assert all(isinstance(text, str) for text in texts) and len(texts) == 4


def test_a_real_chat_template_is_continued_by_its_own_tokens(real_data):
    """Llama 3's two line ends after the assistant's header are of the frame: "A" follows, not " A"."""
    context = pack(user_turn(choice_prompt(QUESTIONS[0])))
    for name in ("llama-3.1", "qwen2.5"):
        tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
        expected = letter_ids(tokenizer, user_turn(choice_prompt(QUESTIONS[0])))
        assert [continuation_ids(tokenizer, context, letter) for letter in "ABCD"] == [
            [token] for token in expected
        ]
        frame = tokenizer.apply_chat_template(
            user_turn(choice_prompt(QUESTIONS[0])), add_generation_prompt=True, return_dict=True
        )
        assert encode(tokenizer, context) == frame["input_ids"]
        begun = pack(
            [*user_turn("Yes or no?"), {"role": "assistant", "content": "I say:"}],
            add_generation_prompt=False,
        )
        assert tokenizer.decode(encode(tokenizer, begun)).endswith("I say:")


# loglikelihood_rolling


def plain_rolling(atlas, method: str, text: str, window: int) -> float:
    model, processor = atlas
    role = "sharer" if method == "sharer" else "receiver"
    tokenizer, lm = getattr(processor, f"{role}_tokenizer"), getattr(model, role)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    size, done, total = window - 1, 0, 0.0
    while done < len(ids):
        # The first window holds no context; each other one at least half a window of it, and is full.
        end = min(len(ids), size if not done else done + size - size // 2 + 1)
        context, target = ids[max(0, end - size - 1) : done] if done else [], ids[done:end]
        said = tokenizer.decode(context)
        least = 2 if role == "receiver" else 1
        prompt = torch.tensor([[begin] * (least - len(context)) + context])
        whole = torch.cat([prompt, torch.tensor([target])], 1)
        if method == "h2c":
            sharer = processor.sharer_tokenizer
            read = sharer(said, add_special_tokens=False)["input_ids"] or [sharer.bos_token_id]
            labels = whole.clone()
            labels[:, : prompt.shape[1]] = -100
            logits = model(whole, sharer_input_ids=torch.tensor([read]), labels=labels).logits[:, :-1]
        else:
            logits = lm(input_ids=whole[:, :-1]).logits[:, prompt.shape[1] - 1 :]
        total += logits.log_softmax(-1).gather(-1, torch.tensor([target])[..., None]).sum().item()
        done = end
    return total


@pytest.mark.parametrize("method", ["receiver", "sharer", "h2c"])
@torch.no_grad()
def test_rolling_scores_every_token_once(atlas, method):
    texts = [text_of(3), text_of(110, seed=1), text_of(60, seed=2), ""]
    lm = H2CLM(atlas, method, batch_size=4)
    lengths = [len(lm.tokenizer(text)["input_ids"]) for text in texts]
    assert max(lengths) > 2 * 512 and min(lengths[:3]) < 512
    totals = lm.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )
    assert totals == pytest.approx(
        [plain_rolling(atlas, method, text, 512) for text in texts], rel=1e-5, abs=1e-3
    )


def test_the_sharer_rolls_over_a_short_text_as_in_lm_evals_own_class(atlas):
    model, processor = atlas
    theirs = HFLM(model.sharer, tokenizer=processor.sharer_tokenizer, batch_size=1, add_bos_token=False)
    asked = requests("loglikelihood_rolling", [(text_of(4),), (text_of(9),)])
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert H2CLM(atlas, "sharer").loglikelihood_rolling(asked, disable_tqdm=True) == pytest.approx(
        expected, rel=1e-5
    )


# generate_until


@pytest.mark.parametrize("method", ["receiver", "sharer", "h2c"])
@torch.no_grad()
def test_text_is_that_of_generate_with_the_stop_strings(atlas, method):
    model, processor = atlas
    lm = H2CLM(atlas, method, batch_size=4)
    contents = [question["question"] for question in QUESTIONS[:9]]
    kinds = [
        {"until": ["a", "e"], "max_gen_toks": 12},
        {"until": [], "max_gen_toks": 12},
        {"until": "o", "max_gen_toks": 5},
    ]
    asked = [(chat(lm, text), kinds[index % 3]) for index, text in enumerate(contents)]
    texts = lm.generate_until(requests("generate_until", asked), disable_tqdm=True)
    expected = []
    for text, (_, kind) in zip(contents, asked, strict=True):
        inputs = processor.apply_chat_template(user_turn(text))
        stops = [kind["until"]] if isinstance(kind["until"], str) else kind["until"]
        options = {"max_new_tokens": kind["max_gen_toks"], "do_sample": False}
        if stops:
            options |= {"stop_strings": stops, "tokenizer": lm.tokenizer}
        if method == "h2c":
            prompt, ids = inputs["input_ids"], model.generate(**inputs, **options)
        else:
            prompt = inputs["sharer_input_ids" if method == "sharer" else "input_ids"]
            ids = getattr(model, method).generate(input_ids=prompt, **options)
        written = lm.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
        for stop in stops:
            written = written.split(stop)[0]
        expected.append(written)
    assert texts == expected
    assert len(set(texts)) > 3


def test_writing_stops_at_a_stop_string(atlas):
    lm, steps = H2CLM(atlas, "receiver"), []
    prompt, kind = chat(lm, QUESTIONS[0]["question"]), {"max_gen_toks": 30, "min_new_tokens": 30}
    hook = lm.model.receiver.lm_head.register_forward_hook(lambda *_: steps.append(1))
    try:
        [text] = lm.generate_until(requests("", [(prompt, {"until": [], **kind})]), disable_tqdm=True)
        whole = len(steps)
        stop = text[4:7]
        assert lm.generate_until(requests("", [(prompt, {"until": [stop], **kind})]), disable_tqdm=True) == [
            text.split(stop)[0]
        ]
    finally:
        hook.remove()
    assert whole == 30 and len(steps) - whole < 10


# Prompts that are too long


def test_a_long_conversation_keeps_its_frame_and_its_newest_content(atlas):
    lm = H2CLM(atlas, "h2c")
    shots = [
        message
        for _ in range(8)
        for message in (*user_turn(text_of(12)), {"role": "assistant", "content": "B"})
    ]
    question = choice_prompt(QUESTIONS[0])
    long = lm.apply_chat_template([{"role": "system", "content": "Answer."}, *shots, *user_turn(question)])
    lm.loglikelihood(requests("loglikelihood", [(long, "A"), (chat(lm, question), "A")]), disable_tqdm=True)
    assert lm.shortened == {"receiver": 1, "sharer": 1}

    for tokenizer in lm.tokenizers.values():
        whole = encode(tokenizer, long)
        assert newest(tokenizer, long, len(whole)) == (whole, False)
        for limit in (len(whole) - 1, 500, 200, 60):
            ids, cut = newest(tokenizer, long, limit)
            text = tokenizer.decode(ids)
            assert cut and len(ids) <= limit
            assert "Answer.<" in text[:60]
            assert tokenizer.decode(whole).endswith(text[text.index("Answer.<") + 60 :])
            if limit >= 200:
                assert question in text
        with pytest.raises(
            ValueError, match=f"has {len(whole)} tokens and there is room for 5; expected room for its frame"
        ):
            newest(tokenizer, long, 5)


def test_a_long_text_keeps_as_much_of_its_end_as_fits(atlas):
    text = text_of(8)
    for tokenizer in H2CLM(atlas).tokenizers.values():
        length = len(tokenizer(text)["input_ids"])
        for limit in random.Random(0).sample(range(1, length), 5):
            ids, cut = newest(tokenizer, text, limit)
            assert cut and len(ids) <= limit and text.endswith(tokenizer.decode(ids))
            kept = len(tokenizer.decode(ids))
            assert ids == tokenizer(text[len(text) - kept :])["input_ids"]
            assert len(tokenizer(text[len(text) - kept - 1 :])["input_ids"]) > limit


def test_a_long_prompt_is_answered_as_its_newest_part(atlas):
    lm = H2CLM(atlas, "sharer")
    kind = {"until": [], "max_gen_toks": 100}
    long = text_of(200)
    tail = lm.tokenizer.decode(newest(lm.tokenizer, long, 512 - 100)[0])
    assert long.endswith(tail)
    texts = lm.generate_until(requests("generate_until", [(long, kind), (tail, kind)]), disable_tqdm=True)
    assert texts[0] == texts[1] and lm.shortened["sharer"] == 1
