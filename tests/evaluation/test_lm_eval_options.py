"""Options, refusals and the command of lm-eval's model on the Atlas pair that ships."""

import json
import re
import subprocess
import sys

import pytest
import torch
from lm_eval.api.model import CachingLM
from lm_eval_requests import QUESTIONS, chat, requests, text_of
from pairs import byte_tokenizer
from source import ATLAS_BRIDGE

from h2c_hf.evaluation import lm_eval_model
from h2c_hf.evaluation.lm_eval_command import with_model
from h2c_hf.evaluation.lm_eval_model import H2CLM
from h2c_hf.evaluation.lm_eval_prompts import encode, newest, pack
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.prompts import choice_prompt, user_turn


def test_cached_answers_are_given_back(atlas, tmp_path, monkeypatch):
    lm = H2CLM(atlas)
    asked = requests(
        "loglikelihood", [(chat(lm, choice_prompt(question)), "A") for question in QUESTIONS[:3]]
    )
    first = CachingLM(lm, str(tmp_path / "answers.db")).loglikelihood(asked)
    monkeypatch.setattr(H2CLM, "loglikelihood", None)
    again = CachingLM(H2CLM(atlas), str(tmp_path / "answers.db")).loglikelihood(asked)
    assert [tuple(row) for row in again] == first


def test_bad_requests_are_refused(atlas):
    with pytest.raises(ValueError, match="no method 'telepathy'; expected one of receiver, text_to_text"):
        H2CLM(atlas, "telepathy")
    with pytest.raises(ValueError, match="batch_size is 'some'; expected a whole number"):
        H2CLM(atlas, batch_size="some")
    with pytest.raises(ValueError, match="each model has its own"):
        H2CLM(atlas).chat_template("chatml")
    with pytest.raises(ValueError, match="continuation '' has no tokens"):
        H2CLM(atlas).loglikelihood(requests("loglikelihood", [("a b", "")]))
    with pytest.raises(ValueError, match="got a batch of 1, expected at least 2"):
        H2CLM(atlas, "shuffled").loglikelihood(requests("loglikelihood", [("a b", " c")]), disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metod": "h2c"}, "There is no model argument 'metod'; did you mean 'method'?"),
        ({"adaptor": "x"}, "There is no model argument 'adaptor'; did you mean 'adapter'?"),
        (
            {"enable_thinkin": False},
            "There is no model argument 'enable_thinkin'; did you mean 'enable_thinking'?",
        ),
        ({"pretrained": None}, "pretrained is missing; expected --model_args pretrained=BRIDGE"),
        ({"max_length": 1}, "max_length is 1; expected a whole number of tokens, at least 2"),
        ({"max_length": "long"}, "max_length is 'long'; expected a whole number"),
        ({"enable_thinking": False}, "'enable_thinking', a variable that neither chat template reads"),
        ({"parallelize": True}, "parallelize=True is for models that are loaded here"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of contexts, at least 1, or 'auto'"),
    ],
)
def test_model_arguments_that_cannot_be_are_refused(atlas, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        H2CLM(**{"pretrained": atlas, **arguments})


def test_model_arguments_go_before_the_commands_defaults(atlas):
    """lm-eval's command gives a batch size and a device whether or not somebody named them."""
    lm = H2CLM.create_from_arg_obj({"pretrained": atlas, "batch_size": 7}, {"batch_size": 1, "device": None})
    assert lm.batch_size == 7
    lm = H2CLM.create_from_arg_string(
        f"pretrained={ATLAS_BRIDGE},dtype=float32,parallelize=True,batch_size=3", {"batch_size": 1}
    )
    assert lm.batch_size == 3 and lm.loglikelihood(requests("", [("a b", " c")]), disable_tqdm=True)


def test_parallelize_spreads_the_models(atlas, monkeypatch):
    asked = []
    monkeypatch.setattr(
        lm_eval_model, "load_pair", lambda name, **arguments: asked.append(arguments["device_map"]) or atlas
    )
    for parallelize in (True, False):
        H2CLM("somewhere", device="cpu", parallelize=parallelize)
    assert asked == ["auto", "cpu"]


def test_an_automatic_batch_size_halves_when_memory_runs_out(atlas):
    """A Receiver that has memory for three rows at a time."""
    assert [H2CLM(atlas, batch_size="auto", max_batch_size=most).batch_size for most in (8, None)] == [8, 64]
    asked = [("a " * n, " b") for n in range(2, 12)] + [("a a", " c")]
    expected = H2CLM(atlas, batch_size=2).loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)

    def run_out(module, args, kwargs):
        if kwargs["input_ids"].shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = atlas[0].receiver.base_model.register_forward_pre_hook(run_out, with_kwargs=True)
    try:
        lm = H2CLM(atlas, batch_size="auto", max_batch_size=8)
        found = lm.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
        assert lm.batch_size == 2
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
        kind = {"until": [], "max_gen_toks": 2}
        lm = H2CLM(atlas, batch_size="auto:4")
        texts = lm.generate_until(
            requests("generate_until", [(text, kind) for text, _ in asked]), disable_tqdm=True
        )
        assert len(texts) == len(asked) and lm.batch_size <= 3
        alone, halved = (H2CLM(atlas, batch_size=size, max_length=8) for size in (1, "auto"))
        for lm in (alone, halved):
            lm.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
        # No prompt is counted again in a second attempt.
        assert halved.shortened == alone.shortened and alone.shortened["receiver"] > 1
        with pytest.raises(torch.OutOfMemoryError):
            H2CLM(atlas, batch_size=8).loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    finally:
        hook.remove()


