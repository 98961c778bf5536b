"""vLLM with the connector gives the tokens of `generate`. `pytest -m serve`, after `scripts/serve_env`."""

import json
from itertools import pairwise

import pytest
import torch
from pairs import tiny_model
from servers import QUESTION, ROOT, started
from vllm_engine import ATLAS, Pair, engine, firsts

from h2c_hf.atlas.questions import atlas_passages
from h2c_hf.loading import FETCHED, load_pair, models_dir


pytestmark = [pytest.mark.serve, pytest.mark.usefixtures("vllm_environment")]
REAL_BRIDGE = ROOT / "hub_configs" / "gemma-3-270m_to_smollm2-135m"
ASYNC = pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
KINDS = [(form, asynchronous) for form in ("atlas_pair", "message_pair") for asynchronous in (True, False)]


@pytest.fixture(
    scope="module",
    params=KINDS,
    ids=lambda kind: f"{kind[0].removesuffix('_pair')}-{'async' if kind[1] else 'sync'}",
)
def running(request, tmp_path_factory):
    """A pair and an engine for it: each of the two forms, asynchronous or not."""
    form, asynchronous = request.param
    pair = request.getfixturevalue(form)
    with engine(
        tmp_path_factory.mktemp("engine"), pair, {"async": asynchronous}, block_size=32, max_num_seqs=8
    ) as vllm:
        yield pair, vllm


def test_64_questions_in_words(running, questions):
    pair, vllm = running
    inputs = [pair.inputs(one) for one in questions]
    result = vllm.run(pair.requests(inputs))
    assert firsts(result["waves"][0]) == pair.answers(inputs)
    assert result["blocks"] == 0 and result["passes"] <= 24, "requests that arrive together share a pass"


def test_block_edges(running):
    pair, vllm = running
    inputs, edges = [], (0, 1, 2, 31)
    for words in range(100):
        one = pair.inputs(f"{'Who? ' * words}{QUESTION}", f"{'Who? ' * (words % 7)}{QUESTION}")
        if pair.positions(one) % 32 in edges and one["input_ids"].shape[1] < 180:
            inputs.append(one)
    assert {pair.positions(one) % 32 for one in inputs} == set(edges)
    assert vllm.answers(*pair.requests(inputs, 40)) == pair.answers(inputs, 40)


def test_bridged_plain_and_controlled_requests_in_one_batch(running, questions):
    pair, vllm = running
    inputs = [pair.inputs(one, other) for one, other in pairwise(questions[:13])]
    wave = [pair.request(one, bridged=index % 3 != 1) for index, one in enumerate(inputs)]
    for made in wave[2::3]:
        made["params"]["control"] = "zeros"
    kinds = ("bridged", "alone", "zeros")
    assert vllm.answers(*wave) == [
        pair.answer(one, kind=kinds[index % 3]) for index, one in enumerate(inputs)
    ]


def test_n_answers_are_bridged_once(running, questions):
    pair, vllm = running
    one = pair.inputs(questions[0], questions[40])
    # vLLM refuses several greedy answers; sampling among the one best token is the same.
    several = pair.request(one, n=4, temperature=1, sampling={"top_k": 1})
    result = vllm.run([several], [pair.request(one)])
    assert result["waves"][0][0] == [pair.answer(one)] * 4 and result["passes"] == 1


def test_prefix_caching_never_mixes_requests(running, questions):
    """vLLM caches prefixes unless it is told not to. The same Receiver's prompt with another Sharer's, plain,
    bridged and plain again."""
    pair, vllm = running
    long = f"{'Who? ' * 30}{questions[0]}"
    first = pair.inputs(long, questions[0])
    other = pair.inputs(long, questions[5])
    longer = pair.inputs(f"{long} {questions[1]}")
    plain = pair.request(first, bridged=False)
    asked = (
        pair.request(first),
        plain,
        pair.request(other),
        pair.request(first),
        plain,
        pair.request(longer),
    )
    result = vllm.run(*([one] for one in asked))
    bridged, alone, others = pair.answer(first), pair.answer(first, kind="alone"), pair.answer(other)
    assert bridged != alone != others != bridged
    assert [firsts(wave)[0] for wave in result["waves"]] == [
        bridged,
        alone,
        others,
        bridged,
        alone,
        pair.answer(longer),
    ]
    prompts = (pair.positions(first), first["input_ids"].shape[1])
    assert result["hits"] >= sum((prompt - 1) // 32 * 32 for prompt in prompts), (
        "a repeated prompt hits, bridged and plain"
    )


def test_a_failed_request_fails_alone(running, questions):
    pair, vllm = running
    inputs = [pair.inputs(one) for one in questions[:4]]
    too_long, nothing, other, wrong_form = (pair.request(inputs[0]) for _ in range(4))
    too_long["params"]["sharer_input_ids"] = [5] * 600
    del nothing["params"]
    other["params"]["input_ids"] = [1, 2, 3]
    # A message for a bridge without one, and the reverse.
    count = len(wrong_form["params"]["sharer_input_ids"])
    wrong_form["params"]["message_tokens"] = 0 if "message_tokens" in wrong_form["params"] else count
    wrong_form["ids"] = [5] * count + wrong_form["ids"]
    one_token = {**pair.request(inputs[0]), "ids": [5]}
    logprobs = pair.request(inputs[1], sampling={"prompt_logprobs": 1})
    bad = [too_long, one_token, nothing, logprobs, other, wrong_form]
    wave = [pair.request(inputs[0]), *bad, *pair.requests(inputs[1:])]
    result = vllm.run(wave, wave)
    for answers in map(firsts, result["waves"]):
        assert answers[1 : 1 + len(bad)] == ["error"] * len(bad)
        assert [answers[0], *answers[1 + len(bad) :]] == pair.answers(inputs)
    assert result["blocks"] == 0


