"""The middleware that makes both prompts for vLLM's server: it does not import vLLM."""

import asyncio
import json
import subprocess
import sys

import pytest
from pairs import join, tiny_model, tiny_processor
from servers import ASKED, QUESTION, ROOT
from transformers import GenerationConfig

from h2c_hf.serving.middleware import REFUSED, H2CMiddleware
from h2c_hf.serving.openai_requests import CHAT, COMPLETIONS, RESPONSES, BadRequestError


ATLAS = str(ROOT / "hub_configs" / "atlas")
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}


async def echo(scope, receive, send):
    """The server behind the middleware: answers with the body that it gets."""
    body = (await receive())["body"]
    assert dict(scope["headers"])[b"content-length"] == str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def middleware():
    return H2CMiddleware(echo, ATLAS, max_bytes=2**16)


def post(middleware, path: str, body: bytes) -> tuple[int, dict]:
    """One request through the middleware."""
    sent = []

    async def run():
        pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
        messages = [
            {"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]} for piece in pieces
        ]
        forever = asyncio.Event()

        async def receive():
            if messages:
                return messages.pop(0)
            await forever.wait()

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await middleware({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)

    asyncio.run(run())
    return sent[0]["status"], json.loads(sent[1]["body"])


def passed(middleware, path: str, **body) -> dict:
    status, answer = post(middleware, path, json.dumps(body).encode())
    assert status == 200, answer
    return answer


def rows(processor, messages, sharer_messages=None, **template) -> tuple[list[int], list[int]]:
    inputs = processor.apply_chat_template(messages, sharer_messages, **template)
    return inputs["input_ids"][0].tolist(), inputs["sharer_input_ids"][0].tolist()


def test_it_imports_no_vllm():
    code = (
        "import sys, h2c_hf.serving.middleware; "
        "print([name for name in ('vllm', 'fastapi', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "messages",
    [
        ASKED,
        [
            {"role": "system", "content": "Be brief."},
            *ASKED,
            {"role": "assistant", "content": "Algeria"},
            *ASKED,
        ],
        [{"role": "user", "content": "What does </s><assistant> mean?"}],
    ],
    ids=["one turn", "several turns", "special tokens in a message"],
)
def test_chat_gets_the_tokens_of_the_processor(middleware, atlas, messages):
    body = passed(middleware, CHAT, messages=messages, temperature=0)
    ids, sharer_ids = rows(atlas[1], messages)
    assert body["kv_transfer_params"] == {
        "prompt_token_ids": ids,
        "sharer_input_ids": sharer_ids,
        "control": None,
    }
    assert body["messages"] == messages and body["temperature"] == 0


def test_text_parts_and_tools(middleware, atlas):
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Where is"}, {"type": "text", "text": "Bensekrane?"}],
        }
    ]
    body = passed(middleware, CHAT, messages=parts, tools=[TOOL])
    joined = [{"role": "user", "content": "Where is\nBensekrane?"}]
    assert body["kv_transfer_params"]["prompt_token_ids"] == rows(atlas[1], joined, tools=[TOOL])[0]


def test_tool_calls_of_earlier_turns_are_rendered(middleware, atlas):
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "look_up", "arguments": '{"city": "Bensekrane"}'},
    }
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "DZ"},
    ]
    assert passed(middleware, CHAT, messages=messages)["kv_transfer_params"]["prompt_token_ids"]


def test_only_the_sharer_reads_sharer_messages(middleware, atlas):
    private = [{"role": "user", "content": "Bensekrane is in Algeria."}]
    body = passed(middleware, CHAT, messages=ASKED, sharer_messages=private, control="zeros")
    ids, sharer_ids = rows(atlas[1], ASKED, private)
    assert body["kv_transfer_params"] == {
        "prompt_token_ids": ids,
        "sharer_input_ids": sharer_ids,
        "control": "zeros",
    }
    assert "sharer_messages" not in body and "control" not in body


def test_completions_become_token_ids(middleware, atlas):
    body = passed(middleware, COMPLETIONS, prompt=QUESTION, sharer_prompt="Bensekrane is in Algeria.")
    inputs = atlas[1](QUESTION, "Bensekrane is in Algeria.")
    assert body["prompt"] == inputs["input_ids"][0].tolist()
    assert body["kv_transfer_params"]["sharer_input_ids"] == inputs["sharer_input_ids"][0].tolist()


@pytest.mark.parametrize(
    "given", [QUESTION, ASKED, [{"type": "input_text", "text": QUESTION}], [{"type": "message", **ASKED[0]}]]
)
def test_responses_keep_their_input(middleware, atlas, given):
    body = passed(middleware, RESPONSES, input=given, instructions="Be brief.")
    ids, sharer_ids = rows(atlas[1], [{"role": "system", "content": "Be brief."}, *ASKED])
    assert (
        body["kv_transfer_params"] == {"input_ids": ids, "sharer_input_ids": sharer_ids, "control": None}
        and body["input"] == given
    )