@pytest.mark.parametrize("role", ["receiver", "sharer"])
def test_a_maximal_length_is_that_of_both_windows(atlas, role):
    lm, kind = H2CLM(atlas, role, max_length=40), {"until": [], "max_gen_toks": 8}
    text = text_of(20)
    tail = lm.tokenizer.decode(newest(lm.tokenizer, text, 40 - 8)[0])
    whole = H2CLM(atlas, role).generate_until(requests("generate_until", [(tail, kind)]), disable_tqdm=True)
    assert lm.generate_until(requests("generate_until", [(text, kind)]), disable_tqdm=True) == whole
    assert lm.shortened[role] == 1
    both = H2CLM(atlas, max_length=40)
    both.generate_until(requests("generate_until", [(text, kind)]), disable_tqdm=True)
    assert both.shortened == {"receiver": 1, "sharer": 1}


def test_a_begin_token_is_added_as_asked(atlas):
    for role in ("receiver", "sharer"):
        tokenizer = H2CLM(atlas, role).tokenizer
        plain = tokenizer("a b", add_special_tokens=False)["input_ids"]
        begun = plain if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *plain]
        assert encode(tokenizer, "a b", add_bos_token=False) == plain
        assert encode(tokenizer, "a b", add_bos_token=True) == begun
        assert encode(tokenizer, "a b") == tokenizer("a b")["input_ids"]
        assert encode(tokenizer, pack(user_turn("a")), add_bos_token=True) == encode(
            tokenizer, pack(user_turn("a"))
        )
    plain_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer = byte_tokenizer(["<s>", "</s>"], bos="<s>", eos_token="</s>", chat_template=plain_template)
    plain = tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert (
        encode(tokenizer, "a b")
        == encode(tokenizer, "a b", add_bos_token=True)
        == [tokenizer.bos_token_id, *plain]
    )
    assert (
        encode(tokenizer, "a b", add_bos_token=False)
        == encode(tokenizer, pack(user_turn("a b")), add_bos_token=True)
        == plain
    )
    role = "sharer"
    with_bos, without = (
        H2CLM(atlas, role, add_bos_token=given).loglikelihood(
            requests("", [("a b", " c")]), disable_tqdm=True
        )
        for given in (True, False)
    )
    assert with_bos != without


def test_plain_text_for_models_with_templates_is_warned_of_once(atlas, caplog):
    lm = H2CLM(atlas, "receiver")
    lm.loglikelihood(requests("loglikelihood", [(chat(lm, "a"), "b"), ("", "b")]), disable_tqdm=True)
    lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("a b",)]), disable_tqdm=True)
    assert "--apply_chat_template" not in caplog.text
    for _ in range(2):
        lm.loglikelihood(requests("loglikelihood", [("a", " b")]), disable_tqdm=True)
    assert caplog.text.count("without --apply_chat_template") == 1


def test_the_command_implies_run_and_the_model():
    assert with_model(["--tasks", "x"]) == ["run", "--model", "h2c", "--tasks", "x"]
    assert with_model(["run", "-M", "hf"]) == ["run", "-M", "hf"]
    assert with_model(["--model=hf"]) == ["run", "--model=hf"]
    assert with_model(["ls", "tasks"]) == ["ls", "tasks"]
    assert with_model([]) == []


def lm_eval(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "h2c_hf.cli", "lm-eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow  # lm-eval reads all of its own tasks first
def test_the_command_runs_a_local_task(atlas, tasks, tmp_path):
    result = lm_eval(
        "--model_args", f"pretrained={ATLAS_BRIDGE},method=h2c,dtype=float32", "--tasks", "atlas_choice",
        "--include_path", tasks, "--apply_chat_template", "--batch_size", 64, "--limit", 60, "--output_path",
        tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "atlas_choice" in result.stdout
    [path] = tmp_path.rglob("results_*.json")
    report = json.loads(path.read_text())
    expected = evaluate(*atlas, QUESTIONS[:60], ["h2c"])["h2c"]["correct"].mean()
    assert report["results"]["atlas_choice"]["acc,none"] == pytest.approx(expected)
    assert report["config"]["method"] == "h2c"


def test_a_mistake_is_told_in_a_sentence():
    result = lm_eval(
        "--model_args",
        f"pretrained={ATLAS_BRIDGE}",
        "--tasks",
        "atlas_choice",
        "--fewshot_as_multiturn",
        "true",
    )
    assert result.returncode == 2
    assert "h2c: When `fewshot_as_multiturn` is True, `apply_chat_template` must be set." in result.stderr
    assert "Traceback" not in result.stderr
