"""The notebook, from top to bottom, pushing to the test Hub; and the output of its first cells elsewhere."""

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from source import copy_source

from h2c_hf import REPOSITORY


ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "h2c_colab.ipynb"


def run(wire: dict, folder: Path, cells: int | None = None, **settings) -> list[str]:
    """Execute the notebook, or its first code cells, in `folder`, with `NAME = value` changed; each code
    cell's text, in order, and "image" for a picture."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"][:cells]
    for name, value in settings.items():
        (line,) = [
            line for cell in code for line in cell.source.splitlines() if line.startswith(f"{name} = ")
        ]
        for cell in code:
            cell.source = cell.source.replace(line, f"{name} = {value!r}")
    notebook.cells = code
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**wire, "PYTHONPATH": str(ROOT)})
    return ["".join(map(written, cell.outputs)) for cell in code]


def written(output) -> str:
    data = output.get("data", {})
    if output.output_type == "stream" and output.name == "stderr":  # progress, and what the libraries remark
        return ""
    return "image" if "image/png" in data else output.get("text", data.get("text/plain", ""))


def without_token(wire: dict) -> dict:
    return {name: value for name, value in wire.items() if name != "HF_TOKEN"}


def test_it_is_saved_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [
        cell for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)
    ]


def test_atlas_needs_no_token(hub, wire):
    assert "No token is needed" in run(without_token(wire), NOTEBOOK.parent, cells=3)[2]
    assert not hub.requests


FIRST_CELL = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:1]
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
"""


@pytest.mark.slow
def test_it_installs_the_package_if_it_is_not_there(tmp_path):
    """In a fresh environment with only the dependencies, in a clone, whose package can be imported."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("h2c_hf", "__editable__")):
            (dependencies / path.name).symlink_to(path)
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text(str(dependencies))
    clone = copy_source(tmp_path / "clone")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    assert not (binaries / "h2c").exists()
    subprocess.run([binaries / "python", "-c", FIRST_CELL, NOTEBOOK], cwd=clone, env=environment, check=True)
    listed = subprocess.run(
        [binaries / "h2c", "configs"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "training.yaml" in listed.stdout


def test_it_names_the_repository():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert f'REPOSITORY = \\"{REPOSITORY}\\"' in text
    assert REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github") in text


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(hub, wire, tmp_path):
    outputs = run(wire, NOTEBOOK.parent, REPO="u/notebook", BRIDGE=str(tmp_path / "bridge"))
    _, _, login, config, training, evaluation, figures, pictures, here, push, there = outputs
    assert "There is a token." in login and "sharer: atlas" in config
    assert "997,770" in training and "Wrote the bridge" in training and "control: shuffled" in evaluation
    assert "Drew 14 of 14 figures" in figures and pictures == "imageimage"
    assert f"Pushed to {hub.endpoint}/u/notebook/commit/" in push
    assert here == there and here.strip()
    files = hub.repos["u/notebook"].files()
    assert (
        hub.repos["u/notebook"].private
        and b"model-index" in files["README.md"]
        and "figures/accuracy.png" in files
    )
    report = json.loads(files["report.json"])
    assert report["methods"]["h2c"]["n"] == 100 and report["information_gain"]["low"] > 0.3