@ASYNC
def test_preempted_requests_go_on_as_before(pair, questions, tmp_path, asynchronous):
    inputs = [pair.inputs(one) for one in questions[:12]]
    few = {"num_gpu_blocks_override": 24, "block_size": 32, "max_model_len": 256, "max_num_seqs": 12}
    with engine(tmp_path, pair, {"async": asynchronous}, **few) as vllm:
        result = vllm.run(pair.requests(inputs, 60))
    assert result["preemptions"] > 0 and result["blocks"] == 0
    assert firsts(result["waves"][0]) == pair.answers(inputs, 60)


@ASYNC
def test_tensor_parallel_2(pair, questions, tmp_path, asynchronous):
    inputs = [pair.inputs(one) for one in questions[:8]]
    several = {"environment": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, "tensor_parallel_size": 2}
    with engine(tmp_path, pair, {"async": asynchronous}, **several) as vllm:
        assert vllm.answers(*pair.requests(inputs)) == pair.answers(inputs)


@ASYNC
def test_the_real_pair_on_real_passages(real_data, tmp_path, asynchronous):
    """The bridge that ships from Gemma 3 270M to SmolLM2-135M-Instruct, 8 requests at once. Only the Sharer
    reads the passages, which are of XQuAD and of Atlas facts."""
    for name in FETCHED:
        if not (models_dir() / name).is_dir():
            pytest.skip(f"{name} is not in {models_dir()}; fetch it with: h2c models fetch {name}")
    pair = Pair(
        str(REAL_BRIDGE),
        *load_pair(str(REAL_BRIDGE), dtype=torch.float32),
        receiver=str(models_dir() / list(FETCHED)[1]),
    )
    rows = [
        json.loads(line) for line in (real_data / "xquad" / "validation.jsonl").read_text().splitlines()[:16]
    ]
    passages = [(row["context"], row["question"]) for row in rows]
    passages += [
        (row["passage"], row["question"])
        for facts in (1, 4, 16)
        for row in atlas_passages("test", facts=facts)[:8]
    ]
    inputs = [pair.inputs(question, f"{passage}\n\n{question}") for passage, question in passages]
    with engine(tmp_path, pair, {"async": asynchronous}, max_model_len=1024, max_num_seqs=8) as vllm:
        result = vllm.run(pair.requests(inputs))
    assert firsts(result["waves"][0]) == pair.answers(inputs)
    assert result["blocks"] == 0


@pytest.mark.parametrize(
    "options, says",
    [
        ({"transfer": {"kv_load_failure_policy": "recompute"}}, "kv_load_failure_policy is 'recompute'"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'"),
        ({"connector": {"bridg": "x"}}, "kv_connector_extra_config has 'bridg'"),
        ({"connector": {"urls": ["http://127.0.0.1:9"], "bridge": "x"}}, "expected one of them"),
        (
            {"connector": {"urls": ["http://127.0.0.1:9"], "timeout": 1}},
            "No bridge server answered within 1 s",
        ),
        ({"model": str(ATLAS / "sharer")}, "made for another Receiver"),
    ],
)
def test_refused_at_start(atlas_pair, tmp_path, options, says):
    with engine(tmp_path, atlas_pair, **options) as vllm:
        assert says in vllm.error


@pytest.mark.parametrize(
    "layers", [["sliding_attention"] * 3, ["sliding_attention", "full_attention", "sliding_attention"]]
)
def test_sliding_windows_are_refused_at_start(atlas_pair, tmp_path, layers):
    shape = {
        "head_dim": 32,
        "hidden_size": 128,
        "num_key_value_heads": 2,
        "layer_types": layers,
        "sliding_window": 64,
    }
    tiny_model("gemma3", **shape).save_pretrained(tmp_path / "receiver")
    with engine(tmp_path, atlas_pair, model=str(tmp_path / "receiver"), max_model_len=256) as vllm:
        assert "no sliding windows" in vllm.error


def test_the_bridge_in_another_process(atlas_pair, questions, tmp_path):
    inputs = [atlas_pair.inputs(one) for one in questions[:32]]
    command = ("-m", "h2c_hf.serving.bridge_server", str(ATLAS), "--dtype", "float32", "--port", "18277")
    with (
        started(*command, H2C_BRIDGE_TOKEN="secret") as server,
        engine(
            tmp_path, atlas_pair, {"urls": [server.url]}, environment={"H2C_BRIDGE_TOKEN": "secret"}
        ) as vllm,
    ):
        result = vllm.run(atlas_pair.requests(inputs))
    assert firsts(result["waves"][0]) == atlas_pair.answers(inputs) and result["blocks"] == 0
