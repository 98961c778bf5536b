"""`h2c serve` and stock `transformers serve`: a real server in a process, and the clients that people use."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from pairs import text_pair
from servers import ASKED, QUESTION, ROOT, started

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.benchmarks import load
from h2c_hf.cli import main
from h2c_hf.evaluation.batch import Batch
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.serving.openai_requests import CHAT, COMPLETIONS, RESPONSES


openai = pytest.importorskip("openai", reason="needs openai")
ATLAS = str(ROOT / "hub_configs" / "atlas")
LONG = {"role": "user", "content": "Who? " * 100_000}


@pytest.fixture(scope="module")
def server():
    with started("-m", "h2c_hf.cli", "serve", "--port", "0") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def questions():
    return [question["question"] for question in atlas_questions("test")[:10]]


def chat(client, content: str = QUESTION, **fields):
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="atlas", messages=messages, temperature=0, **fields)


def text(client, content: str = QUESTION, **fields) -> str:
    return chat(client, content, **fields).choices[0].message.content


def expected(atlas, content: str = QUESTION, sharer: str | None = None, **options) -> str:
    model, processor = atlas
    conversations = [[{"role": "user", "content": one}] for one in (content, sharer or content)]
    inputs = processor.apply_chat_template(*conversations)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=64, **options)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def post(url: str, body: bytes) -> tuple[int, dict]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def status_of(url: str, **body) -> tuple[int, str]:
    status, answer = post(url, json.dumps(body).encode())
    return status, answer.get("error", {}).get("message", "")


def test_chat_answers_as_generate(client, atlas, questions):
    assert [text(client, one) for one in questions] == [expected(atlas, one) for one in questions]


def test_streamed_text_is_the_text(client, atlas):
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(client, stream=True)]
    assert "".join(pieces) == expected(atlas)


def test_text_parts_are_one_text(client, atlas):
    first, second = QUESTION[:12], QUESTION[12:]
    parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
    assert text(client, parts) == expected(atlas, f"{first}\n{second}")


def test_responses_api(client, atlas):
    assert client.responses.create(model="atlas", input=QUESTION, temperature=0).output_text == expected(
        atlas
    )
    events = client.responses.create(model="atlas", input=ASKED, temperature=0, stream=True)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected(
        atlas
    )


def test_completions_read_the_prompt_as_it_is(client, atlas):
    model, processor = atlas
    prompt = "We know that Paris is in"
    inputs = processor(prompt)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=6, sequence_bias={(1,): -100.0})
    continued = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    # 1 ends the text.
    ask = {"model": "atlas", "prompt": prompt, "max_tokens": 6, "temperature": 0, "logit_bias": {"1": -100}}
    answer = client.completions.create(**ask)
    assert answer.choices[0].text == continued != ""
    stream = client.completions.create(stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in stream) == continued


def test_only_the_sharer_reads_sharer_messages(client, atlas, questions):
    extra = {"sharer_messages": [{"role": "user", "content": questions[1]}]}
    asked = text(client, questions[0], extra_body=extra)
    assert asked == expected(atlas, questions[0], sharer=questions[1]) != expected(atlas, questions[0])


def test_h2c_false_is_the_receiver_alone(client, atlas, questions):
    with atlas[0].disable_bridge():
        alone = [expected(atlas, one) for one in questions]
    assert (
        [text(client, one, extra_body={"h2c": False}) for one in questions]
        == alone
        != [expected(atlas, one) for one in questions]
    )


def test_zeros_is_the_control_of_the_evaluation(client, atlas):
    rows = [{"question": QUESTION}]
    controlled = METHODS["zeros"].generate(Batch(*atlas, rows, "open"), do_sample=False, max_new_tokens=64)
    conversation = Batch(*atlas, rows, "open")
    asked = conversation.processor.apply_chat_template(ASKED)
    assert asked["input_ids"].tolist() == conversation.inputs["input_ids"].tolist(), (
        "the evaluation asks in the same words"
    )
    assert [text(client, extra_body={"control": "zeros"})] == controlled != [expected(atlas)]


def test_n_answers_and_the_seed(client):
    ask = {
        "model": "atlas",
        "messages": ASKED,
        "n": 4,
        "temperature": 2.0,
        "max_tokens": 12,
        "extra_body": {"h2c": False},
    }
    first, second, other = (client.chat.completions.create(seed=seed, **ask) for seed in (1, 1, 2))
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, second, other)]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in chat(client, n=2).choices}) == 1


def test_a_stop_string_is_not_in_the_text(client, atlas):
    answer = expected(atlas)
    stop, before = answer[3:5], answer[:3]
    assert text(client, stop=[stop]) == before
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chat(client, stop=stop, stream=True))
        == before
    )


def test_model_list_and_health(server):
    assert json.load(urllib.request.urlopen(f"{server.url}/v1/models"))["data"][0]["id"] == "atlas"
    assert json.load(urllib.request.urlopen(f"{server.url}/health")) == {"status": "ok"}


def test_transformers_chat_and_the_inference_client(server, atlas):
    command = [sys.executable, "-m", "transformers.cli.transformers", "chat", "atlas", server.url]
    # huggingface_hub's InferenceClient, which it uses, refuses any host otherwise.
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        command, input=f"{QUESTION}\n!exit\n", capture_output=True, text=True, timeout=120, env=environment
    )
    assert expected(atlas).strip() in done.stdout, done.stdout + done.stderr


def chat_lines(url: str, *lines: str) -> tuple[str, str]:
    """Standard output and standard error of `h2c chat --url`, with lines typed into it."""
    command = [sys.executable, "-m", "h2c_hf.cli", "chat", "--url", url, "--max_new_tokens", "64"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=600)
    return done.stdout, done.stderr


def test_h2c_chat_talks_to_the_server(server, atlas, questions):
    url, other = server.url, questions[1]
    shown, _ = chat_lines(
        url, f"/sharer {other}", questions[0], f"/compare {other}", "/clear", "Who? " * 600, QUESTION, "/quit"
    )
    assert expected(atlas, questions[0], sharer=f"{other}\n\n{questions[0]}") in shown
    with atlas[0].disable_bridge():
        alone = expected(atlas, other)
    assert f"{alone.strip()}  " in shown and expected(atlas, other) in shown and "text-to-text" not in shown
    assert (
        f"{url} answered 400: A prompt in sharer_input_ids" in shown and "That message is forgotten" in shown
    )
    assert f"> {expected(atlas)}\n" in shown


def test_h2c_chat_names_a_server_that_is_not_there():
    _, told = chat_lines("http://127.0.0.1:9/v1", QUESTION)
    assert told.splitlines()[-1].startswith(
        "h2c: http://127.0.0.1:9 does not answer (Connection error.); start a server with: h2c serve"
    )


def test_h2c_chat_refuses_a_repo_beside_a_url(capsys):
    assert main(["chat", "some/bridge", "--url", "http://127.0.0.1:9"]) == 2
    assert "--url and REPO are given; expected one of them" in capsys.readouterr().err


def test_the_load_benchmark_measures_a_server(server, tmp_path, capsys):
    """Two clients with two requests each, bridged and of the Receiver alone; every answer is whole."""
    servers = ["--server", f"bridged={server.url}", "--server", f"receiver={server.url},alone"]
    sizes = "--eos 1 --clients 2 --requests 4 --new_tokens 5".split()  # noqa: SIM905
    assert load.main([*servers, *sizes, "--output", str(tmp_path / "load.json")]) == 0
    rows = json.loads((tmp_path / "load.json").read_text())["rows"]
    assert [(row["server"], row["requests"], row["tokens"]) for row in rows] == [
        ("bridged", 4, 20),
        ("receiver", 4, 20),
    ]
    assert (
        all(0 < row["first_token_p50"] <= row["first_token_p99"] for row in rows)
        and (tmp_path / "load.png").exists()
    )
    assert "bridged        2 clients" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["--bridge", "a", "--server", "a=http://b"], ["--server", "a=http://b"]]
)
def test_the_load_benchmark_expects_a_bridge_or_servers(arguments):
    with pytest.raises(ValueError, match="expected --bridge, or the other two"):
        load.main(arguments)


def test_the_load_benchmark_names_a_missing_environment(tmp_path):
    with pytest.raises(ValueError, match="make one with scripts/serve_env"):
        load.main(["--bridge", ATLAS, "--vllm", str(tmp_path)])


def test_the_printed_curl_line_works(server, atlas):
    server.url  # noqa: B018  wait for the greeting
    line = next(line for line in server.lines if line.startswith("curl "))
    answer = json.loads(subprocess.run(line, shell=True, capture_output=True, check=True).stdout)
    assert answer["choices"][0]["message"]["content"] == expected(atlas)


@pytest.mark.parametrize(
    "path, body, says",
    [
        (CHAT, {"messages": []}, "empty list"),
        (CHAT, {}, "messages is a NoneType"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "text parts only",
        ),
        (CHAT, {"messages": ASKED, "max_tokens": 10**6}, "context window is 512"),
        (CHAT, {"messages": ASKED, "max_tokens": "many"}, "expected an integer"),
        (CHAT, {"messages": ASKED, "temperature": -1}, "expected a number from 0 to 2"),
        (CHAT, {"messages": ASKED, "n": 2, "stream": True}, "n=1 for a streamed answer"),
        (CHAT, {"messages": ASKED, "n": 10**6}, "n is 1000000"),
        (CHAT, {"messages": ASKED, "control": "shuffled"}, "another request's"),
        (CHAT, {"messages": ASKED, "control": "zeros", "h2c": False}, "no Sharer"),
        (
            CHAT,
            {"messages": ASKED, "response_format": {"type": "json_object"}},
            "response_format is not supported",
        ),
        (CHAT, {"messages": ASKED, "logprobs": True}, "logprobs is not supported"),
        (CHAT, {"messages": ASKED, "chat_template_kwargs": {"chat_template": "x"}}, "the server sets itself"),
        (CHAT, {"messages": ASKED, "model": "other"}, "pinned to 'atlas'"),
        (CHAT, {"messages": [LONG]}, "context window of its model is 512"),
        (CHAT, {"messages": ASKED, "sharer_messages": [LONG]}, "A prompt in sharer_input_ids"),
        (COMPLETIONS, {"prompt": ""}, "prompt is empty"),
        (COMPLETIONS, {"prompt": [1, 2]}, "prompt is a list"),
        (COMPLETIONS, {"prompt": "Who?", "echo": True}, "echo is not supported"),
        (RESPONSES, {"input": []}, "input is empty"),
        (RESPONSES, {"input": [{"type": "computer_call"}]}, "computer_call"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_a_4xx(server, path, body, says):
    status, message = status_of(server.url + path, **body)
    assert 400 <= status < 500 and says in message, (status, message)


@pytest.mark.parametrize(
    "body, status, says",
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "expected an object"),
        (b"[" * 100_000, 400, "nests too deeply"),
        (b'{"messages": "' + b"a" * 20 * 2**20 + b'"}', 413, "more than 4,194,304 bytes"),
    ],
)
def test_a_body_that_is_no_request_gets_a_4xx(server, body, status, says):
    assert post(server.url + CHAT, body)[0] == status
    assert says in post(server.url + CHAT, body)[1]["error"]["message"]


def test_a_lone_surrogate_gets_a_4xx(server):
    status, answer = post(server.url + CHAT, rb'{"messages": [{"role": "user", "content": "\ud800"}]}')
    assert status == 400 and "lone surrogate" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/reset", "/load_model", "/v1/systemone"])
def test_no_request_loads_or_unloads_a_model(server, path):
    assert post(server.url + path, b'{"model": "another"}')[0] == 404


def test_ten_clients_at_once(client, atlas, questions):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda one: text(client, one), questions))
    assert answers == [expected(atlas, one) for one in questions]


def hang_up(url: str, stream: bool) -> None:
    """Ask for 400 tokens, and close the connection at once (or after the first piece)."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
    body = json.dumps(
        {
            "messages": ASKED,
            "stream": stream,
            "n": 1 if stream else 16,
            "temperature": 2.0,
            "logit_bias": {"1": -100},
        }
    )
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall((head + body).encode())
        if stream:
            connection.recv(64)


