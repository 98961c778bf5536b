"""What the quickstart leaves behind, on a machine that has `torch` and `transformers` and nothing else of what we install here."""

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
import torch
import transformers

from h2c_hf.apps.quickstart import save_bridge


pytestmark = pytest.mark.slow
TWO = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={transformers.__version__}"]
NOT_THERE = ["h2c_hf", "accelerate", "bitsandbytes", "datasets", "evaluate", "jsonschema", "matplotlib", "pyarrow", "scipy", "xxhash"]
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
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "VIRTUAL_ENV"))}
    environment |= {"HF_HOME": str(machine / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([python, "-c", SCRIPT], cwd=machine, env=environment, capture_output=True, text=True)


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
