"""Batches of bridged prompts, and the bridge server over HTTP with its client."""

import contextlib
import copy
import json
import socket
import threading
import time
import urllib.request
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
import torch
import urllib3
import uvicorn
from pairs import join, random_inputs, tiny_model
from servers import ROOT, started
from transformers.cache_utils import DynamicCache

from h2c_hf.modeling.inputs_h2c import CACHE
from h2c_hf.serving.bridge_client import BridgeClient, BridgeServerError
from h2c_hf.serving.bridge_server import BridgeServer
from h2c_hf.serving.bridging import Bridger, Prompt, QueueFullError, from_zero, message_tokens, zero_states


@pytest.fixture(scope="module", params=["rewrite", "message"])
def model(request):
    return join(tiny_model("llama", 1), tiny_model("qwen2", 2), bridge_form=request.param)


def prompts(count: int = 6, seed: int = 0) -> list[Prompt]:
    """Of different lengths."""
    inputs = random_inputs(seed, count)
    kept = [
        [
            inputs[f"{prefix}input_ids"][row][inputs[f"{prefix}attention_mask"][row].bool()]
            for prefix in ("", "sharer_")
        ]
        for row in range(count)
    ]
    return [Prompt(*(tuple(ids.tolist()) for ids in row)) for row in kept]


