"""Push over the wire, and what a stranger's process then gets: from an empty cache, without this package."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from server import Fault

from h2c_hf.cli import main
from h2c_hf.hub import model_card
from h2c_hf.hub.push import push
from h2c_hf.modeling import H2CForCausalLM, H2CProcessor


ATLAS = Path(__file__).parents[2] / "hub_configs" / "atlas"
QUESTION = [{"role": "user", "content": "In which country is the city of Bensekrane?"}]
# Loads all four and answers; then again from the cache alone, and other revisions.
STRANGER = """
import json, os, warnings
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

def loads(auto, **kwargs):
    try:
        return type(auto.from_pretrained("u/r", trust_remote_code=True, **kwargs)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def answer(**kwargs):
    model = AutoModelForCausalLM.from_pretrained("u/r", trust_remote_code=True, **kwargs)
    processor = AutoProcessor.from_pretrained("u/r", trust_remote_code=True, **kwargs)
    inputs = processor.apply_chat_template(QUESTION)
    return model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()

autos = (AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor)
found = {"classes": [loads(auto) for auto in autos], "answer": answer()}
found["branch"] = answer(revision="dev", code_revision="main")
found["dropout"] = [
    AutoConfig.from_pretrained("u/r", trust_remote_code=True, revision=r).dropout for r in ("main", "dev")
]
found["local_files_only"] = answer(local_files_only=True)
found["another cache"] = loads(AutoModel, cache_dir="other", local_files_only=True)
found["no token"] = loads(AutoConfig, cache_dir="third", token=False)
found["wrong revision"] = loads(AutoConfig, revision="nowhere")
found["wrong code revision"] = loads(AutoConfig, code_revision="nowhere")
found["in cache_dir"] = [loads(AutoModel, cache_dir="fourth"), os.path.isdir("fourth/models--u--r")]
print(json.dumps(found))
"""


@pytest.fixture
def pushed(hub, online, bridge):
    assert main(["push", str(bridge), "u/r", "--private"]) == 0
    return bridge


def test_a_pushed_repo_holds_what_it_needs_and_no_pickle(hub, online, bridge, capsys):
    (bridge / "checkpoint-2").mkdir()
    (bridge / "_checkpoint-4.part").mkdir()
    for name in (
        "checkpoint-2/model.safetensors",
        "_checkpoint-4.part/config.json",
        "training_args.bin",
        "generations.jsonl",
        ".token.json",
    ):
        (bridge / name).write_text("x")
    report = ATLAS / "report.json"
    assert main(["push", str(bridge), "u/r", "--private", "--report", str(report)]) == 0
    repo = hub.repos["u/r"]
    assert repo.private and f"{hub.endpoint}/u/r/commit/{repo.branches['main']}" in capsys.readouterr().out
    expected = {path.relative_to(ATLAS).as_posix() for path in ATLAS.rglob("*") if path.is_file()} - {
        "training.yaml",
        "evaluation.yaml",
        "items.parquet",
    }
    assert set(repo.files()) == expected | {"README.md", "figures/accuracy.png"}
    assert (
        repo.files()["README.md"] == (bridge / "README.md").read_bytes()
        and b"model-index" in repo.files()["README.md"]
    )
    assert repo.files()["model.safetensors"] == (ATLAS / "model.safetensors").read_bytes()
    assert len(repo.commits) == 2, "the first commit that is made with the repo, and one"


def test_a_stranger_loads_it_and_gets_the_same_answer(hub, pushed, fresh):
    config = json.loads((pushed / "config.json").read_text())
    (pushed / "config.json").write_text(json.dumps({**config, "dropout": 0.25}))
    assert main(["push", str(pushed), "u/r", "--revision", "dev"]) == 0
    output = fresh(f"QUESTION = {QUESTION}\n{STRANGER}")
    found = json.loads(output.splitlines()[-1])
    model = H2CForCausalLM.from_pretrained(ATLAS, dtype=torch.float32).eval()
    processor = H2CProcessor.from_pretrained(ATLAS)
    expected = model.generate(**processor.apply_chat_template(QUESTION), max_new_tokens=8, do_sample=False)[
        0
    ].tolist()
    assert found["classes"] == ["H2CBridgeConfig", "H2CBridgeModel", "H2CForCausalLM", "H2CProcessor"]
    assert found["answer"] == found["branch"] == found["local_files_only"] == expected
    assert found["dropout"] == [0.0, 0.25]
    assert "OSError" in found["another cache"] and "OSError" in found["no token"]
    assert "nowhere" in found["wrong revision"] and "nowhere" in found["wrong code revision"]
    assert found["in cache_dir"] == ["H2CBridgeModel", True]


def test_model_and_processor_push_themselves(hub, online, atlas):
    model, processor = atlas
    online.create_repo("u/own")
    model.push_to_hub("u/own", token="hf_u")
    processor.push_to_hub("u/own", token="hf_u", revision="dev")
    processor.push_to_hub("u/own", token="hf_u")
    files = hub.repos["u/own"].files()
    code = {"configuration_h2c.py", "modeling_h2c_bridge.py", "modeling_h2c.py", "processing_h2c.py"}
    tokenizers = {
        f"{role}_tokenizer/{name}"
        for role in ("sharer", "receiver")
        for name in ("tokenizer.json", "tokenizer_config.json")
    }
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
    } | code | tokenizers <= set(files)
    assert "sharer_tokenizer/tokenizer.json" in hub.repos["u/own"].files("dev")


# What is refused before anything is sent


@pytest.mark.parametrize("options", [[], ["--dry_run"]], ids=["push", "dry run"])
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "{bridge} holds no config.json"),
        ("model.safetensors", "{bridge} holds no model.safetensors"),
        ("processor_config.json", "{bridge} holds no processor_config.json"),
        ("modeling_h2c.py", "{bridge} lacks the code modeling_h2c.py"),
        ("sharer/config.json", "{bridge} holds no such folder with a model in it"),
    ],
)
def test_a_folder_that_would_not_work_is_refused_by_its_name(
    hub, online, bridge, missing, message, options, capsys
):
    (bridge / missing).unlink()
    assert main(["push", str(bridge), "u/r", *options]) == 2
    assert message.format(bridge=bridge) in capsys.readouterr().err and not hub.requests


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", "{"), ("report.json", "{"), ("report.json", "[]")]
)
def test_a_dry_run_names_the_file_that_is_broken(hub, online, bridge, name, content, capsys):
    (bridge / name).write_text(content)
    assert main(["push", str(bridge), "u/r", "--dry_run"]) == 2
    assert str(bridge / name) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/somewhere/llama", "../llama", "~/llama", "models/a/llama", None])
def test_a_base_model_that_nobody_else_has_is_refused(hub, online, bridge, name, capsys):
    config = json.loads((bridge / "config.json").read_text())
    (bridge / "config.json").write_text(json.dumps({**config, "sharer_model_id": name}))
    assert main(["push", str(bridge), "u/r"]) == 2
    assert "which nobody else can load; expected a Hub id" in capsys.readouterr().err and not hub.requests


CHECK = [("POST", "/api/validate-yaml", None)]


@pytest.mark.parametrize(
    ("license", "words"),
    [
        ("no-such-licence", '"license" must be one of apache-2.0, mit,'),
        ("other", '"license_name" is required'),
    ],
)
def test_a_card_that_the_hub_refuses_is_refused_before_anything_is_made_or_sent(
    hub, online, bridge, license, words, capsys
):
    assert main(["push", str(bridge), "u/r", "--license", license]) == 2
    error = capsys.readouterr().err
    assert (
        f"The Hub refuses the model card {bridge / 'README.md'}: {words}" in error
        and len(error.splitlines()) == 1
    )
    assert hub.requests == CHECK and not hub.repos and not hub.blobs
    assert main(["push", str(bridge), "u/r", "--license", "mit"]) == 0


def test_front_matter_that_is_broken_is_refused_before_anything_is_made_or_sent(
    hub, online, bridge, monkeypatch, capsys
):
    template = model_card.TEMPLATE.read_text(encoding="utf-8")
    (bridge / "template").write_text(
        template.replace("{{ card_data }}", "{{ card_data }}\nbase_model_relation: [cousin]")
    )
    monkeypatch.setattr(model_card, "TEMPLATE", bridge / "template")
    assert main(["push", str(bridge), "u/r"]) == 2
    assert '"base_model_relation" must be a string' in capsys.readouterr().err
    assert hub.requests == CHECK and not hub.repos


def test_a_hub_that_checks_no_cards_is_told_of(hub, online, bridge, capsys):
    hub.fail(Fault("POST", "/api/validate-yaml", status=404))
    assert main(["push", str(bridge), "u/r"]) == 2
    assert (
        f"h2c: {hub.endpoint} has no /api/validate-yaml, and no card is committed unchecked"
        in capsys.readouterr().err
    )
    assert hub.requests == CHECK and not hub.repos


@pytest.mark.parametrize("repo", ["bridge", "a/b/c", "not an id"])
def test_a_repo_without_owner_is_refused_before_it_is_made(hub, online, bridge, repo, capsys):
    assert main(["push", str(bridge), repo]) == 2
    assert "expected 'user/name'" in capsys.readouterr().err
    assert not hub.requests and not hub.repos


def test_dry_run_prints_files_and_card_and_changes_nothing(hub, online, bridge, capsys):
    before = {path: path.read_bytes() for path in bridge.rglob("*") if path.is_file()}
    assert main(["push", str(bridge), "u/r", "--dry_run"]) == 0
    out, err = capsys.readouterr()
    size = f"{(bridge / 'model.safetensors').stat().st_size / 1e3:,.1f} kB"
    assert f"{size}  model.safetensors\n" in out and "figures/accuracy.png" in out
    assert 'from_pretrained("u/r", trust_remote_code=True)' in out
    assert f"h2c push {bridge} u/r\n" in err
    assert {path: path.read_bytes() for path in bridge.rglob("*") if path.is_file()} == before
    assert not hub.requests and not hub.repos


def test_a_card_written_by_hand_is_kept_unless_asked(hub, online, bridge, capsys):
    card = bridge / "README.md"
    assert main(["push", str(bridge), "u/r"]) == 0
    ours = card.read_text()
    assert main(["push", str(bridge), "u/s"]) == 0, "ours is written anew"
    assert "u/s" in card.read_text()
    for mine in ("# Mine\n", ours.replace("## The pair", "## My pair")):
        card.write_text(mine)
        assert main(["push", str(bridge), "u/r"]) == 0
        assert hub.repos["u/r"].files()["README.md"] == card.read_bytes() == mine.encode()
        assert "--overwrite_card replaces it" in capsys.readouterr().out
    assert main(["push", str(bridge), "u/r", "--overwrite_card"]) == 0
    assert card.read_text() == ours


# Faults


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("POST", "/commit/", status=401, times=9), "hf auth login"),
        (Fault("POST", "/commit/", status=403, times=9), "use one with write access to u/r"),
        (Fault("POST", "/preupload/", status=404, times=9), "check the id u/r and the token"),
        (Fault("POST", "/commit/", status=429, times=9), "wait some minutes and run the same command again"),
        (Fault("POST", "objects/batch", status=503, times=9), "run the same command again later"),
        (Fault("POST", "/api/validate-yaml", status=500, times=9), "run the same command again later"),
        (Fault("POST", "/api/repos/create", status=500, times=9), "run the same command again later"),
        (
            Fault("PUT", "/lfs/", cut_after=100_000, times=99),
            "run the same command again: it goes on with what is not yet uploaded",
        ),
        (Fault("POST", "/commit/", cut_after=1000, times=9), "what was there is as it was"),
    ],
    ids=lambda value: f"{value.path}-{value.status or 'cut'}" if isinstance(value, Fault) else "",
)
def test_a_fault_is_told_in_a_sentence_leaves_the_old_revision_and_the_next_push_completes(
    hub, online, bridge, fault, message, capsys
):
    push(bridge, "u/r")
    before = hub.repos["u/r"].branches["main"]
    weights = load_file(bridge / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()},
        bridge / "model.safetensors",
        metadata={"format": "pt"},
    )
    hub.fail(fault)
    capsys.readouterr()
    assert main(["push", str(bridge), "u/r"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("h2c: ")]
    assert len(lines) == 1 and lines[0].startswith("h2c: u/r was not pushed") and message in lines[0], lines
    assert hub.repos["u/r"].branches["main"] == before
    assert (
        Path(online.hf_hub_download("u/r", "model.safetensors")).read_bytes()
        == (ATLAS / "model.safetensors").read_bytes()
    )
    hub.faults.clear()
    assert main(["push", str(bridge), "u/r"]) == 0
    assert hub.repos["u/r"].files()["model.safetensors"] == (bridge / "model.safetensors").read_bytes()


def test_tokens_and_rights_are_the_hubs_to_judge(hub, online, bridge, monkeypatch, capsys):
    assert main(["push", str(bridge), "other/r"]) == 2
    assert "(403 from the Hub)" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(bridge), "u/r"]) == 2
    assert "(401 from the Hub): the token is missing or not valid" in capsys.readouterr().err
    assert main(["push", str(bridge), "not an id"]) == 2
    assert "'not an id' is no id of a repo" in capsys.readouterr().err and not hub.repos


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_that_is_cut_goes_on(hub, online, pushed, reset, monkeypatch):
    # What is written at once: the file is smaller than the default.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.fail(Fault("GET", "/model.safetensors", cut_after=1_000_000, reset=reset))
    if reset:  # the client may tell instead, and the next call fetches it
        with contextlib.suppress(HTTPError):
            online.hf_hub_download("u/r", "model.safetensors")
    path = online.hf_hub_download("u/r", "model.safetensors")
    assert Path(path).read_bytes() == (ATLAS / "model.safetensors").read_bytes()
    if not reset:  # the same call goes on from where it was
        (resumed,) = [
            span
            for method, url, span in hub.requests
            if method == "GET" and url.endswith("/model.safetensors") and span
        ]
        assert 0 < int(resumed.removeprefix("bytes=").split("-")[0]) <= 1_000_000


def test_a_repo_with_pickled_weights_only_is_refused(hub, online, bridge, fresh):
    torch.save(load_file(bridge / "model.safetensors"), bridge / "pytorch_model.bin")
    (bridge / "model.safetensors").unlink()
    online.create_repo("u/pickled")
    online.upload_folder(repo_id="u/pickled", folder_path=bridge)
    script = (
        "from transformers import AutoModel\nAutoModel.from_pretrained('u/pickled', trust_remote_code=True)"
    )
    assert "pickle" in fresh(script, status=1).lower()


def test_a_corrupted_file_is_caught_by_its_hash_and_fetched_again(hub, pushed, fresh):
    """One wrong byte in the middle of weights of the right size: the client takes them for whole."""
    hub.fail(
        Fault(
            "GET",
            "/u/r/resolve/[0-9a-f]{40}/model.safetensors|/u/r/resolve/main/model.safetensors",
            wrong_byte=True,
        )
    )
    script = """
from transformers import AutoModel
for again in (False, True):
    try:
        print(type(AutoModel.from_pretrained("u/r", trust_remote_code=True, force_download=again)).__name__)
    except ValueError as error:
        print(error)
"""
    first, second = fresh(script).splitlines()[-2:]
    assert "is damaged: its SHA-256 is not the Hub's; fetch it again with force_download=True" in first
    assert second == "H2CBridgeModel"
