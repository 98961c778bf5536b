"""vLLM with the connector gives the tokens of `H2CForCausalLM.generate`. Run with `pytest -m serve`, after `scripts/serve_env`."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pairs import randomize
from servers import ASKED, QUESTION, ROOT, started

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.loading import FETCHED, ROLES, BaseModel, load_pair, models_dir
from h2c_hf.modeling import H2CForCausalLM, H2CProcessor
from h2c_hf.prompts import FORMS


pytestmark = pytest.mark.serve
ENVIRONMENT = Path(os.environ.get("H2C_VLLM_ENV", ROOT / ".venv-vllm"))
PYTHON = ENVIRONMENT / "bin" / "python"
ATLAS = ROOT / "hub_configs" / "atlas"
END = 1  # ends a text; suppressed, so that every answer has as many tokens
TOKENS = 16


@pytest.fixture(scope="module", autouse=True)
def environment():
    if not PYTHON.exists():
        pytest.skip(f"there is no vLLM environment at {ENVIRONMENT}: make one with scripts/serve_env, or set H2C_VLLM_ENV")


@pytest.fixture(scope="module")
def questions():
    prompt, _ = FORMS["open"]
    return [prompt(question) for question in atlas_questions("test")[:64]]


def inputs_of(processor, content: str, sharer: str | None = None) -> dict[str, torch.Tensor]:
    return processor.apply_chat_template(*([{"role": "user", "content": one}] for one in (content, sharer or content)))


@torch.no_grad()
def answer(model, inputs, tokens: int = TOKENS, **options) -> list[int]:
    output = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, sequence_bias={(END,): -100.0}, **options)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def request(inputs, tokens: int = TOKENS, bridged: bool = True, **fields) -> dict:
    params = {"sharer_input_ids": inputs["sharer_input_ids"][0].tolist()} if bridged else {"h2c": False}
    return {"ids": inputs["input_ids"][0].tolist(), "params": params, "tokens": tokens, "bias": {END: -100}, **fields}


def with_placeholders(made: dict, inputs) -> dict:
    """The request for a bridge of the message form: a placeholder id for each Sharer token, and then the Receiver's prompt."""
    message = inputs["sharer_input_ids"].shape[1]
    return {**made, "ids": [5] * message + made["ids"], "params": {**made["params"], "message_tokens": message}}


def vllm(tmp_path: Path, waves: list[list[dict]], connector: dict | None = None, environment: dict | None = None, **engine) -> dict:
    """Run waves of requests in an engine of its own process."""
    transfer = engine.pop("transfer", {})
    specification = {
        "engine": {"model": str(ATLAS / "receiver"), **engine}, "waves": waves, "transfer": transfer, "environment": environment or {},
        "connector": {"bridge": str(ATLAS), **(connector or {})} if "urls" not in (connector or {}) else connector,
    }  # fmt: skip
    path = tmp_path / "specification.json"
    path.write_text(json.dumps(specification))
    inherited = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    script = str(Path(__file__).parent / "vllm_process.py")
    done = subprocess.run([PYTHON, script, path], capture_output=True, text=True, env=inherited, timeout=1200)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, f"exit status {done.returncode}\n{done.stderr[-3000:]}"
    result = json.loads(lines[-1].removeprefix("RESULT "))
    assert "error" not in result or not waves, result["error"]
    return result


def firsts(wave: list[list]) -> list:
    """The first answer of each request."""
    return [answers[0] for answers in wave]


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
def test_64_questions_in_words(atlas, questions, tmp_path, asynchronous):
    model, processor = atlas
    inputs = [inputs_of(processor, one) for one in questions]
    result = vllm(tmp_path, [[request(one) for one in inputs]], {"async": asynchronous}, max_num_seqs=8)
    assert firsts(result["waves"][0]) == [answer(model, one) for one in inputs]
    assert result["blocks"] == 0 and result["passes"] <= 24, "requests that arrive together share a pass"


def test_block_edges(atlas, tmp_path):
    model, processor = atlas
    inputs = []
    for words in range(60):
        one = inputs_of(processor, f"{'Who? ' * words}{QUESTION}")
        if one["input_ids"].shape[1] % 32 in (0, 1, 2, 31):
            inputs.append(one)
    assert len({one["input_ids"].shape[1] % 32 for one in inputs}) == 4
    result = vllm(tmp_path, [[request(one, 40) for one in inputs]], block_size=32)
    assert firsts(result["waves"][0]) == [answer(model, one, 40) for one in inputs]


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
def test_preempted_requests_go_on_as_before(atlas, questions, tmp_path, asynchronous):
    model, processor = atlas
    inputs = [inputs_of(processor, one) for one in questions[:12]]
    few = {"num_gpu_blocks_override": 24, "block_size": 32, "max_model_len": 256, "max_num_seqs": 12}
    result = vllm(tmp_path, [[request(one, 60) for one in inputs]], {"async": asynchronous}, **few)
    assert result["preemptions"] > 0 and result["blocks"] == 0
    assert firsts(result["waves"][0]) == [answer(model, one, 60) for one in inputs]


