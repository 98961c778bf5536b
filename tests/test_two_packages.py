"""The quickstart's results on a machine that has `torch` and `transformers` and no other dependency."""

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
import torch
import transformers
from source import copy_source

from h2c_hf import REPOSITORY
from h2c_hf.apps.quickstart import save_bridge


pytestmark = pytest.mark.slow
TWO = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={transformers.__version__}"]
NOT_THERE = [
    "h2c_hf",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "jsonschema",
    "matplotlib",
    "pyarrow",
    "scipy",
    "xxhash",
]
ASKED = ["In which country is the city of Bensekrane?", "Which metal is liquid at room temperature?", "Who?"]
SCRIPT = f"""
import importlib.util, json
from transformers import AutoModelForCausalLM, AutoProcessor
assert [name for name in {NOT_THERE} if importlib.util.find_spec(name)] == []
# In the precision of the fixture: two of the answers are near ties.
model = AutoModelForCausalLM.from_pretrained("bridge", trust_remote_code=True, dtype="float32")
processor = AutoProcessor.from_pretrained("bridge", trust_remote_code=True)
answers = []
for asked in {ASKED}:
    inputs = processor.apply_chat_template([{{"role": "user", "content": asked}}])
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answers.append(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of a new environment with those two packages and what they bring."""
    folder = tmp_path_factory.mktemp("two_packages")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TWO], check=True)
    return python


@pytest.fixture
def machine(atlas, tmp_path) -> Path:
    """A folder on that machine, with the quickstart's bridge copied into it."""
    written = tmp_path / "here" / "bridge"
    written.parent.mkdir()
    save_bridge(*atlas, written)
    shutil.copytree(written, tmp_path / "there" / "bridge")
    shutil.rmtree(written)
    return tmp_path / "there"


def ask(python: Path, machine: Path) -> subprocess.CompletedProcess:
    return elsewhere([python, "-c", SCRIPT], machine)


def test_it_loads_and_answers_as_here(atlas, python, machine):
    model, processor = atlas
    expected = []
    for asked in ASKED:
        inputs = processor.apply_chat_template([{"role": "user", "content": asked}])
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        expected.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    done = ask(python, machine)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected and expected[0].strip() == "Algeria"


@pytest.mark.parametrize("line", ["import accelerate", "from h2c_hf.prompts import user_turn"])
def test_a_third_package_in_the_code_would_be_found(python, machine, line):
    code = machine / "bridge" / "inputs_h2c.py"
    code.write_text(code.read_text().replace("import torch\n", f"import torch\n{line}\n", 1))
    assert line in code.read_text()
    done = ask(python, machine)
    assert done.returncode != 0 and line.split()[1].split(".")[0] in done.stderr


@pytest.fixture(scope="module")
def bare(python, tmp_path_factory) -> Path:
    """The same environment with this package as `pip install h2c_hf` leaves it: without extras."""
    source = copy_source(tmp_path_factory.mktemp("source") / "source")
    subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True)
    return python


GENERATES = f"""
import importlib.util
from h2c_hf import load_pair
assert [name for name in {NOT_THERE[1:]} if importlib.util.find_spec(name)] == []
model, processor = load_pair("atlas")
inputs = processor.apply_chat_template([{{"role": "user", "content": {ASKED[0]!r}}}])
output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def elsewhere(command: list, folder: Path, **kwargs) -> subprocess.CompletedProcess:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "HF_", "VIRTUAL_ENV"))
    }
    environment |= {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **kwargs)


def test_the_package_without_extras_generates(bare, tmp_path):
    done = elsewhere([bare, "-c", GENERATES], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "Algeria"
    chat = elsewhere([bare.parent / "h2c", "chat"], tmp_path, input=f"{ASKED[0]}\nexit\n")
    assert chat.returncode == 0 and "Algeria" in chat.stdout, chat.stderr[-4000:]


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("train atlas --max_steps 1", "train"), ("evaluate atlas --model atlas --output_dir out", "eval"),
        ("quickstart", "all"),
        ("report nowhere", "eval"), ("plot nowhere", "viz"), ("push nowhere me/x", "viz"), ("demo", "demo"),
        ("serve", "serve"), ("lora atlas", "lora"), ("lm-eval --tasks x", "lm-eval"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named_in_one_sentence(bare, tmp_path, command, extra):
    done = elsewhere([bare.parent / "h2c", *command.split()], tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-4000:]
    assert done.stderr.endswith(f": pip install 'h2c_hf[{extra}] @ git+{REPOSITORY}'\n")


def test_a_public_name_that_needs_an_extra_says_so(bare, tmp_path):
    done = elsewhere([bare, "-c", "from h2c_hf import H2CTrainer"], tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: h2c_hf.H2CTrainer needs ") and "pip install 'h2c_hf[train] @" in last
