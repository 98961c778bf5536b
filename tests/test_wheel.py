"""The built wheel, installed into a fresh environment and used from a folder outside the repository."""

import os
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from source import copy_source

import h2c_hf
from h2c_hf.cli import COMMANDS


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def h2c(tmp_path_factory):
    """Run the installed `h2c` in a folder of its own. The dependencies are those of this environment; the
    package is the wheel's."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        folder,
        copy_source(folder / "source"),
    ]
    subprocess.run(build, check=True)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    (site,) = (folder / "venv" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text(
        "\n".join({sysconfig.get_path("purelib"), *(path for path in sys.path if "site-packages" in path)})
    )
    place = folder / "elsewhere"
    place.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
        command = [folder / "venv" / "bin" / "h2c", *arguments]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, **kwargs)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    run.place = place
    found = subprocess.run(
        [python, "-c", "import h2c_hf; print(h2c_hf.__file__)"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(folder / "venv"), "the wheel's package, not this tree's"
    return run


def processor_seconds() -> float:
    """The seconds that child processes computed; unlike the clock, without the waiting for others."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_version_and_help(h2c):
    assert h2c("--version").stdout == f"h2c {h2c_hf.__version__}\n"
    for command in COMMANDS:
        seconds = []
        for _ in range(3):
            before = processor_seconds()
            assert h2c(command, "--help").stdout.startswith(f"usage: h2c {command}")
            seconds.append(processor_seconds() - before)
        print(f"h2c {command} --help: {statistics.median(seconds):.2f} s")
        assert statistics.median(seconds) < 1.0, command


def test_the_configs_are_there(h2c):
    assert "training.yaml" in h2c("configs").stdout
    h2c("configs", "copy", "accelerate")
    assert (h2c.place / "accelerate" / "8gpu_ddp.yaml").is_file()


def test_chat_answers_a_question(h2c):
    assert "Algeria" in h2c("chat", input="In which country is the city of Bensekrane?\nexit\n").stdout


def test_from_training_to_a_dry_run_of_push(h2c):
    train = h2c(
        "train",
        "atlas",
        "--max_steps",
        "5",
        "--eval_strategy",
        "no",
        "--load_best_model_at_end",
        "false",
        "--save_strategy",
        "no",
    )
    assert "step 5/5" in train.stdout and (h2c.place / "outputs" / "atlas" / "model.safetensors").is_file()
    commands = re.findall(r"^  (h2c .*)$", train.stderr, re.MULTILINE)
    assert "h2c evaluate atlas --model outputs/atlas --output_dir outputs/atlas-evaluation" in commands
    small = ["--limit", "16", "--hand_off_limit", "16", "--timed_questions", "2", "--examples", "1"]
    evaluated = h2c("evaluate", "atlas", *small)
    assert "information gain" in evaluated.stdout and "h2c plot outputs/atlas-evaluation" in evaluated.stderr
    assert "Drew 14 of 14 figures" in h2c("plot", "outputs/atlas-evaluation").stdout
    assert (h2c.place / "outputs" / "atlas-evaluation" / "figures" / "accuracy.pdf").is_file()
    pushed = h2c("push", "outputs/atlas", "me/bridge", "--report", "outputs/atlas-evaluation", "--dry_run")
    assert "model.safetensors" in pushed.stdout and "![Accuracy by method and control]" in pushed.stdout
