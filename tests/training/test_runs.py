"""Whole runs on Atlas, in processes of their own: stopped, killed, short of disk, on two ranks."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from h2c_hf.atlas import MODELS


ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "hub_configs/atlas/training.yaml")
TRAIN = [sys.executable, "-m", "h2c_hf.cli", "train"]
SMALL = [
    "--train_data", "path=atlas,form=choice", "path=atlas,form=open", "--validation_data",
    "path=atlas,split=validation", "--max_steps=6", "--save_steps=2", "--logging_steps=1",
    "--per_device_train_batch_size=8", "--eval_strategy=no", "--load_best_model_at_end=false",
    "--save_total_limit=9", "--use_cpu",
]  # fmt: skip
# Kills its own process when half of a checkpoint's optimizer state is written.
KILLED_IN_A_CHECKPOINT = """
import os, signal, sys, torch
from h2c_hf.cli import main
save = torch.save
def half(state, path, *args, **kwargs):
    save(state, path, *args, **kwargs)
    if str(path).endswith("checkpoint-4/optimizer.pt"):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
sys.exit(main(["train", *sys.argv[1:]]))
"""


def start(
    output: Path, *arguments: str, command=TRAIN, preexec_fn=None, **environment: str
) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, CONFIG, f"--output_dir={output}", *SMALL, *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, preexec_fn=preexec_fn,
    )  # fmt: skip


def train(output: Path, *arguments: str, status: int = 0, **kwargs) -> tuple[str, str]:
    """Run to the end; (stdout, stderr)."""
    process = start(output, *arguments, **kwargs)
    out, err = process.communicate()
    assert process.returncode == status, out[-2000:] + err[-4000:]
    return out, err


def losses(output: Path) -> list[float]:
    return [
        entry["loss"] for entry in json.loads((output / "log_history.json").read_text()) if "loss" in entry
    ]


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir() if "checkpoint" in path.name)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    train(output)
    return output


def test_a_run_killed_while_it_writes_a_checkpoint_ends_as_one_that_never_stopped(whole_run, tmp_path):
    train(tmp_path, command=[sys.executable, "-c", KILLED_IN_A_CHECKPOINT], status=-signal.SIGKILL)
    assert checkpoints(tmp_path) == ["_checkpoint-4.part", "checkpoint-2"]
    train(tmp_path, "--resume_from_checkpoint=true")
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    ended, whole = (load_file(run / "model.safetensors") for run in (tmp_path, whole_run))
    assert ended.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(ended[name], tensor), name
    assert losses(tmp_path) == losses(whole_run)


def test_a_folder_with_checkpoints_is_not_trained_over_unasked(whole_run):
    _, err = train(whole_run, status=2)
    assert (
        "holds checkpoint-6 of an earlier run; expected --resume_from_checkpoint true" in err
        and "Traceback" not in err
    )


def until_step_3(process: subprocess.Popen) -> None:
    assert any(line.startswith("step 3/100000: loss") for line in process.stdout), process.stderr.read()[
        -4000:
    ]


def test_sigterm_saves_and_exits_cleanly(tmp_path):
    process = start(tmp_path, "--max_steps=100000", "--save_steps=100000")
    until_step_3(process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err[-4000:]
    (saved,) = checkpoints(tmp_path)
    step = int(saved.removeprefix("checkpoint-"))
    assert (
        f"Stopped before step 100000; --resume_from_checkpoint true goes on from {saved} in {tmp_path}" in out
    )
    assert not (tmp_path / "model.safetensors").exists()
    train(tmp_path, f"--max_steps={step + 1}", "--resume_from_checkpoint=true")
    assert (tmp_path / "model.safetensors").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system with room for Atlas's models, one checkpoint (8 MB each) and no second."""
    models = sum(
        path.stat().st_size
        for role in ("sharer", "receiver")
        for path in (MODELS / role).glob("*.safetensors")
    )
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={14 * 2**20 + models}", "tmpfs", str(tmp_path)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_happened(small_disk):
    _, err = train(small_disk, status=2)
    assert "Traceback" not in err
    (message,) = re.findall("h2c: .*", err)
    assert (
        message.startswith(f"h2c: checkpoint-4 could not be saved in {small_disk}") and "MB free" in message
    )
    assert message.endswith(f"the last complete checkpoint is {small_disk}/checkpoint-2.")
    assert checkpoints(small_disk) == ["checkpoint-2"]
    assert load_file(small_disk / "checkpoint-2" / "model.safetensors")
    assert torch.load(small_disk / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]


def test_two_ranks_with_half_the_batch_train_as_one_with_the_whole(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    # Drawn at random, since batches of like lengths are other batches where two ranks share them.
    still = ["--dropout=0.0", "--gradient_accumulation_steps=2", "--train_sampling_strategy=random"]
    train(one, *still)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        str(ROOT / "scripts/train.py"),
    ]
    train(two, *still, "--per_device_train_batch_size=4", command=torchrun)
    assert len(losses(one)) == 6
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    for ours, other in ((one, two), (two, one)):  # either's checkpoint goes on in the other
        checkpoint = f"--resume_from_checkpoint={ours / 'checkpoint-4'}"
        kwargs = {"command": torchrun} if other is two else {}
        batch = "--per_device_train_batch_size=4" if other is two else "--per_device_train_batch_size=8"
        resumed = tmp_path / f"resumed-{other.name}"
        train(resumed, *still, batch, checkpoint, **kwargs)
        assert losses(resumed) == pytest.approx(losses(one), abs=1e-4)


def interrupted(tmp_path: Path) -> tuple[subprocess.Popen, str, str]:
    """A run in which Ctrl-C is pressed in its third step."""
    process = start(tmp_path, "--max_steps=100000", "--save_steps=100000", preexec_fn=hears_ctrl_c)
    until_step_3(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process, out, err


def hears_ctrl_c() -> None:
    """A shell starts what runs in its background deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process, out, err = interrupted(tmp_path)
    assert process.returncode == 130, err[-4000:]
    (saved,) = checkpoints(tmp_path)
    assert f"goes on from {saved} in {tmp_path}" in out
    assert "Traceback" not in err and "Press it again to stop without one" in err
    line = err.splitlines()[-1].strip()
    assert line.startswith(f"h2c train {CONFIG} --output_dir={tmp_path}") and line.endswith(
        " --resume_from_checkpoint true"
    )
    step = int(saved.removeprefix("checkpoint-"))
    resumed = [sys.executable, "-m", "h2c_hf", *line.split()[1:], f"--max_steps={step + 1}"]
    assert subprocess.run(resumed, cwd=ROOT, capture_output=True).returncode == 0
    assert (tmp_path / "model.safetensors").exists()


def test_a_log_file_gets_a_line_a_step_and_no_bars(whole_run, tmp_path):
    out, err = train(tmp_path / "run", "--max_steps=2")
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines if "loss" in line and "grad_norm" in line] == [
        "step 1/2",
        "step 2/2",
    ]
    assert "gate/" not in out and "%|" not in err and "\r" not in err
    assert "there is no folder" not in err, (
        "the models of Atlas are saved with the bridge, and not with each checkpoint"
    )