def alone(model, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of `bridged_cache` for one prompt."""
    ids, sharer_ids = torch.tensor([prompt.input_ids]), torch.tensor([prompt.sharer_input_ids])
    with torch.no_grad():
        if prompt.control == "zeros":
            cache = model.bridged_cache(ids, sharer_hidden_states=zero_states(model, sharer_ids))
        else:
            cache = model.bridged_cache(ids, sharer_input_ids=sharer_ids)
    from_zero(model, cache)
    return tuple(
        torch.stack([getattr(layer, name)[0] for layer in cache.layers]) for name in ("keys", "values")
    )


def same(model, prompt: Prompt, bridged) -> bool:
    got = (bridged.keys, bridged.values)
    return all(
        torch.allclose(one, two, atol=1e-4) for one, two in zip(alone(model, prompt), got, strict=True)
    )


@torch.no_grad()
def test_an_engine_that_counts_from_0_gives_the_logits_of_the_pair(model):
    """The kickstart stands after the message and the prompt, at the position that vLLM gives it."""
    for prompt in prompts(4):
        ids, sharer_ids = torch.tensor([prompt.input_ids]), torch.tensor([prompt.sharer_input_ids])
        with contextlib.closing(Bridger(model)) as bridger:
            bridged = bridger.submit(prompt).result(30)
        cache, positions = DynamicCache(config=model.receiver.config), bridged.keys.shape[2]
        assert positions == len(prompt.input_ids) - 1 + message_tokens(
            model.config, len(prompt.sharer_input_ids)
        )
        for layer, (keys, values) in enumerate(zip(bridged.keys, bridged.values, strict=True)):
            cache.update(keys[None], values[None], layer)
        logits = model.receiver(
            ids[:, -1:], position_ids=torch.tensor([[positions]]), **{CACHE: cache}
        ).logits
        torch.testing.assert_close(
            logits, model(ids, sharer_input_ids=sharer_ids).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.gpu
def test_results_on_a_gpu_may_be_read_after_their_event(model):
    """The bridge runs on a stream of its own. A connector waits for the event on vLLM's stream."""
    waiting = prompts(4)
    with contextlib.closing(Bridger(copy.deepcopy(model).to("cuda"))) as bridger:
        futures = [bridger.submit(prompt) for prompt in waiting]
        for prompt, future in zip(waiting, futures, strict=True):
            bridged = future.result(30)
            torch.cuda.current_stream().wait_event(bridged.ready)
            expected = alone(model, prompt)
            for got, one in zip((bridged.keys, bridged.values), expected, strict=True):
                torch.testing.assert_close(got.cpu(), one, atol=1e-3, rtol=1e-3)


@contextlib.contextmanager
def held(bridger: Bridger):
    """Inside, prompts wait: the thread is busy with one that takes as long as the block."""
    begun, go, stock = threading.Event(), threading.Event(), bridger._bridge

    def slow(batch):
        begun.set()
        assert go.wait(30)
        return stock(batch)

    bridger._bridge = slow
    first = bridger.submit(Prompt((1, 2, 3), (4, 5)))
    assert begun.wait(30)
    bridger._bridge = stock
    try:
        yield
    finally:
        go.set()
        first.result(30)


def test_waiting_prompts_share_a_pass(model):
    with contextlib.closing(Bridger(model)) as bridger:
        waiting = prompts()
        with held(bridger):
            before = bridger.passes
            futures = [bridger.submit(prompt) for prompt in waiting]
        assert all(
            same(model, prompt, future.result(30)) for prompt, future in zip(waiting, futures, strict=True)
        )
        assert bridger.passes - before == 2, "the one that was held, and one for the rest"


def test_a_pass_has_at_most_the_given_tokens(model):
    waiting = prompts(6)
    with contextlib.closing(
        Bridger(model, max_batch_tokens=max(prompt.length for prompt in waiting))
    ) as bridger:
        with held(bridger):
            futures = [bridger.submit(prompt) for prompt in waiting]
        assert all(
            same(model, prompt, future.result(30)) for prompt, future in zip(waiting, futures, strict=True)
        )
        assert bridger.passes > 2


def test_a_repeated_prompt_is_bridged_once(model):
    prompt = prompts(1)[0]
    with contextlib.closing(Bridger(model)) as bridger:
        first = bridger.submit(prompt).result(30)
        assert [bridger.submit(prompt).result(30) for _ in range(3)] == [first] * 3 and bridger.passes == 1
    with contextlib.closing(Bridger(model, cache_bytes=0)) as bridger:
        for _ in range(2):
            assert same(model, prompt, bridger.submit(prompt).result(30))
        assert bridger.passes == 2


def test_the_control_is_part_of_the_prompt(model):
    prompt = prompts(1)[0]
    zeros = Prompt(prompt.input_ids, prompt.sharer_input_ids, "zeros")
    with contextlib.closing(Bridger(model)) as bridger:
        with held(bridger):
            futures = [bridger.submit(one) for one in (prompt, zeros)]
        results = [future.result(30) for future in futures]
    assert (
        same(model, prompt, results[0])
        and same(model, zeros, results[1])
        and not same(model, prompt, results[1])
    )


def test_a_bad_prompt_fails_alone(model):
    waiting = [*prompts(3), Prompt((1, 2), tuple([1] * 300))]
    with contextlib.closing(Bridger(model)) as bridger:
        with held(bridger):
            futures = [bridger.submit(prompt) for prompt in waiting]
        assert all(
            same(model, prompt, future.result(30))
            for prompt, future in zip(waiting[:3], futures[:3], strict=True)
        )
        with pytest.raises(ValueError, match="context window of its model is 256"):
            futures[3].result(30)


def test_a_full_queue_refuses_and_a_cancelled_prompt_costs_nothing(model):
    waiting = prompts(3)
    with contextlib.closing(Bridger(model, max_queue=2)) as bridger:
        with held(bridger):
            first, second = (bridger.submit(prompt) for prompt in waiting[:2])
            with pytest.raises(QueueFullError, match="2 prompts are waiting"):
                bridger.submit(waiting[2])
            assert first.cancel()
        assert same(model, waiting[1], second.result(30))
        assert waiting[0].digest not in bridger._kept


def test_closing_cancels_what_waits(model):
    bridger = Bridger(model)
    with held(bridger):
        waiting = bridger.submit(prompts(1)[0])
        closing = threading.Thread(target=bridger.close)
        closing.start()
        with pytest.raises(CancelledError):
            waiting.result(30)
    closing.join(30)
    assert not bridger._thread.is_alive()


@contextlib.contextmanager
def served(app, port: int = 0):
    """The URL of an app in a thread."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def test_the_server_gives_what_the_bridge_gives(model):
    waiting = prompts(8)
    app = BridgeServer(model, "secret")
    with served(app) as url, contextlib.closing(BridgeClient([url], "secret")) as client:
        assert client.pairs() == [app.facts]
        futures = [client.submit(prompt) for prompt in waiting]
        assert all(
            same(model, prompt, future.result(30)) for prompt, future in zip(waiting, futures, strict=True)
        )


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_wrong_token_is_refused_at_once(model, token):
    with (
        served(BridgeServer(model, "secret")) as url,
        contextlib.closing(BridgeClient([url], token)) as client,
    ):
        with pytest.raises(BridgeServerError, match="status 401"):
            client.submit(prompts(1)[0]).result(5)
        assert json.load(urllib.request.urlopen(f"{url}/health")) == {"status": "ok"}


@pytest.mark.parametrize(
    "body, status, says",
    [
        (b"{", 400, "not JSON"),
        (b'{"input_ids": [1, 2], "sharer_input_ids": []}', 400, "sharer_input_ids is empty"),
        (b'{"input_ids": [1, "2"], "sharer_input_ids": [1]}', 400, "expected a list of token ids"),
        (b'{"input_ids": [1], "sharer_input_ids": [1]}', 400, "expected at least 2 tokens"),
        (b'{"input_ids": [1, 2], "sharer_input_ids": [1], "control": "noise"}', 400, "control is 'noise'"),
        (b'{"input_ids": [1, 2], "sharer_input_ids": [1], "layers": 3}', 400, "no field 'layers'"),
        (b" " * 2**12, 413, "more than 1,024 bytes"),
    ],
)
def test_a_bad_request_gets_a_4xx(model, body, status, says):
    with served(BridgeServer(model, max_bytes=1024)) as url:
        answer = urllib3.request("POST", f"{url}/bridge", body=body)
    assert answer.status == status and says in answer.json()["error"]["message"]


def test_a_full_queue_answers_503_and_the_client_waits_for_its_turn(model):
    app = BridgeServer(model, max_queue=1)
    first, second = prompts(2)
    with served(app) as url, contextlib.closing(BridgeClient([url])) as client:
        with held(app.bridger):
            one = client.submit(first)
            while app.bridger._queue.empty():
                time.sleep(0.01)
            body = json.dumps({"input_ids": second.input_ids, "sharer_input_ids": second.sharer_input_ids})
            refused = urllib3.request("POST", f"{url}/bridge", body=body, retries=False)
            assert refused.status == 503 and refused.headers["retry-after"] == "1"
            two = client.submit(second)
        assert same(model, first, one.result(30)) and same(model, second, two.result(30))


def test_who_hangs_up_gives_the_place_back(model):
    app = BridgeServer(model)
    prompt = prompts(1)[0]
    with served(app) as url, held(app.bridger):
        body = json.dumps({"input_ids": prompt.input_ids, "sharer_input_ids": prompt.sharer_input_ids})
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            urllib3.request("POST", f"{url}/bridge", body=body, timeout=0.5, retries=False)
        _, future = app.bridger._queue.queue[0]
        for _ in range(500):
            if future.cancelled():
                break
            time.sleep(0.01)
        assert future.cancelled()


def test_another_server_answers_for_one_that_is_gone(model):
    waiting = prompts(4)
    gone = f"http://127.0.0.1:{closed_port()}"
    with served(BridgeServer(model)) as url, contextlib.closing(BridgeClient([gone, url])) as client:
        futures = [client.submit(prompt) for prompt in waiting]
        assert all(
            same(model, prompt, future.result(30)) for prompt, future in zip(waiting, futures, strict=True)
        )


def test_no_server_in_time_is_an_error():
    gone = f"http://127.0.0.1:{closed_port()}"
    with (
        contextlib.closing(BridgeClient([gone], timeout=0.5)) as client,
        pytest.raises(BridgeServerError, match=r"within 0\.5 s"),
    ):
        client.submit(prompts(1)[0]).result(30)


def test_a_restarted_server_is_found_again(model):
    prompt, port = prompts(1)[0], closed_port()
    with contextlib.closing(BridgeClient([f"http://127.0.0.1:{port}"])) as client:
        future = client.submit(prompt)
        with served(BridgeServer(model), port):
            assert same(model, prompt, future.result(30))


def test_several_clients_share_one_server(model):
    waiting = prompts(8)
    with served(BridgeServer(model)) as url, ThreadPoolExecutor(4) as pool:

        def ask(_):
            with contextlib.closing(BridgeClient([url])) as client:
                return [client.submit(prompt).result(30) for prompt in waiting]

        for results in pool.map(ask, range(4)):
            assert all(same(model, prompt, bridged) for prompt, bridged in zip(waiting, results, strict=True))


def test_the_command_serves_and_needs_a_token_elsewhere():
    command = [
        "-m",
        "h2c_hf.serving.bridge_server",
        str(ROOT / "hub_configs" / "atlas"),
        "--port",
        str(closed_port()),
    ]
    with started(*command) as server, contextlib.closing(BridgeClient([server.url])) as client:
        assert client.pairs()[0]["layers"] == 5
        assert client.submit(Prompt((5, 6, 7), (5, 6))).result(30).keys.shape == (5, 2, 2, 32)
    with started(*command, "--host", "0.0.0.0") as server:
        assert server.process.wait(300) == 1 and "H2C_BRIDGE_TOKEN is not set" in server.text


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
