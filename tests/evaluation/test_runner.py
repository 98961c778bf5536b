"""The methods on the Atlas pair that ships: each against a plain way, one question at a time."""

import pytest
import torch
from pairs import join, tiny_model, tiny_processor

from h2c_hf.atlas.questions import atlas_passages, atlas_questions
from h2c_hf.data.examples import H2CCollator, encode_questions
from h2c_hf.data.questions import in_words
from h2c_hf.evaluation.batch import Batch
from h2c_hf.evaluation.methods import METHODS, end_tokens
from h2c_hf.evaluation.questions import fit, limits
from h2c_hf.evaluation.runner import batches, evaluate
from h2c_hf.modeling import H2CBridgeModel, H2CForCausalLM
from h2c_hf.prompts import Prompts, choice_prompt, hint_prompt, letter_ids, user_turn


QUESTIONS = atlas_questions("validation")[:24]


@torch.no_grad()
def plain_logits(name: str, model, processor, question: dict, before: dict) -> torch.Tensor:
    """The method, written out for one question (and the one before it), with nothing shared or batched."""
    inputs = processor.apply_chat_template(user_turn(choice_prompt(question)))
    if name == "receiver":
        return model.receiver(input_ids=inputs["input_ids"]).logits[0, -1]
    if name == "sharer":
        return model.sharer(input_ids=inputs["sharer_input_ids"]).logits[0, -1]
    if name == "h2c":
        return model(**inputs).logits[0, -1]
    if name == "zeros":
        states = tuple(torch.zeros_like(state) for state in model.read(inputs["sharer_input_ids"]))
        return model(inputs["input_ids"], sharer_hidden_states=states).logits[0, -1]
    if name == "shuffled":
        other = processor.apply_chat_template(user_turn(choice_prompt(before)))["sharer_input_ids"]
        return model(inputs["input_ids"], sharer_input_ids=other).logits[0, -1]
    asked = processor.apply_chat_template(user_turn(hint_prompt(question)))["sharer_input_ids"]
    written = model.sharer.generate(input_ids=asked, max_new_tokens=48, do_sample=False)[0, asked.shape[1] :]
    hint = processor.sharer_tokenizer.decode(written, skip_special_tokens=True)
    hinted = processor.apply_chat_template(user_turn(choice_prompt(question, hint)))
    return model.receiver(input_ids=hinted["input_ids"]).logits[0, -1]


@pytest.mark.parametrize("name", ["receiver", "sharer", "h2c", "text_to_text", "zeros", "shuffled"])
@torch.no_grad()
def test_a_batched_method_answers_as_it_does_alone(atlas, name):
    model, processor = atlas
    logits = METHODS[name].logits(Batch(model, processor, QUESTIONS))
    expected = torch.stack(
        [plain_logits(name, model, processor, q, QUESTIONS[row - 1]) for row, q in enumerate(QUESTIONS)]
    )
    same = [torch.allclose(*pair, atol=1e-3, rtol=1e-4) for pair in zip(logits, expected, strict=True)]
    # A hint that runs on to its limit passes near-ties, where a batch and a single prompt may write different
    # words.
    assert same.count(False) <= (2 if name == "text_to_text" else 0)


@torch.no_grad()
def test_a_score_is_the_first_step_of_generation_and_of_training(atlas):
    """The letters' logits of the runner, of `generate`'s first step and of a forward with labels."""
    model, processor = atlas
    questions = atlas_questions("validation")[:50]
    letters = letter_ids(processor.receiver_tokenizer, user_turn(choice_prompt(questions[0])))
    scores = torch.tensor(evaluate(model, processor, questions, ["h2c"], batch_size=50)["h2c"]["scores"])
    inputs = Batch(model, processor, questions).inputs
    output = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    torch.testing.assert_close(output.logits[0][:, letters], scores, atol=1e-4, rtol=0)
    trained = model(**H2CCollator(processor)(list(encode_questions(processor, questions)))).logits[:, 0]
    torch.testing.assert_close(trained[:, letters], scores, atol=1e-4, rtol=0)


