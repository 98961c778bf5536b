"""`h2c train --push_to_hub`: after each push a stranger can load what is on the Hub, by any strategy."""

import json
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from server import Fault

from h2c_hf.cli import main


CONFIG = Path(__file__).parents[2] / "hub_configs" / "atlas" / "training.yaml"
SMALL = [
    "--train_data", "path=atlas,form=choice", "--save_steps=2", "--logging_steps=1",
    "--per_device_train_batch_size=8", "--eval_strategy=no", "--load_best_model_at_end=false",
    "--save_total_limit=9", "--generations=0", "--use_cpu",
]  # fmt: skip
LOAD = """
import json, sys
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
gates = []
for revision in REVISIONS:
    model = AutoModelForCausalLM.from_pretrained("u/r", revision=revision, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("u/r", revision=revision, trust_remote_code=True)
    inputs = processor.apply_chat_template([{"role": "user", "content": "Which river?"}])
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    gates.append(model.gate_values())
print(json.dumps(gates))
"""


def train(h2c, output, *arguments):
    done = h2c("train", CONFIG, f"--output_dir={output}", *SMALL, *arguments)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return done


@pytest.mark.parametrize(
    ("strategy", "pushes", "folders"),
    [
        ("checkpoint", 5, {"last-checkpoint"}),
        pytest.param("end", 1, set(), marks=pytest.mark.slow),
        pytest.param("every_save", 3, set(), marks=pytest.mark.slow),
        pytest.param("all_checkpoints", 5, {"checkpoint-2", "checkpoint-4"}, marks=pytest.mark.slow),
    ],
)
def test_every_push_can_be_loaded(hub, h2c, fresh, tmp_path, strategy, pushes, folders):
    # `hub_always_push`: no push is left out where the machine is slow.
    train(
        h2c, tmp_path / "out", "--max_steps=4", "--push_to_hub=true", "--hub_model_id=u/r",
        f"--hub_strategy={strategy}", "--hub_always_push=true", "--hub_private_repo=true",
    )  # fmt: skip
    repo = hub.repos["u/r"]
    first, *commits = repo.commits
    assert repo.private and repo.files(first) == {}
    assert 1 <= len(commits) <= pushes  # a push that changes nothing makes no commit
    for sha in commits:
        files = repo.files(sha)
        assert not [name for name in files if ".part" in name or name.startswith("_")]
        assert b"Hidden-to-Cache" in files["README.md"] and b"| learning_rate | 0.006 |" in files["README.md"]
        assert {name.split("/")[0] for name in files if "checkpoint" in name} <= folders
    files = repo.files()
    assert {name.split("/")[0] for name in files if "checkpoint" in name} == folders
    history = json.loads(files["log_history.json"])
    assert max(entry["step"] for entry in history) == 4
    revisions = [sha for sha in commits if repo.files(sha).get("model.safetensors")]
    gates = json.loads(fresh(f"REVISIONS = {[revisions[0], revisions[-1]]}\n{LOAD}").splitlines()[-1])
    assert (gates[0] != gates[1]) == (strategy != "end")

    if strategy == "checkpoint":  # from the Hub alone, the run goes on
        last = tmp_path / "from_hub"
        for name, content in files.items():
            if name.startswith("last-checkpoint/"):
                (last / name).parent.mkdir(parents=True, exist_ok=True)
                (last / name).write_bytes(content)
        train(
            h2c, tmp_path / "resumed", "--max_steps=6", f"--resume_from_checkpoint={last / 'last-checkpoint'}"
        )
        history = json.loads((tmp_path / "resumed" / "log_history.json").read_text())
        assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def refused(capsys, output, *arguments) -> str:
    """The sentence with which `h2c train --push_to_hub` ends, in this process."""
    assert (
        main(
            [
                "train",
                str(CONFIG),
                f"--output_dir={output}",
                *SMALL,
                "--report_to=none",
                "--push_to_hub=true",
                *arguments,
            ]
        )
        == 2
    )
    printed = capsys.readouterr()
    # Of the plan, which is printed once the data is read.
    assert ("Peak memory" in printed.out) == ("--max_steps=1" in arguments)
    return printed.err.splitlines()[-1]


def test_a_push_that_cannot_be_is_refused_before_training(hub, online, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    for token, message in (
        (
            "hf_wrong",
            "u/r cannot be pushed to (401 from the Hub): the token is missing or not valid: log in with `hf "
            "auth login`",
        ),
        ("", "u/r cannot be pushed to: the token is missing or not valid: log in with `hf auth login`"),
        ("hf_other", "u/r cannot be pushed to (403 from the Hub): the token may not write there"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert refused(capsys, output, "--hub_model_id=u/r").startswith(f"h2c: {message}")
    assert refused(capsys, output, "--hub_model_id=not an id").startswith(
        "h2c: 'not an id' is no id of a repo"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert refused(capsys, output, "--hub_model_id=u/r").startswith(
        "h2c: u/r cannot be pushed to: HF_HUB_OFFLINE is set"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refused(capsys, output, "--hub_model_id=u/r").startswith(
        "h2c: u/r cannot be pushed to: the connection to the Hub failed"
    )
    assert not hub.repos and not any(output.iterdir())


def test_a_push_that_fails_in_a_run_says_where_the_bridge_is(hub, online, tmp_path, capsys):
    hub.fail(Fault("POST", "/commit/", status=500, times=100))
    output = tmp_path / "out"
    error = refused(
        capsys, output, "--max_steps=1", "--save_strategy=no", "--hub_model_id=u/r", "--hub_strategy=end"
    )
    assert error.startswith(f"h2c: u/r was not pushed to (the run so far is in {output}) (500 from the Hub)")
    assert (output / "model.safetensors").is_file()