def test_bridged_plain_and_controlled_requests_in_one_batch(atlas, questions, tmp_path):
    model, processor = atlas
    inputs = [inputs_of(processor, one, other) for one, other in pairwise(questions[:13])]
    wave, expected = [], []
    for index, one in enumerate(inputs):
        made = request(one, bridged=index % 3 != 1)
        if index % 3 == 2:
            made["params"]["control"] = "zeros"
            states = model.read(one["sharer_input_ids"])
            zeros = tuple(torch.zeros_like(state) for state in states)
            rest = {name: one[name] for name in ("input_ids", "attention_mask", "sharer_attention_mask")}
            expected.append(answer(model, {**rest, "sharer_hidden_states": zeros}))
        elif index % 3 == 1:
            with model.disable_bridge():
                expected.append(answer(model, one))
        else:
            expected.append(answer(model, one))
        wave.append(made)
    assert firsts(vllm(tmp_path, [wave])["waves"][0]) == expected


def test_n_answers_are_bridged_once(atlas, questions, tmp_path):
    model, processor = atlas
    one = inputs_of(processor, questions[0])
    # vLLM refuses several greedy answers; sampling among the one best token is the same.
    several = request(one, n=4, temperature=1, sampling={"top_k": 1})
    result = vllm(tmp_path, [[several], [request(one)]])
    assert result["waves"][0][0] == [answer(model, one)] * 4 and result["passes"] == 1


