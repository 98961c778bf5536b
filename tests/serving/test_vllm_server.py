"""vLLM's server with middleware and connector. Run `pytest -m serve`, after `scripts/serve_env`."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import ASKED, QUESTION, started
from vllm_engine import PYTHON, Pair


pytestmark = [pytest.mark.serve, pytest.mark.usefixtures("vllm_environment")]
openai = pytest.importorskip("openai", reason="needs openai")
BRIDGE_SERVER = ("-m", "h2c_hf.serving.bridge_server")


def serving(pair: Pair, port: int, **connector):
    """vLLM's server for a pair."""
    config = {
        "kv_connector": "H2CConnector", "kv_connector_module_path": "h2c_hf.serving.vllm_connector",
        "kv_role": "kv_consumer", "kv_connector_extra_config": connector,
    }  # fmt: skip
    command = (
        "-m", "vllm.entrypoints.cli.main", "serve", pair.receiver, "--tokenizer",
        f"{pair.folder}/receiver_tokenizer", "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "atlas", "--max-model-len", "512", "--middleware",
        "h2c_hf.serving.middleware.H2CMiddleware", "--kv-transfer-config", json.dumps(config),
    )  # fmt: skip
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "H2C_BRIDGE": pair.folder,
    }
    return started(*command, python=PYTHON, **variables)


def wait_for(port: int, server) -> str:
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert server.process.poll() is None, server.text[-4000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return url
        except OSError:
            time.sleep(0.5)
    raise AssertionError(server.text[-4000:])


def client_of(url: str):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def url(atlas_pair):
    with serving(atlas_pair, 18278, bridge=atlas_pair.folder, **{"async": True}) as server:
        yield wait_for(18278, server)


@pytest.fixture(scope="module")
def client(url):
    return client_of(url)


def expected_text(pair: Pair, content: str, sharer: str | None = None) -> str:
    inputs = pair.inputs(content, sharer)
    output = pair.model.generate(**inputs, do_sample=False, max_new_tokens=64)
    return pair.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(client, content: str, **fields) -> str:
    messages = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(
        model="atlas", messages=messages, temperature=0, max_tokens=64, **fields
    )
    return answer.choices[0].message.content


def test_the_server_with_8_clients(client, atlas_pair, questions):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: ask(client, one), questions[:32]))
    assert answers == [expected_text(atlas_pair, one) for one in questions[:32]]


def test_the_server_reads_every_endpoint_and_extension(client, atlas_pair, questions):
    first, second = questions[:2]
    extra = {"sharer_messages": [{"role": "user", "content": second}]}
    assert ask(client, first, extra_body=extra) == expected_text(atlas_pair, first, second)
    answer = client.responses.create(model="atlas", input=first, temperature=0, max_output_tokens=64)
    assert answer.output_text == expected_text(atlas_pair, first)
    with atlas_pair.model.disable_bridge():
        assert ask(client, first, extra_body={"h2c": False}) == expected_text(atlas_pair, first)
    special = "What does </s><assistant> mean?"
    assert ask(client, special) == expected_text(atlas_pair, special)
    pieces = client.chat.completions.create(
        model="atlas", messages=ASKED, temperature=0, max_tokens=64, stream=True
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected_text(
        atlas_pair, QUESTION
    )
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs is given"):
        ask(client, first, extra_body={"prompt_logprobs": 1})


def test_h2c_chat_talks_to_vllm(url, atlas_pair, questions):
    from test_serve import chat_lines

    first, other = questions[:2]
    shown, _ = chat_lines(url, f"/sharer {other}", first, "/clear", f"/compare {other}", "/quit")
    assert (
        expected_text(atlas_pair, first, f"{other}\n\n{first}") in shown
        and expected_text(atlas_pair, other) in shown
    )
    with atlas_pair.model.disable_bridge():
        assert expected_text(atlas_pair, other).strip() in shown


def used_blocks(url: str) -> float:
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return max(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:kv_cache_usage_perc")
    )


def test_24_clients_that_hang_up_leave_no_blocks(url, client, atlas_pair):
    from test_serve import hang_up

    for turn in range(24):
        hang_up(url, stream=turn % 2 == 0)
    assert ask(client, QUESTION) == expected_text(atlas_pair, QUESTION)
    for _ in range(100):
        if used_blocks(url) == 0:
            break
        time.sleep(0.2)
    assert used_blocks(url) == 0


def test_a_bridge_server_that_is_killed_and_restarted(atlas_pair, questions):
    """Killed while 8 requests are under way and more follow: each is answered with the bridge, or fails."""
    bridge = (*BRIDGE_SERVER, str(atlas_pair.folder), "--dtype", "float32", "--port", "18279")
    with started(*bridge) as first:
        wait_for(18279, first)
        with serving(atlas_pair, 18280, urls=["http://127.0.0.1:18279"], timeout=20) as server:
            client = client_of(wait_for(18280, server))
            assert ask(client, questions[0]) == expected_text(atlas_pair, questions[0])
            with ThreadPoolExecutor(8) as pool:
                running = {one: pool.submit(ask, client, one) for one in questions[1:33]}
                while not any(asked.done() for asked in running.values()):
                    time.sleep(0.01)
                first.process.kill()
                first.process.wait(60)
                before = sum(asked.done() for asked in running.values())
                time.sleep(1)
                with started(*bridge) as second:
                    wait_for(18279, second)
                    outcomes = []
                    for one, asked in running.items():
                        try:
                            outcomes.append(asked.result() == expected_text(atlas_pair, one))
                        except openai.InternalServerError:
                            outcomes.append("failed")
                    assert before < len(running) and set(outcomes) <= {True, "failed"}, outcomes
                    assert ask(client, questions[40]) == expected_text(atlas_pair, questions[40])
            with pytest.raises(openai.InternalServerError):
                ask(client, questions[41])
