"""The examples of CONTRIBUTING.md run, one after the other."""

import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent


def test_every_example_runs(tmp_path):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 4
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_every_file_that_is_named_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:h2c_hf|tests|docs|scripts)/[\w./-]+)`", text)
    assert named and not [path for path in named if not (ROOT / path).exists()]
