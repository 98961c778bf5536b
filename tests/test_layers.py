"""Imports point down the list of docs/parts.md; modeling/ imports nothing else of ours."""

import re
from pathlib import Path

import pytest
from imports import ROOT, imported, module_name, part


def layers(page: str) -> dict[str, int]:
    """{part of the package: its row, from the top}."""
    table = page.split("Beside it:")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return {name: number for number, row in enumerate(rows) for name in re.findall(r"`h2c_hf/(\w+)", row)}


LAYERS = layers((ROOT / "docs" / "parts.md").read_text(encoding="utf-8"))


def upward(root: Path) -> list[str]:
    """Return each import of a part that is not further down than its own."""
    found = []
    for path in sorted((root / "h2c_hf").rglob("*.py")):
        own = part(module_name(path, root))
        for module, line in sorted(imported(path, root)):
            if own != part(module) and LAYERS[own] >= LAYERS[part(module)]:
                found.append(f"{path.relative_to(root)}:{line} imports {module}")
    return found


def test_the_list_names_every_part():
    parts = {
        path.stem
        for path in (ROOT / "h2c_hf").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert parts == set(LAYERS)


def test_imports_point_down():
    assert upward(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/sources.py", "from ..training import trainer"),  # a module of a package
        ("modeling/layers_h2c.py", "from .. import __version__"),  # modeling travels alone
        ("prompts.py", "def later():\n    from .evaluation.methods import METHODS"),  # in a function
        ("loading.py", "import h2c_hf.pair"),  # by its whole name
        ("errors.py", "from .wording import LETTERS"),  # of the same row
    ],
)
def test_an_upward_import_is_found(tmp_path, file, line):
    path = tmp_path / "h2c_hf" / file
    for source in (ROOT / "h2c_hf").rglob("*.py"):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert len(upward(tmp_path)) == 1