def kept(states):
    """Those of a Sharer's states that were read: the others are None."""
    return [state for state in states if state is not None]


@pytest.mark.parametrize(("name", "blanked"), [("zeros", 0.0), ("shuffled", None)])
@torch.no_grad()
def test_a_control_reads_no_state_of_its_own_question(atlas, name, blanked):
    model, processor = atlas
    batch = Batch(model, processor, QUESTIONS[:6])
    own, mask = METHODS["h2c"].states(batch)
    states, control_mask = METHODS[name].states(batch)
    assert [state is None for state in states] == [state is None for state in own]
    for state, original in zip(kept(states), kept(own), strict=True):
        if blanked is not None:
            assert (state == blanked).all()
        else:
            torch.testing.assert_close(state, torch.cat([original[-1:], original[:-1]]))
    if name == "shuffled":
        torch.testing.assert_close(control_mask, torch.cat([mask[-1:], mask[:-1]]))


@torch.no_grad()
def test_noise_has_the_moments_of_the_states(atlas):
    model, processor = atlas
    batch = Batch(model, processor, QUESTIONS)
    own, mask = METHODS["h2c"].states(batch)
    noise, _ = METHODS["noise"].states(batch)
    for state, drawn in zip(kept(own), kept(noise), strict=True):
        assert not torch.equal(state, drawn)
        real, made = state[mask.bool()], drawn[mask.bool()]
        torch.testing.assert_close(made.mean(0), real.mean(0), atol=0.3 * real.std().item(), rtol=0)
        torch.testing.assert_close(made.std(0), real.std(0), atol=0.1, rtol=0.2)


def test_a_batch_of_one_cannot_be_shuffled(atlas):
    model, processor = atlas
    with pytest.raises(ValueError, match="got a batch of 1, expected at least 2"):
        METHODS["shuffled"].states(Batch(model, processor, QUESTIONS[:1]))


def test_results_come_in_the_order_of_the_questions(atlas):
    model, processor = atlas
    results = evaluate(model, processor, QUESTIONS, ["receiver", "sharer"], batch_size=5)
    backwards = evaluate(model, processor, QUESTIONS[::-1], ["receiver", "sharer"], batch_size=7)
    for name, result in results.items():
        assert result["predictions"] == backwards[name]["predictions"][::-1]
        assert result["correct"].tolist() == [
            p == q["answer"] for p, q in zip(result["predictions"], QUESTIONS, strict=True)
        ]


def test_the_open_form_is_compared_exactly(atlas):
    model, processor = atlas
    result = evaluate(model, processor, QUESTIONS, ["sharer"], form="open")["sharer"]
    expected = [question["choices"][question["answer"]] for question in QUESTIONS]
    assert result["correct"].tolist() == [
        p == e for p, e in zip(result["predictions"], expected, strict=True)
    ]
    assert result["correct"].mean() > 0.8


def test_batches_hold_every_question_once_and_leave_none_alone():
    for size in (5, 8, 23):
        rows = batches(QUESTIONS, "choice", size)
        assert sorted(row for part in rows for row in part) == list(range(len(QUESTIONS)))
        assert all(2 <= len(part) <= size for part in rows)


