import copy
import logging
import threading

import pytest
import torch
from pairs import alone, join, random_inputs, random_pair, text_pair, tiny_model
from reference import plain_beams, plain_decode, plain_logits
from transformers import (
    CompileConfig,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.cache_utils import StaticCache


SEEDS = range(5)
STEPS = 6


def generate(model, inputs, **kwargs) -> torch.Tensor:
    """The new tokens alone."""
    return model.generate(**inputs, **{"max_new_tokens": STEPS, "do_sample": False, **kwargs})[
        :, inputs["input_ids"].shape[1] :
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_batch_is_the_plain_loop_of_each_example(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    new = generate(model, inputs)
    for row, tokens in enumerate(new):
        single = alone(inputs, row)
        assert torch.equal(
            tokens, plain_decode(model, single["input_ids"], single["sharer_input_ids"], STEPS)
        )
        assert torch.equal(tokens, generate(model, single)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_shut_gates_generate_what_the_receiver_generates(seed):
    model, inputs = random_pair(seed, "rewrite"), random_inputs(seed)
    torch.nn.init.constant_(model.bridge.gate, -torch.inf)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": STEPS, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), model.receiver.generate(**receiver, **options))


@pytest.mark.parametrize("seed", SEEDS)
def test_seeded_sampling_is_the_plain_loop(seed):
    model, inputs = random_pair(seed), alone(random_inputs(seed), 0)

    def sample(logits):
        logits = logits / 1.5
        logits = logits.masked_fill(logits < logits.topk(20).values[-1], -torch.inf)
        return torch.multinomial(logits.softmax(-1)[None], 1)[0, 0]

    torch.manual_seed(seed)
    expected = plain_decode(model, inputs["input_ids"], inputs["sharer_input_ids"], STEPS, sample)
    torch.manual_seed(seed)
    assert torch.equal(generate(model, inputs, do_sample=True, temperature=1.5, top_k=20)[0], expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_beams_are_the_plain_beam_search_of_each_example(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    batch = len(inputs["input_ids"])
    outputs = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, num_beams=3, num_return_sequences=2, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    sequences = outputs.sequences.view(batch, 2, -1)[:, :, inputs["input_ids"].shape[1] :]
    scores = outputs.sequences_scores.view(batch, 2)
    for row in range(batch):
        single = alone(inputs, row)
        best = plain_beams(model, single["input_ids"], single["sharer_input_ids"], 4, 3)[:2]
        for tokens, score, (expected, expected_score) in zip(sequences[row], scores[row], best, strict=True):
            assert torch.equal(tokens, expected)
            assert score.item() == pytest.approx(expected_score, abs=1e-3)
    assert torch.equal(generate(model, inputs, max_new_tokens=4, num_beams=3), sequences[:, 0])


@pytest.mark.parametrize("seed", SEEDS)
def test_several_return_sequences_are_samples_of_their_own_example(seed):
    model, inputs = random_pair(seed), random_inputs(seed)
    torch.manual_seed(seed)
    outputs = model.generate(
        **inputs,
        max_new_tokens=3,
        do_sample=True,
        top_k=0,
        num_return_sequences=3,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = outputs.sequences[:, inputs["input_ids"].shape[1] :]
    logits = torch.stack(outputs.logits, 1)
    assert len(new) == 3 * len(inputs["input_ids"]) and len(new.unique(dim=0)) > 1
    for i, tokens in enumerate(new):
        single = alone(inputs, i // 3)
        expected = plain_logits(model, single["input_ids"], single["sharer_input_ids"], tokens[:-1])
        torch.testing.assert_close(logits[i], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_assistant_model_changes_nothing_but_the_speed(seed):
    model, inputs = random_pair(seed), alone(random_inputs(seed), 0)
    expected = generate(model, inputs, max_new_tokens=12)
    # The Receiver alone as its own assistant guesses well where the bridge changes little, a stranger guesses
    # badly.
    for assistant in (copy.deepcopy(model.receiver), tiny_model("llama", 99, num_hidden_layers=1)):
        assert torch.equal(generate(model, inputs, max_new_tokens=12, assistant_model=assistant), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_prompt_lookup_changes_nothing_but_the_speed(seed):
    model, inputs = random_pair(seed), alone(random_inputs(seed), 0)
    expected = generate(model, inputs, max_new_tokens=12)
    # A prompt that holds the answer already, so that something is looked up.
    inputs = {**inputs, "input_ids": torch.cat([expected, inputs["input_ids"]], 1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = generate(model, inputs, max_new_tokens=12)
    assert torch.equal(generate(model, inputs, max_new_tokens=12, prompt_lookup_num_tokens=3), expected)
    plain = plain_decode(model, inputs["input_ids"], inputs["sharer_input_ids"], 12)
    assert torch.equal(expected[0], plain)
    model.generation_config.prompt_lookup_num_tokens = 3
    assert torch.equal(generate(model, inputs, max_new_tokens=12), expected)


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 2}, {"do_sample": True, "top_k": 5}])
def test_the_streamed_text_is_the_returned_text(options):
    processor, model = text_pair()
    inputs = processor.apply_chat_template([{"role": "user", "content": "Where is it?"}])
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60
    )
    returned = {}

    def run():
        torch.manual_seed(0)
        returned["ids"] = model.generate(
            **inputs, max_new_tokens=20, streamer=streamer, **{"do_sample": False, **options}
        )

    thread = threading.Thread(target=run)
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    text = processor.batch_decode(
        returned["ids"][:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )[0]
    assert streamed == text and text


def test_two_threads_generate_with_an_assistant_at_once():
    model = random_pair(0)
    stock = model.receiver.prepare_inputs_for_generation
    prompts = [alone(random_inputs(seed), 0) for seed in range(4)]
    expected = [generate(model, inputs, max_new_tokens=20) for inputs in prompts]
    got = [None] * len(prompts)

    def run(i):
        got[i] = generate(model, prompts[i], max_new_tokens=20, prompt_lookup_num_tokens=2)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert model.receiver.prepare_inputs_for_generation == stock, "the Receiver itself must stay as it was"


class Only(LogitsProcessor):
    """Leaves one token."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([self.token]), 0.0)


def test_takes_what_generate_takes():
    model, inputs = random_pair(0), random_inputs(0)
    length = inputs["input_ids"].shape[1]
    expected = generate(model, inputs)
    assert torch.equal(generate(model, inputs, max_new_tokens=None, max_length=length + STEPS), expected)
    assert torch.equal(
        model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=STEPS))[:, length:],
        expected,
    )
    assert torch.equal(generate(model, inputs, prefill_chunk_size=1), expected)
    assert torch.equal(generate(model, inputs, use_cache=True), expected)
    stopped = generate(model, inputs, stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(length + 2)]))
    assert torch.equal(stopped, expected[:, :2])
    assert generate(model, inputs, logits_processor=[Only(7)]).eq(7).all()
    assert generate(model, inputs, prefix_allowed_tokens_fn=lambda batch, ids: [5]).eq(5).all()
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert torch.equal(
        model.generate(inputs["input_ids"], **others, max_new_tokens=STEPS)[:, length:], expected
    )
    assert torch.equal(
        model.generate(inputs=inputs["input_ids"], **others, max_new_tokens=STEPS)[:, length:], expected
    )

    outputs = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_scores=True,
        output_hidden_states=True,
    )
    assert torch.equal(outputs.sequences[:, length:], expected)
    assert len(outputs.scores) == len(outputs.hidden_states) == STEPS
    assert outputs.past_key_values.get_seq_length() == length + STEPS - 1


def test_an_end_token_ends_the_text():
    model, inputs = random_pair(0), random_inputs(0)
    expected = generate(model, inputs)
    end = expected[0, 2].item()
    ended = generate(model, inputs, eos_token_id=end, pad_token_id=0)
    stop = expected[0].tolist().index(end)
    assert (
        ended[0, : stop + 1].tolist() == expected[0, : stop + 1].tolist() and ended[0, stop + 1 :].eq(0).all()
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}])
def test_from_a_cache_that_is_bridged_already(options):
    model, inputs = random_pair(0), random_inputs(0)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    cache = model.bridged_cache(**inputs)
    assert torch.equal(
        generate(model, receiver, past_key_values=cache, **options), generate(model, inputs, **options)
    )


def test_from_hidden_states():
    model, inputs = random_pair(0), random_inputs(0)
    states = model.read(inputs["sharer_input_ids"], inputs["sharer_attention_mask"])
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "sharer_attention_mask")}
    assert torch.equal(generate(model, given, sharer_hidden_states=states), generate(model, inputs))


def test_the_generation_config_is_the_models_own():
    sharer, receiver = tiny_model("llama", 1), tiny_model("llama", 2)
    receiver.generation_config.max_new_tokens = 3
    model, inputs = join(sharer, receiver), random_inputs(0)
    length = inputs["input_ids"].shape[1]
    assert model.generation_config is not receiver.generation_config
    assert model.generate(**inputs).shape[1] == length + 3
    model.generation_config.max_new_tokens = 5
    assert model.generate(**inputs).shape[1] == length + 5
    assert receiver.generation_config.max_new_tokens == 3
    model.generation_config.num_beams = 2
    model.generation_config.num_return_sequences = 2
    assert len(model.generate(**inputs)) == 2 * len(inputs["input_ids"])
    assert len(model.generate(**inputs, num_beams=1, num_return_sequences=1)) == len(inputs["input_ids"])
    receiver.generation_config.num_return_sequences = 3
    # The rest as the model's own has it.
    given = model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=2))
    assert given.shape == (2 * len(inputs["input_ids"]), length + 2)


def test_generating_leaves_no_gradient_and_no_training_mode_behind():
    model, inputs = random_pair(0).train(), random_inputs(0)
    outputs = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True, output_logits=True)
    assert not outputs.logits[0].requires_grad
    assert model.bridge.training


def test_use_cache_false_is_refused_and_that_of_a_training_config_overruled():
    model, inputs = random_pair(0), random_inputs(0)
    expected = generate(model, inputs)
    with pytest.raises(ValueError, match="use_cache is False; expected True"):
        generate(model, inputs, use_cache=False)
    model.generation_config.use_cache = False
    assert torch.equal(generate(model, inputs), expected)


def test_generate_with_arguments_is_no_deprecated_use(caplog):
    model, inputs = random_pair(0), random_inputs(0)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        generate(model, inputs, num_beams=2)
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "deprecated" in record.getMessage()]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 3}])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_static_cache_answers_as_a_dynamic_one(seed, options):
    model, inputs = random_pair(seed), random_inputs(seed)
    options = {
        "return_dict_in_generate": True,
        "output_logits": True,
        "max_new_tokens": 5,
        "do_sample": False,
        **options,
    }
    dynamic, static = (
        model.generate(**inputs, **options, cache_implementation=name) for name in ("dynamic", "static")
    )
    assert torch.equal(dynamic.sequences, static.sequences)
    torch.testing.assert_close(torch.stack(dynamic.logits), torch.stack(static.logits), atol=1e-4, rtol=1e-5)
    assert type(static.past_key_values) is StaticCache and static.past_key_values.get_max_length() == 128


def test_the_kind_of_cache_as_a_config_says_it():
    model, inputs = random_pair(0), random_inputs(0)
    given = GenerationConfig(max_new_tokens=2, cache_implementation="static", return_dict_in_generate=True)
    assert type(model.generate(**inputs, generation_config=given).past_key_values) is StaticCache
    assert given.cache_implementation == "static"
    model.generation_config.cache_implementation = "static"
    output = model.generate(**inputs, max_length=200, return_dict_in_generate=True)
    assert type(output.past_key_values) is StaticCache and output.past_key_values.get_max_length() == 256
    with model.disable_bridge():
        alone = model.generate(**inputs, max_new_tokens=STEPS)
    receiver = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(alone, model.receiver.generate(**receiver, max_new_tokens=STEPS, do_sample=False))
    for refused in ("offloaded", "quantized", "offloaded_static"):
        with pytest.raises(
            ValueError, match=f"cache_implementation is '{refused}'; expected 'dynamic' or 'static'"
        ):
            model.generate(**inputs, cache_implementation=refused)


def test_what_generate_compiled_serves_the_next_call():
    model, inputs = random_pair(0), random_inputs(0)
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiled._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compiled}
    expected = generate(model, inputs)
    assert torch.equal(generate(model, inputs, **options), expected)
    first = model.receiver._compiled_call
    assert torch.equal(generate(model, inputs, **options), expected)
    assert model.receiver._compiled_call is first
