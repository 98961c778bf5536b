"""A file is about one subject: at most 450 lines of Python."""

import pytest
from imports import ROOT


MOST_LINES = 450


@pytest.mark.parametrize("folder", ["h2c_hf", "tests", "scripts"])
def test_files_are_short(folder):
    lines = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > MOST_LINES} == {}
