"""`import h2c_hf`: its names, when they are imported, and the Auto classes that know them."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import h2c_hf


ATLAS = Path(__file__).parent.parent / "hub_configs" / "atlas"


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_importing_the_package_imports_no_torch():
    assert (
        run(
            "import sys, h2c_hf; dir(h2c_hf); h2c_hf.__version__; "
            "print([n for n in ('torch', 'transformers') if n in sys.modules])"
        )
        == "[]"
    )


def test_every_public_name_is_there():
    for name in h2c_hf.__all__:
        assert name in dir(h2c_hf) and getattr(h2c_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'H2CModel'; expected one of H2CBridgeConfig"):
        h2c_hf.H2CModel  # noqa: B018


def test_auto_classes_know_the_bridge_without_remote_code():
    shown = run(
        "from h2c_hf import H2CForCausalLM, H2CProcessor\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor\n"
        f"folder = {str(ATLAS)!r}\n"
        "for auto in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor):\n"
        "    print(type(auto.from_pretrained(folder)).__module__)\n"
    )
    assert [line.rsplit(".", 1)[0] for line in shown.splitlines()] == ["h2c_hf.modeling"] * 4


def test_the_api_reference_is_that_of_the_docstrings():
    """`python scripts/api.py` writes it."""
    root = ATLAS.parents[1]
    page = runpy.run_path(str(root / "scripts" / "api.py"))["page"]()
    assert (root / "docs" / "api.md").read_text(encoding="utf-8") == page