def test_prefix_caching_never_mixes_requests(atlas, questions, tmp_path):
    """The same Receiver's prompt with another Sharer's prompt, plain, bridged and plain again."""
    model, processor = atlas
    long = f"{'Who? ' * 30}{questions[0]}"
    first, other = inputs_of(processor, long), inputs_of(processor, long, questions[5])
    with model.disable_bridge():
        plain = answer(model, first)
    longer = inputs_of(processor, f"{long} {questions[1]}")
    waves = [
        [request(first)],
        [request(first, bridged=False)],
        [request(other)],
        [request(first)],
        [request(first, bridged=False)],
        [request(longer)],
    ]
    result = vllm(tmp_path, waves, enable_prefix_caching=True, block_size=32)
    bridged, others = answer(model, first), answer(model, other)
    assert bridged != plain != others != bridged
    assert [firsts(wave)[0] for wave in result["waves"]] == [bridged, plain, others, bridged, plain, answer(model, longer)]
    prompt = first["input_ids"].shape[1]
    assert result["hits"] >= 2 * ((prompt - 1) // 32 * 32), "a repeated prompt hits, bridged and plain"


def test_a_failed_request_fails_alone(atlas, questions, tmp_path):
    model, processor = atlas
    inputs = [inputs_of(processor, one) for one in questions[:4]]
    too_long = request(inputs[0])
    too_long["params"]["sharer_input_ids"] = [5] * 600
    one_token = {**request(inputs[0]), "ids": [5]}
    nothing, logprobs = request(inputs[0]), request(inputs[1], sampling={"prompt_logprobs": 1})
    del nothing["params"]
    other = request(inputs[2])
    other["params"]["input_ids"] = [1, 2, 3]
    bad = [too_long, one_token, nothing, logprobs, other]
    for asynchronous in (True, False):
        wave = [request(inputs[0]), *bad, *map(request, inputs[1:])]
        result = vllm(tmp_path, [wave, wave], {"async": asynchronous}, enable_prefix_caching=True)
        for answers in map(firsts, result["waves"]):
            assert answers[1:6] == ["error"] * 5
            assert [answers[0], *answers[6:]] == [answer(model, one) for one in inputs]
        assert result["blocks"] == 0


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
def test_a_bridge_of_the_message_form(atlas, questions, tmp_path, asynchronous):
    """Random weights: the placeholder ids before the prompt get the message, and the prompt follows it."""
    shipped, processor = atlas
    model = H2CForCausalLM.from_pair(shipped.sharer, shipped.receiver, bridge_form="message").eval()
    randomize(model.bridge, 3)
    for role in ("sharer", "receiver"):
        setattr(model.config, f"{role}_model_id", str(ATLAS / role))
    model.save_pretrained(tmp_path / "bridge")
    inputs = [inputs_of(processor, one) for one in questions[:16]]
    wave = [with_placeholders(request(one), one) for one in inputs]
    result = vllm(tmp_path, [wave], {"bridge": str(tmp_path / "bridge"), "async": asynchronous})
    assert firsts(result["waves"][0]) == [answer(model, one) for one in inputs]


@pytest.fixture(scope="module")
def real_pair(tmp_path_factory):
    """Gemma 3 270M and SmolLM2-135M-Instruct in float32, and a folder with a bridge between them: H2C_REAL_BRIDGE, or random weights."""
    for name in FETCHED:
        if not (models_dir() / name).is_dir():
            pytest.skip(f"{name} is not in {models_dir()}; fetch it with: h2c models fetch {name}")
    folder = os.environ.get("H2C_REAL_BRIDGE")
    if folder is None:
        folder = str(tmp_path_factory.mktemp("bridge"))
        bases = {role: BaseModel.find(name, role) for role, name in zip(ROLES, FETCHED, strict=True)}
        model = H2CForCausalLM.from_pair(*(base.model(dtype=torch.float32) for base in bases.values()), bridge_form="message")
        for role, base in bases.items():
            setattr(model.config, f"{role}_model_id", base.model_id)
        model.save_pretrained(folder)
        tokenizers = (base.tokenizer("plain" if role == "sharer" else None) for role, base in bases.items())
        H2CProcessor(*tokenizers).save_pretrained(folder)
    model, processor = load_pair(folder, dtype=torch.float32)
    return folder, model, processor


def test_the_real_pair_on_real_passages(real_pair, real_data, tmp_path):
    """Only the Sharer reads the passage; 8 requests at once."""
    folder, model, processor = real_pair
    rows = [json.loads(line) for line in (real_data / "xquad" / "validation.jsonl").read_text().splitlines()[:16]]
    inputs = [inputs_of(processor, row["question"], f"{row['context']}\n\n{row['question']}") for row in rows]
    receiver = str(models_dir() / list(FETCHED)[1])
    wave = [with_placeholders(request(one), one) for one in inputs]
    result = vllm(tmp_path, [wave], {"bridge": folder}, model=receiver, max_model_len=1024, max_num_seqs=8)
    assert firsts(result["waves"][0]) == [answer(model, one) for one in inputs]
    assert result["blocks"] == 0


def test_tensor_parallel_2(atlas, questions, tmp_path):
    model, processor = atlas
    inputs = [inputs_of(processor, one) for one in questions[:8]]
    for asynchronous in (True, False):
        result = vllm(
            tmp_path, [[request(one) for one in inputs]], {"async": asynchronous}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            tensor_parallel_size=2,
        )  # fmt: skip
        assert firsts(result["waves"][0]) == [answer(model, one) for one in inputs]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"transfer": {"kv_load_failure_policy": "recompute"}}, "kv_load_failure_policy is 'recompute'"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'"),
        ({"connector": {"bridg": "x"}}, "kv_connector_extra_config has 'bridg'"),
        ({"model": str(ATLAS / "sharer")}, "made for another Receiver"),
    ],
)
def test_refused_at_start(tmp_path, options, says):
    connector = options.pop("connector", None)
    assert says in vllm(tmp_path, [], connector, **options)["error"]


@pytest.fixture(scope="module")
def bridge_server():
    with started(
        "-m", "h2c_hf.serving.bridge_server", str(ATLAS), "--dtype", "float32", "--port", "18277", H2C_BRIDGE_TOKEN="secret"
    ) as server:
        server.url  # noqa: B018  wait until it serves
        yield server


def test_the_bridge_in_another_process(atlas, questions, tmp_path, bridge_server):
    model, processor = atlas
    inputs = [inputs_of(processor, one) for one in questions[:32]]
    result = vllm(tmp_path, [[request(one) for one in inputs]], {"urls": [bridge_server.url]}, {"H2C_BRIDGE_TOKEN": "secret"})
    assert firsts(result["waves"][0]) == [answer(model, one) for one in inputs] and result["blocks"] == 0


def test_no_bridge_server_is_told_at_start(tmp_path):
    result = vllm(tmp_path, [], {"urls": ["http://127.0.0.1:9"], "timeout": 1})
    assert "No bridge server answered within 1 s" in result["error"]


COMMAND = (
    "-m", "vllm.entrypoints.cli.main", "serve", str(ATLAS / "receiver"), "--tokenizer", str(ATLAS / "receiver_tokenizer"),
    "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--served-model-name", "atlas", "--max-model-len", "512",
    "--middleware", "h2c_hf.serving.middleware.H2CMiddleware",
)  # fmt: skip
VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "H2C_BRIDGE": str(ATLAS)}


