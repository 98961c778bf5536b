"""Real runs that report to wandb (offline) and tensorboard."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record


ROOT = Path(__file__).parents[2]
STEPS = 6


def wandb_artifacts(folder: Path) -> list:
    """The artifacts that an offline run recorded. Its file is a LevelDB log after a header of 7 bytes: blocks
    of 32 KiB, in them pieces of records, each with checksum, length and kind (1 whole, 2 first, 3 middle, 4
    last)."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, position, piece, found = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # the rest of a block that is too small for a piece
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        piece += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record.FromString(piece)
            piece = b""
            if record.HasField("artifact"):
                found.append(record.artifact)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    config = {
        **yaml.safe_load((ROOT / "hub_configs/atlas/training.yaml").read_text()),
        "train_data": ["atlas"], "validation_data": [{"path": "atlas", "split": "validation"}],
        "output_dir": str(folder / "out"), "max_steps": STEPS, "save_steps": 2, "eval_steps": 2,
        "logging_steps": 1, "per_device_train_batch_size": 8, "save_total_limit": 9,
        "report_to": ["wandb", "tensorboard"],
    }  # fmt: skip
    (folder / "training.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "h2c_hf.cli", "train", str(folder / "training.yaml")]
    tracking = {
        "WANDB_MODE": "offline", "WANDB_LOG_MODEL": "checkpoint", "WANDB_DIR": str(folder),
        "TENSORBOARD_LOGGING_DIR": str(folder / "tb"), "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder / "data"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **tracking}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_wandb_gets_an_artifact_a_checkpoint_and_best_and_final_by_alias(run):
    artifacts = [
        (set(artifact.aliases), {entry.path for entry in artifact.manifest.contents})
        for artifact in wandb_artifacts(run)
    ]
    for step in range(2, STEPS + 1, 2):
        ((_, files),) = [pair for pair in artifacts if f"checkpoint_global_step_{step}" in pair[0]]
        assert {
            "model.safetensors",
            "config.json",
            "modeling_h2c.py",
            "optimizer.pt",
            "trainer_state.json",
        } <= files
    assert any("best" in aliases and "optimizer.pt" in files for aliases, files in artifacts)
    ((final, files),) = [pair for pair in artifacts if "final_model" in pair[0]]
    assert "model.safetensors" in files and artifacts[-1][0] == final
    assert len({artifact.name for artifact in wandb_artifacts(run)}) == 1  # versions of one


def test_tensorboard_gets_gates_gradients_and_metrics(run):
    events = EventAccumulator(str(run / "tb"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    named = {
        "train/loss", "train/gate/key/0", "train/gate/value/4", "train/grad_norm/attention",
        "train/grad_norm/ffn", "train/grad_norm/gate", "eval/loss", "eval/perplexity", "eval/choice_accuracy",
    }  # fmt: skip
    assert named <= tags
    assert [event.step for event in events.Scalars("train/gate/key/0")] == list(range(1, STEPS + 1))