def test_who_hangs_up_costs_nothing_more(server, client, atlas):
    chat(client)
    before = server.bytes
    for stream in (True, False):
        for _ in range(12):
            hang_up(server.url, stream)
        assert text(client) == expected(atlas)
    for _ in range(5):
        assert status_of(server.url + CHAT, messages=[LONG])[0] == 400
    assert server.bytes < before + 150 * 2**20


def test_sigterm_lets_running_requests_end():
    with started("-m", "h2c_hf.cli", "serve", "--port", "0") as server:
        assert post(server.url + CHAT, json.dumps({"messages": ASKED}).encode())[0] == 200
        ask = {"messages": ASKED, "max_tokens": 300, "logit_bias": {"1": -100}}
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(post, server.url + CHAT, json.dumps(ask).encode()) for _ in range(3)]
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in running]
        assert [(status, answer["usage"]["completion_tokens"]) for status, answer in answers] == [
            (200, 300)
        ] * 3
        assert server.process.wait(300) in (0, -signal.SIGTERM)


def test_a_taken_port_is_told_at_once(server):
    port = server.url.rsplit(":", 1)[1]
    with started("-m", "h2c_hf.cli", "serve", "--port", port) as second:
        assert second.process.wait(300) == 2
        assert f"127.0.0.1:{port} cannot be listened on" in second.text


