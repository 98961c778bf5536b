"""What a Llama's licence asks for: known from the ids, checked before a push, and in the repo after it."""

import json
from pathlib import Path

import pytest

from h2c_hf.cli import main
from h2c_hf.hub.licence import attribution, built_with, follows_in_name, llama_version
from h2c_hf.modeling import H2CBridgeConfig


PAIR = {"sharer_model_id": "meta-llama/Llama-3.1-8B-Instruct", "receiver_model_id": "Qwen/Qwen2.5-0.5B-Instruct"}
NOTICE = "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
AGREEMENT = b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n..."


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "3.1"), ("meta-llama/Meta-Llama-3-8B", "3"), ("meta-llama/Llama-3.2-1B", "3.2"),
        ("someone/llama3.3-70b-nf4", "3.3"), ("meta-llama/Llama-2-7b-hf", "2"), ("meta-llama/Llama-4-Scout-17B-16E", "4"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", None), ("codellama/CodeLlama-7b-hf", None), ("huggyllama/llama-30b", None),
        ("openlm-research/open_llama_3b", None), ("meta-llama/whatever", None), ("Qwen/Qwen2.5-0.5B", None), ("./sharer", None),
    ],
)  # fmt: skip
def test_the_version_is_told_by_the_id(model, version):
    assert llama_version(H2CBridgeConfig(sharer_model_id=model)) == version
    assert llama_version(H2CBridgeConfig(sharer_model_id="x/y", receiver_model_id=model)) == version


def test_a_derivative_is_told_by_the_licence_that_is_given():
    config = H2CBridgeConfig(sharer_model_id="deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert (llama_version(config), llama_version(config, "llama3.1"), llama_version(config, "mit")) == (None, "3.1", None)


def test_each_version_has_its_own_words():
    assert attribution("3.1") + "\n" == NOTICE
    assert attribution("3").startswith("Meta Llama 3 is licensed under the Meta Llama 3 Community License,")
    assert (built_with("3"), built_with("3.3")) == ("Built with Meta Llama 3", "Built with Llama")
    assert follows_in_name("Llama-3-bridge", "3") and not follows_in_name("Llama-bridge", "3")
    assert follows_in_name("llama_bridge", "3.1") and not follows_in_name("my-llama", "3.1") and follows_in_name("bridge", "2")


@pytest.fixture
def llama(bridge):
    """The Atlas bridge, as if it were one between the reference models."""
    config = json.loads((bridge / "config.json").read_text())
    (bridge / "config.json").write_text(json.dumps({**config, **PAIR}))
    return bridge


@pytest.fixture
def meta(hub, online):
    """The Llama's own repo, with its agreement."""
    hub.tokens["hf_meta"] = "meta-llama"
    online.create_repo(PAIR["sharer_model_id"], token="hf_meta")
    online.upload_file(path_or_fileobj=AGREEMENT, path_in_repo="LICENSE", repo_id=PAIR["sharer_model_id"], token="hf_meta")
    hub.requests.clear()


def test_agreement_and_notice_lie_in_the_repo(hub, online, llama, meta):
    assert main(["push", str(llama), "u/Llama-bridge"]) == 0
    files = hub.repos["u/Llama-bridge"].files()
    assert files["LICENSE"] == AGREEMENT and files["NOTICE"].decode() == NOTICE
    assert b"license: llama3.1" in files["README.md"] and b"**Built with Llama.**" in files["README.md"]


def test_a_name_that_the_licence_forbids_is_refused_before_anything_is_sent(hub, online, llama, capsys):
    assert main(["push", str(llama), "u/bridge"]) == 2
    assert "begin with 'Llama'; got 'u/bridge', expected for instance 'u/Llama-bridge'" in capsys.readouterr().err
    assert not hub.requests


def test_without_the_agreement_nothing_is_sent_and_a_copy_in_the_folder_serves(hub, online, llama, capsys):
    assert main(["push", str(llama), "u/Llama-bridge"]) == 2
    assert f"expected it as {llama / 'LICENSE'}" in capsys.readouterr().err and not hub.repos
    (llama / "LICENSE").write_bytes(AGREEMENT)
    assert main(["push", str(llama), "u/Llama-bridge"]) == 0
    assert hub.repos["u/Llama-bridge"].files()["LICENSE"] == AGREEMENT


def test_another_pair_brings_neither(hub, online, bridge):
    assert main(["push", str(bridge), "u/bridge", "--license", "apache-2.0"]) == 0
    assert not {"LICENSE", "NOTICE"} & set(hub.repos["u/bridge"].files())


def test_training_that_pushes_is_refused_before_it_begins(online, tmp_path, monkeypatch, capsys):
    """The pair's config alone says so: no weights are read."""
    monkeypatch.setattr("h2c_hf.training.pair.Pair.bridge_config", lambda self: H2CBridgeConfig(**PAIR))
    config = str(Path(__file__).parents[2] / "hub_configs" / "atlas" / "training.yaml")
    train = ["train", config, f"--output_dir={tmp_path / 'bridge'}", "--push_to_hub=true"]
    assert main([*train, "--hub_model_id=u/bridge"]) == 2
    assert "begin with 'Llama'" in capsys.readouterr().err
    assert main([*train, "--hub_model_id=u/Llama-bridge"]) == 2
    assert f"expected it as {tmp_path / 'bridge' / 'LICENSE'}" in capsys.readouterr().err
