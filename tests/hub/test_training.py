"""`h2c train --push_to_hub`: what lies on the Hub after each push can be loaded by a stranger, whatever the strategy."""

import json
from pathlib import Path

import pytest


CONFIG = Path(__file__).parents[2] / "hub_configs" / "atlas" / "training.yaml"
SMALL = [
    "--train_data", "path=atlas,form=choice", "--save_steps=2", "--logging_steps=1", "--per_device_train_batch_size=8",
    "--eval_strategy=no", "--load_best_model_at_end=false", "--save_total_limit=9", "--generations=0", "--use_cpu",
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
    # `hub_always_push`: a save waits for no push, and none is left out where the machine is slow.
    train(h2c, tmp_path / "out", "--max_steps=4", "--push_to_hub=true", "--hub_model_id=u/r", f"--hub_strategy={strategy}",
          "--hub_always_push=true", "--hub_private_repo=true")  # fmt: skip
    repo = hub.repos["u/r"]
    first, *commits = repo.commits
    assert repo.private and repo.files(first) == {}
    assert 1 <= len(commits) <= pushes  # a push that changes nothing makes no commit
    for sha in commits:
        files = repo.files(sha)
        assert not [name for name in files if ".part" in name or name.startswith("_")]
        assert b"Hidden-to-Cache" in files["README.md"] and b"| learning_rate | 0.003 |" in files["README.md"]
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
        train(h2c, tmp_path / "resumed", "--max_steps=6", f"--resume_from_checkpoint={last / 'last-checkpoint'}")
        history = json.loads((tmp_path / "resumed" / "log_history.json").read_text())
        assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