def transfer(**extra) -> list[str]:
    config = {
        "kv_connector": "H2CConnector", "kv_connector_module_path": "h2c_hf.serving.vllm_connector", "kv_role": "kv_consumer",
        "kv_connector_extra_config": extra,
    }  # fmt: skip
    return ["--kv-transfer-config", json.dumps(config)]


def wait_for(url: str, server) -> None:
    import urllib.request

    for _ in range(600):
        assert server.process.poll() is None, server.text[-4000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(server.text[-4000:])


@pytest.fixture(scope="module")
def server():
    with started(*COMMAND, "--port", "18278", *transfer(bridge=str(ATLAS)), python=PYTHON, **VARIABLES) as server:
        wait_for("http://127.0.0.1:18278", server)
        yield server


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai", reason="needs openai")
    return openai.OpenAI(base_url="http://127.0.0.1:18278/v1", api_key="none", max_retries=0, timeout=300)


def expected_text(atlas, content: str, sharer: str | None = None) -> str:
    model, processor = atlas
    inputs = inputs_of(processor, content, sharer)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=64)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(client, content: str, **fields) -> str:
    messages = [{"role": "user", "content": content}]
    return (
        client.chat.completions.create(model="atlas", messages=messages, temperature=0, max_tokens=64, **fields).choices[0].message.content
    )


def test_the_server_with_8_clients(client, atlas, questions):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: ask(client, one), questions[:32]))
    assert answers == [expected_text(atlas, one) for one in questions[:32]]


def test_the_server_reads_every_endpoint_and_extension(client, atlas, questions):
    first, second = questions[:2]
    assert ask(client, first, extra_body={"sharer_messages": [{"role": "user", "content": second}]}) == expected_text(atlas, first, second)
    assert client.responses.create(model="atlas", input=first, temperature=0, max_output_tokens=64).output_text == expected_text(
        atlas, first
    )
    with atlas[0].disable_bridge():
        assert ask(client, first, extra_body={"h2c": False}) == expected_text(atlas, first)
    special = "What does </s><assistant> mean?"
    assert ask(client, special) == expected_text(atlas, special)
    pieces = client.chat.completions.create(model="atlas", messages=ASKED, temperature=0, max_tokens=64, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected_text(atlas, QUESTION)
    with pytest.raises(Exception, match="prompt_logprobs is given"):
        ask(client, first, extra_body={"prompt_logprobs": 1})


def used_blocks() -> float:
    import urllib.request

    text = urllib.request.urlopen("http://127.0.0.1:18278/metrics").read().decode()
    return max(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:kv_cache_usage_perc"))


def test_24_clients_that_hang_up_leave_no_blocks(client, atlas):
    from test_serve import hang_up

    for round_ in range(24):
        hang_up("http://127.0.0.1:18278", stream=round_ % 2 == 0)
    assert ask(client, QUESTION) == expected_text(atlas, QUESTION)
    for _ in range(100):
        if used_blocks() == 0:
            break
        time.sleep(0.2)
    assert used_blocks() == 0


def test_a_bridge_server_that_is_killed_and_restarted(atlas, questions):
    openai = pytest.importorskip("openai", reason="needs openai")
    bridge = ("-m", "h2c_hf.serving.bridge_server", str(ATLAS), "--dtype", "float32", "--port", "18279")
    command = [*COMMAND, "--port", "18280", *transfer(urls=["http://127.0.0.1:18279"], timeout=20)]
    with started(*bridge) as first:
        first.url  # noqa: B018
        wait_for("http://127.0.0.1:18279", first)
        with started(*command, python=PYTHON, **VARIABLES) as server:
            wait_for("http://127.0.0.1:18280", server)
            client = openai.OpenAI(base_url="http://127.0.0.1:18280/v1", api_key="none", max_retries=0, timeout=300)
            assert ask(client, questions[0]) == expected_text(atlas, questions[0])
            first.process.kill()
            first.process.wait(60)
            with ThreadPoolExecutor(8) as pool:
                running = [pool.submit(ask, client, one) for one in questions[1:9]]
                lost = pool.submit(ask, client, "Who?")
                time.sleep(1)
                with started(*bridge) as second:
                    wait_for("http://127.0.0.1:18279", second)
                    outcomes = []
                    for one, asked in zip([*questions[1:9], "Who?"], [*running, lost], strict=True):
                        try:
                            outcomes.append(asked.result() == expected_text(atlas, one))
                        except openai.InternalServerError:
                            outcomes.append("failed")
                    assert set(outcomes) <= {True, "failed"}, outcomes
                    assert ask(client, questions[10]) == expected_text(atlas, questions[10])
            with pytest.raises(openai.InternalServerError):
                ask(client, questions[11])