def test_a_bridge_of_the_message_form(tmp_path):
    """Each Sharer token takes a position of the Receiver's context window of 256."""
    processor, model = text_pair(bridge_form="message")
    for role in ("sharer", "receiver"):
        getattr(model, role).save_pretrained(tmp_path / role)
        setattr(model.config, f"{role}_model_id", f"./{role}")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    passage = [{"role": "user", "content": "Bensekrane is in Algeria."}]
    inputs = processor.apply_chat_template(ASKED, passage)
    prompt, message = inputs["input_ids"].shape[1], inputs["sharer_input_ids"].shape[1]
    output = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, prompt:]
    with started("-m", "h2c_hf.cli", "serve", str(tmp_path), "--port", "0", "--name", "message") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        ask = {
            "model": "message",
            "messages": ASKED,
            "temperature": 0,
            "extra_body": {"sharer_messages": passage},
        }
        answer = client.chat.completions.create(max_tokens=16, **ask)
        assert answer.choices[0].message.content == processor.decode(output, skip_special_tokens=True)
        other = {**ask, "extra_body": {"sharer_messages": passage, "control": "zeros"}}
        zeros = client.chat.completions.create(max_tokens=16, **other).choices[0].message.content
        assert zeros != answer.choices[0].message.content
        left = 256 - prompt - message
        assert client.chat.completions.create(max_tokens=left, **ask).usage.completion_tokens == left
        with pytest.raises(openai.BadRequestError, match=f"so expected at most {left}"):
            client.chat.completions.create(max_tokens=left + 1, **ask)
        other = {**ask, "extra_body": {"sharer_messages": [{"role": "user", "content": "Who? " * 40}]}}
        with pytest.raises(openai.BadRequestError, match="context window"):
            client.chat.completions.create(max_tokens=1, **other)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_stock_transformers_serve_answers(atlas, tmp_path):
    model, processor = atlas
    for part, folder in ((model, ""), (model.receiver, "receiver"), (model.sharer, "sharer")):
        part.save_pretrained(tmp_path / folder)
    processor.save_pretrained(tmp_path)
    command = ["-m", "transformers.cli.transformers", "serve", str(tmp_path), "--trust-remote-code"]
    command += ["--port", str(free_port())]
    with started(*command, PYTHONPATH="") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        ask = {"model": str(tmp_path), "messages": ASKED, "temperature": 0, "max_tokens": 64}
        assert client.chat.completions.create(**ask).choices[0].message.content == expected(atlas)
        stopped = (
            client.chat.completions.create(stop=[expected(atlas)[3:5]], **ask).choices[0].message.content
        )
        assert stopped in (expected(atlas), expected(atlas)[:5])