def test_h2c_false_passes_the_request_on(middleware):
    body = passed(middleware, CHAT, messages=ASKED, h2c=False, prompt_logprobs=1, temperature=1)
    assert body == {
        "messages": ASKED,
        "prompt_logprobs": 1,
        "temperature": 1,
        "kv_transfer_params": {"h2c": False},
    }


def test_the_default_is_greedy_unless_the_bridge_samples(middleware, fetched_pair):
    """As with `h2c serve`. vLLM's own default is a temperature of 1."""
    assert passed(middleware, CHAT, messages=ASKED)["temperature"] == 0
    assert passed(middleware, CHAT, messages=ASKED, h2c=False)["temperature"] == 0
    assert passed(middleware, CHAT, messages=ASKED, temperature=0.5)["temperature"] == 0.5
    assert "temperature" not in passed(middleware, CHAT, messages=ASKED, n=2)
    GenerationConfig(do_sample=True).save_pretrained(fetched_pair)
    assert "temperature" not in passed(H2CMiddleware(echo, fetched_pair), CHAT, messages=ASKED)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "prompt"])
def test_what_vllm_would_answer_without_the_bridge_is_refused(middleware, name):
    with pytest.raises(BadRequestError, match=f"{name} is given"):
        middleware.with_prompts({"messages": ASKED, name: 1 if name != "best_of" else 3}, CHAT)


@pytest.mark.parametrize(
    "path, body, status, says",
    [
        (CHAT, b"{", 400, "not JSON"),
        (CHAT, b'{"a": "' + b"a" * 2**17 + b'"}', 413, "more than 65,536 bytes"),
        (CHAT, b'{"messages": []}', 400, "empty list"),
        (
            CHAT,
            json.dumps(
                {"messages": ASKED, "sharer_messages": [{"role": "user", "content": "Who? " * 600}]}
            ).encode(),
            400,
            "is 512",
        ),
        (CHAT, json.dumps({"messages": ASKED, "add_generation_prompt": False}).encode(), 400, "kickstart"),
        (
            CHAT,
            json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}).encode(),
            400,
            "text parts only",
        ),
        (
            CHAT,
            json.dumps({"messages": ASKED, "h2c": False, "kv_transfer_params": {}}).encode(),
            400,
            "this server sets them",
        ),
        (COMPLETIONS, b'{"prompt": ["a", "b"]}', 400, "prompt is a list"),
        (COMPLETIONS, b'{"prompt": "a", "sharer_messages": []}', 400, "expected sharer_prompt"),
        (RESPONSES, b'{"input": [{"type": "item_reference"}]}', 400, "item_reference"),
    ],
)
def test_a_request_that_cannot_be_bridged_gets_a_4xx(middleware, path, body, status, says):
    got, answer = post(middleware, path, body)
    assert got == status and says in answer["error"]["message"], answer


@pytest.fixture
def fetched_pair(tmp_path, monkeypatch):
    """The folder of a message-form bridge that names a Sharer that `h2c models fetch` got."""
    monkeypatch.setenv("H2C_MODELS_DIR", str(tmp_path / "models"))
    processor = tiny_processor()
    model = join(tiny_model("llama", 1), tiny_model("qwen2", 2), bridge_form="message")
    model.sharer.save_pretrained(tmp_path / "models" / "gemma-3-270m")
    model.receiver.save_pretrained(tmp_path / "receiver")
    model.config.sharer_model_id = "google/gemma-3-270m"
    model.config.receiver_model_id = str(tmp_path / "receiver")
    model.save_pretrained(tmp_path / "bridge")
    processor.save_pretrained(tmp_path / "bridge")
    return str(tmp_path / "bridge")


def test_a_fetched_sharer_is_found_and_a_message_gets_placeholders(fetched_pair):
    middleware = H2CMiddleware(echo, fetched_pair)
    assert middleware.sharer_window == 256
    private = [{"role": "user", "content": "Bensekrane is in Algeria."}]
    ids, sharer_ids = rows(middleware.processor, ASKED, private)
    placeholders = [ids[0]] * len(sharer_ids)
    params = passed(middleware, CHAT, messages=ASKED, sharer_messages=private)["kv_transfer_params"]
    assert params["prompt_token_ids"] == placeholders + ids
    assert params["sharer_input_ids"] == sharer_ids and params["message_tokens"] == len(sharer_ids)
    body = passed(middleware, COMPLETIONS, prompt=QUESTION)
    inputs = middleware.processor(QUESTION)
    assert body["prompt"][inputs["sharer_input_ids"].shape[1] :] == inputs["input_ids"][0].tolist()
    status, answer = post(middleware, RESPONSES, json.dumps({"input": QUESTION}).encode())
    assert status == 400 and "use /v1/chat/completions" in answer["error"]["message"]


def test_other_paths_are_left_alone(middleware):
    assert post(middleware, "/tokenize", b'{"prompt": "a"}') == (200, {"prompt": "a"})


def test_a_missing_bridge_is_told(monkeypatch):
    monkeypatch.delenv("H2C_BRIDGE", raising=False)
    with pytest.raises(ValueError, match="H2C_BRIDGE is not set"):
        H2CMiddleware(echo)
