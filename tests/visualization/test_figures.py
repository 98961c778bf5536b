"""Every figure in both themes, drawn from a small, a large and a real report: its layout, its files, what is left out."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import pytest
from layout import Drawn
from PIL import Image
from reports import LARGE, REPORTS, SMALL

from h2c_hf.evaluation.report import load_report
from h2c_hf.visualization.figures import FIGURES, draw, left_out, main
from h2c_hf.visualization.style import THEMES


SHIPPED = Path(__file__).parents[2] / "hub_configs" / "atlas" / "report.json"
REPORTS = {**REPORTS, "shipped": load_report(SHIPPED)}
CASES = [(name, size) for size, report in REPORTS.items() for name in FIGURES if name not in left_out(report)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("name", "size"), CASES)
def test_no_text_overlaps_or_leaves_the_page_and_every_axis_has_its_unit(name, size, theme):
    with matplotlib.rc_context(THEMES[theme].settings):
        drawn = Drawn(FIGURES[name][1](REPORTS[size], THEMES[theme]))
    assert len(drawn.texts) > 3
    assert drawn.problems() == []