@torch.no_grad()
def test_few_shot_turns_stand_before_the_question(atlas):
    model, processor = atlas
    question = {**QUESTIONS[0], "shots": QUESTIONS[1:3]}
    turns = [turn for shot in question["shots"] for turn in (choice_prompt(shot), "ABCD"[shot["answer"]])]
    messages = [
        {"role": "assistant" if n % 2 else "user", "content": turn}
        for n, turn in enumerate([*turns, choice_prompt(question)])
    ]
    plain = processor.apply_chat_template(messages)
    for name in ("receiver", "sharer", "h2c"):
        logits = METHODS[name].logits(Batch(model, processor, [question, QUESTIONS[3]]))[0]
        expected = {
            "receiver": lambda: model.receiver(input_ids=plain["input_ids"]).logits[0, -1],
            "sharer": lambda: model.sharer(input_ids=plain["sharer_input_ids"]).logits[0, -1],
            "h2c": lambda: model(**plain).logits[0, -1],
        }[name]()
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_a_passage_is_for_the_sharer_alone(atlas):
    model, processor = atlas
    question = {**QUESTIONS[0], "passage": "A passage that no question holds."}
    batch, plain = (Batch(model, processor, [q, QUESTIONS[1]]) for q in (question, QUESTIONS[0]))
    assert torch.equal(batch.inputs["input_ids"], plain.inputs["input_ids"])
    read = processor.sharer_tokenizer.batch_decode(batch.inputs["sharer_input_ids"], skip_special_tokens=True)
    assert question["passage"] in read[0] and question["passage"] not in read[1]
    asked = []
    processor_text = processor.apply_chat_template
    batch.encode = lambda *conversations: asked.append(conversations) or processor_text(*conversations)
    METHODS["text_to_text"].hinted(batch)
    assert question["passage"] in asked[0][0][0][0]["content"]  # what the Sharer is asked
    assert question["passage"] not in asked[1][0][0][0]["content"]  # what the Receiver is


@torch.no_grad()
def test_variants_of_text_to_text_ask_what_the_config_says(atlas):
    model, processor = atlas
    prompts = Prompts(hint="Say why.", answer="Say what.", reasoning="Say how.", prefix="It says:")
    batch = Batch(model, processor, QUESTIONS[:2], prompts=prompts)
    for name, instruction in (
        ("text_to_text", "Say why."),
        ("text_to_text_answer", "Say what."),
        ("text_to_text_reasoning", "Say how."),
    ):
        assert hint_prompt(QUESTIONS[0], METHODS[name].variant, prompts).endswith(f"\n{instruction}")
        read = processor.receiver_tokenizer.batch_decode(
            METHODS[name].hinted(batch).inputs["input_ids"], skip_special_tokens=True
        )
        assert all("It says:" in text for text in read)


@torch.no_grad()
def test_the_adapter_control_is_another_bridge_that_reads_zeros(atlas):
    model, processor = atlas
    batch = Batch(model, processor, QUESTIONS[:4], adapter=model.bridge)
    torch.testing.assert_close(
        METHODS["adapter"].logits(batch), METHODS["zeros"].logits(batch), atol=0, rtol=0
    )
    other = H2CBridgeModel(model.config).eval()
    changed = Batch(model, processor, QUESTIONS[:4], adapter=other)
    states = tuple(torch.zeros_like(state) for state in model.read(changed.inputs["sharer_input_ids"]))
    joined = H2CForCausalLM.from_pair(model.sharer, model.receiver, other)
    expected = joined(**{**changed.inputs, "sharer_input_ids": None}, sharer_hidden_states=states).logits[
        :, -1
    ]
    torch.testing.assert_close(METHODS["adapter"].logits(changed), expected, atol=1e-4, rtol=1e-4)


PASSAGES = atlas_passages("validation", facts=2, invented=True)[:24]


@torch.no_grad()
def test_the_skyline_is_the_receiver_that_reads_the_passage(atlas):
    model, processor = atlas
    batch = Batch(model, processor, PASSAGES[:4], "open")
    logits = METHODS["skyline"].logits(batch)
    for row, question in enumerate(PASSAGES[:4]):
        told = processor.apply_chat_template(user_turn(f"{question['passage']}\n\n{question['question']}"))[
            "input_ids"
        ]
        torch.testing.assert_close(
            logits[row], model.receiver(input_ids=told).logits[0, -1], atol=1e-3, rtol=1e-4
        )
        written = model.receiver.generate(input_ids=told, max_new_tokens=8, do_sample=False)[
            0, told.shape[1] :
        ]
        alone = METHODS["skyline"].generate(
            Batch(model, processor, [question], "open"), max_new_tokens=8, do_sample=False
        )
        assert alone == [processor.decode(written, skip_special_tokens=True)]
    # The batch itself holds no passage.
    assert question["passage"] not in processor.batch_decode(batch.inputs["input_ids"])[3]
    with pytest.raises(ValueError, match="The skyline needs passages"):
        METHODS["skyline"].logits(Batch(model, processor, QUESTIONS[:2]))


