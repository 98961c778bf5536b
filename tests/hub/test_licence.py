"""What a Llama's licence asks for: known from the ids, checked before a push, and in the repo after it."""

import json
from pathlib import Path

import pytest

from h2c_hf.cli import main
from h2c_hf.hub.licence import attribution, built_with, follows_in_name, has_gemma, llama_version
from h2c_hf.modeling import H2CBridgeConfig


PAIR = {
    "sharer_model_id": "meta-llama/Llama-3.1-8B-Instruct",
    "receiver_model_id": "Qwen/Qwen2.5-0.5B-Instruct",
}
NOTICE = (
    "Llama 3.1 is licensed under the Llama 3.1 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
)
AGREEMENT = b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n..."


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "3.1"), ("meta-llama/Meta-Llama-3-8B", "3"),
        ("meta-llama/Llama-3.2-1B", "3.2"), ("someone/llama3.3-70b-nf4", "3.3"),
        ("meta-llama/Llama-2-7b-hf", "2"), ("meta-llama/Llama-4-Scout-17B-16E", "4"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", None), ("codellama/CodeLlama-7b-hf", None),
        ("huggyllama/llama-30b", None), ("openlm-research/open_llama_3b", None),
        ("meta-llama/whatever", None), ("Qwen/Qwen2.5-0.5B", None), ("./sharer", None),
    ],
)  # fmt: skip
def test_the_version_is_told_by_the_id(model, version):
    assert llama_version(H2CBridgeConfig(sharer_model_id=model)) == version
    assert llama_version(H2CBridgeConfig(sharer_model_id="x/y", receiver_model_id=model)) == version


def test_a_derivative_is_told_by_the_licence_that_is_given():
    config = H2CBridgeConfig(sharer_model_id="deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert (llama_version(config), llama_version(config, "llama3.1"), llama_version(config, "mit")) == (
        None,
        "3.1",
        None,
    )


def test_each_version_has_its_own_words():
    assert attribution("3.1") + "\n" == NOTICE
    assert attribution("3").startswith("Meta Llama 3 is licensed under the Meta Llama 3 Community License,")
    assert (built_with("3"), built_with("3.3")) == ("Built with Meta Llama 3", "Built with Llama")
    assert follows_in_name("Llama-3-bridge", "3") and not follows_in_name("Llama-bridge", "3")
    assert (
        follows_in_name("llama_bridge", "3.1")
        and not follows_in_name("my-llama", "3.1")
        and follows_in_name("bridge", "2")
    )


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
    online.upload_file(
        path_or_fileobj=AGREEMENT, path_in_repo="LICENSE", repo_id=PAIR["sharer_model_id"], token="hf_meta"
    )
    hub.requests.clear()


def test_agreement_and_notice_lie_in_the_repo(hub, online, llama, meta):
    assert main(["push", str(llama), "u/Llama-bridge"]) == 0
    files = hub.repos["u/Llama-bridge"].files()
    assert files["LICENSE"] == AGREEMENT and files["NOTICE"].decode() == NOTICE
    assert b"license: llama3.1" in files["README.md"] and b"**Built with Llama.**" in files["README.md"]


def test_a_name_that_the_licence_forbids_is_refused_before_anything_is_sent(hub, online, llama, capsys):
    assert main(["push", str(llama), "u/bridge"]) == 2
    assert (
        "begin with 'Llama'; got 'u/bridge', expected for instance 'u/Llama-bridge'"
        in capsys.readouterr().err
    )
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


# Gemma

GEMMA = {"sharer_model_id": "google/gemma-3-270m", "receiver_model_id": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("google/gemma-3-270m", True), ("google/gemma-2-2b-it", True), ("google/gemma-7b", True),
        ("google/gemma-1.1-2b-it", True), ("google/codegemma-2b", True), ("google/gemma-3n-E2B-it", True),
        ("someone/Gemma3-finetune", True), ("google/t5gemma-2b", True), ("google/gemma-4-E2B-it", False),
        ("google/medgemma-4b-it", False), ("gemma/other-model", False), ("Qwen/Qwen2.5-0.5B", False),
    ],
)  # fmt: skip
def test_a_gemma_is_known_by_its_id(model, found):
    assert has_gemma(H2CBridgeConfig(sharer_model_id=model)) is found
    assert has_gemma(H2CBridgeConfig(sharer_model_id="x/y", receiver_model_id=model)) is found


@pytest.fixture
def gemma(bridge):
    """The Atlas bridge, as if it were one between Gemma and SmolLM2."""
    config = json.loads((bridge / "config.json").read_text())
    (bridge / "config.json").write_text(json.dumps({**config, **GEMMA}))
    return bridge


def test_terms_notice_and_restrictions_of_gemma_go_along(hub, online, gemma):
    assert main(["push", str(gemma), "u/gemma-3-270m_to_smollm2-135m"]) == 0
    files = {
        name: content.decode()
        for name, content in hub.repos["u/gemma-3-270m_to_smollm2-135m"].files().items()
        if name[0].isupper()
    }
    notice = (
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    )
    assert files["NOTICE"].splitlines()[0] == notice and notice in files["README.md"]
    assert "3.1 Distribution and Redistribution" in files["GEMMA_TERMS.md"]
    for name in ("NOTICE", "README.md"):
        assert "ai.google.dev/gemma/prohibited_use_policy" in files[name]
    assert "license: gemma\n" in files["README.md"] and "endorsed by Google" in files["README.md"]


@pytest.mark.parametrize("name", ["google-bridge", "official_gemma", "gemma-by-Google"])
def test_a_name_that_suggests_endorsement_is_refused(hub, online, gemma, capsys, name):
    assert main(["push", str(gemma), f"u/{name}"]) == 2
    assert "forbid to suggest an endorsement by Google" in capsys.readouterr().err
    assert not hub.requests


def test_a_pair_of_llama_and_gemma_follows_both(hub, online, llama, meta):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "receiver_model_id": "google/gemma-3-270m"}))
    assert main(["push", str(llama), "u/Llama-to-gemma"]) == 0
    files = hub.repos["u/Llama-to-gemma"].files()
    assert files["LICENSE"] == AGREEMENT and "GEMMA_TERMS.md" in files
    assert (
        files["NOTICE"].decode().startswith(NOTICE) and "Gemma is provided under" in files["NOTICE"].decode()
    )


def test_training_that_pushes_is_refused_before_it_begins(online, tmp_path, monkeypatch, capsys):
    """The pair's config alone says so: no weights are read."""
    monkeypatch.setattr("h2c_hf.pair.Pair.bridge_config", lambda self: H2CBridgeConfig(**PAIR))
    config = str(Path(__file__).parents[2] / "hub_configs" / "atlas" / "training.yaml")
    train = ["train", config, f"--output_dir={tmp_path / 'bridge'}", "--push_to_hub=true"]
    assert main([*train, "--hub_model_id=u/bridge"]) == 2
    assert "begin with 'Llama'" in capsys.readouterr().err
    assert main([*train, "--hub_model_id=u/Llama-bridge"]) == 2
    assert f"expected it as {tmp_path / 'bridge' / 'LICENSE'}" in capsys.readouterr().err
