"""A model that cannot be loaded, over the wire: the error names it and says what to do."""

import json

import pytest
from huggingface_hub import constants

from h2c_hf.cli import main


TRAIN = ["train", "atlas", "--output_dir", "out", "--sharer"]


@pytest.mark.parametrize("arguments", [["chat", "u/none"], [*TRAIN, "u/none"]], ids=["chat", "train"])
def test_a_model_that_is_not_on_the_hub_is_named(hub, online, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "'u/none' was not loaded: there is no such model on the Hub" in told and "hf auth login" in told


def test_a_bridge_whose_sharer_is_missing_names_the_sharer(hub, online, bridge, capsys):
    config = json.loads((bridge / "config.json").read_text())
    (bridge / "config.json").write_text(json.dumps({**config, "sharer_model_id": "u/none"}))
    assert main(["chat", str(bridge)]) == 2
    assert "The Sharer 'u/none' was not loaded: there is no such model on the Hub" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_named(hub, online, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    assert main([*TRAIN, "u/none"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert (
        "The Sharer 'u/none' was not loaded" in told
        and "http://127.0.0.1:9 cannot be reached. Check the network" in told
    )