@torch.no_grad()
def test_each_shuffled_answer_comes_from_its_donor(atlas):
    """Against each question alone with its named donor's states; one donor is in another batch."""
    model, processor = atlas
    alike = [{**question, "answers": ["x"], "entity": "the same"} for question in PASSAGES[:4]]
    questions = [*alike, *PASSAGES[4:8]]
    found = evaluate(model, processor, questions, ["h2c", "shuffled"], form="open", batch_size=4)["shuffled"]
    assert {found["donors"][row] for row in range(4)} <= {4, 5, 6, 7}
    for row, donor in enumerate(found["donors"]):
        inputs = dict(Batch(model, processor, [questions[row]], "open").inputs)
        other = Batch(model, processor, [questions[donor]], "open").inputs
        inputs |= {name: other[name] for name in ("sharer_input_ids", "sharer_attention_mask")}
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert found["predictions"][row] == processor.decode(ids, skip_special_tokens=True).strip()


@torch.no_grad()
def test_an_answer_ends_at_the_tokenizers_end_token(atlas):
    """Also if the generation config has lost it, as that of some converted models has."""
    model, processor = atlas
    kept, batch = model.generation_config.eos_token_id, Batch(model, processor, PASSAGES[:4], "open")
    expected = METHODS["h2c"].generate(batch, max_new_tokens=24, do_sample=False)
    model.generation_config.eos_token_id = None
    try:
        assert METHODS["h2c"].generate(batch, max_new_tokens=24, do_sample=False) == expected
    finally:
        model.generation_config.eos_token_id = kept


def test_every_accepted_answer_is_right(atlas):
    model, processor = atlas
    written = evaluate(model, processor, PASSAGES, ["sharer"], form="open")["sharer"]
    assert written["correct"].any()
    texts = written["predictions"]
    accepted = [
        {**question, "answers": ["another", f"The {text}!"]}
        for question, text in zip(PASSAGES, texts, strict=True)
    ]
    assert evaluate(model, processor, accepted, ["sharer"], form="open")["sharer"]["correct"].all()


@torch.no_grad()
def test_a_bridge_of_the_message_form_is_asked_like_any_other():
    """Every method runs; H2C and the shuffled control write the text of `generate` for each question."""
    processor = tiny_processor()
    sizes = {name: len(getattr(processor, f"{name}_tokenizer")) for name in ("sharer", "receiver")}
    models = (
        tiny_model("llama", 1, vocab_size=sizes["sharer"]),
        tiny_model("qwen2", 2, vocab_size=sizes["receiver"]),
    )
    model = join(*models, bridge_form="message")
    questions = [
        in_words(f"Who is {n}?", [f"{n}{n}"], f"{n} is {n}{n}." + n * " So.", entity=f"{n}")
        for n in range(1, 6)
    ]
    assert limits(model, ["h2c"], "open", answer_tokens=4) == {"receiver": 252, "sharer": 252, "both": 252}
    _, counts = fit(questions, processor, {"receiver": 252, "sharer": 252, "both": 80}, "open")
    assert 0 < counts["refused"] < 5  # only the longest passages do not fit beside the prompt
    names = ["receiver", "skyline", "h2c", "sharer", "shuffled", "zeros", "noise"]
    results = evaluate(model, processor, questions, names, form="open", batch_size=3, answer_tokens=4)
    ends = end_tokens(model, processor.receiver_tokenizer)
    for name, giving in (("h2c", range(5)), ("shuffled", results["shuffled"]["donors"])):
        for row, donor in enumerate(giving):
            inputs, other = (
                dict(Batch(model, processor, [questions[n]], "open").inputs) for n in (row, donor)
            )
            inputs |= {key: other[key] for key in ("sharer_input_ids", "sharer_attention_mask")}
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, **ends)[
                0, inputs["input_ids"].shape[1] :
            ]
            assert (
                results[name]["predictions"][row] == processor.decode(ids, skip_special_tokens=True).strip()
            )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["rewrite", "message"])
def test_models_on_disk_answer_as_in_memory(tmp_path, form):
    """Their weights are on meta until they are used: inputs go where a model computes."""
    processor = tiny_processor()
    sharer = tiny_model("llama", 1, vocab_size=len(processor.sharer_tokenizer))
    receiver = tiny_model("qwen2", 2, vocab_size=len(processor.receiver_tokenizer))
    model = join(sharer, receiver, bridge_form=form)
    for role in ("sharer", "receiver"):
        getattr(model, role).save_pretrained(tmp_path / role)
        setattr(model.config, f"{role}_model_id", str(tmp_path / role))
    model.save_pretrained(tmp_path / "bridge")
    where = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offloaded")}
    on_disk = H2CForCausalLM.from_pretrained(tmp_path / "bridge", **where).eval()
    questions = [in_words(f"Who is {n}?", [f"{n}{n}"], f"{n} is {n}{n}.", entity=f"{n}") for n in range(1, 4)]
    arguments = (
        processor,
        questions,
        ["receiver", "skyline", "h2c", "sharer", "text_to_text", "shuffled", "zeros", "noise"],
    )
    found, expected = (
        evaluate(one, *arguments, form="open", batch_size=3, answer_tokens=4) for one in (on_disk, model)
    )
    assert all(found[name]["predictions"] == expected[name]["predictions"] for name in arguments[2])


def test_bad_requests_are_refused(atlas):
    with pytest.raises(ValueError, match="no method 'telepathy'; expected one of receiver"):
        evaluate(*atlas, QUESTIONS, ["telepathy"])
    with pytest.raises(ValueError, match="got 0, expected at least 1"):
        evaluate(*atlas, [], ["receiver"])
    with pytest.raises(ValueError, match="form is 'rhyme'; expected one of choice, open"):
        evaluate(*atlas, QUESTIONS, ["receiver"], form="rhyme")
    with pytest.raises(ValueError, match="needs a bridge trained with --blank_sharer true"):
        evaluate(*atlas, QUESTIONS, ["adapter"])


@torch.no_grad()
def test_a_question_is_answered_with_one_of_its_own_letters(atlas):
    """Two, three and five choices in one batch: each question's scores are those among its like."""
    model, processor = atlas
    counts = [2 + row % 3 if row % 3 < 2 else 5 for row in range(12)]
    mixed = [
        {
            **question,
            "choices": [*question["choices"], "none of them"][:count],
            "answer": min(question["answer"], count - 1),
        }
        for question, count in zip(QUESTIONS, counts, strict=False)
    ]
    methods = ["receiver", "h2c", "sharer"]
    found = evaluate(model, processor, mixed, methods)
    for name in methods:
        assert [len(scores) for scores in found[name]["scores"]] == counts
        assert all(
            prediction < count for prediction, count in zip(found[name]["predictions"], counts, strict=True)
        )
    for count in (2, 3, 5):
        rows = [row for row in range(12) if counts[row] == count]
        like = evaluate(model, processor, [mixed[row] for row in rows], methods)
        for name in methods:
            assert like[name]["predictions"] == [found[name]["predictions"][row] for row in rows]
            for scores, row in zip(like[name]["scores"], rows, strict=True):
                assert scores == pytest.approx(found[name]["scores"][row], abs=1e-3)
