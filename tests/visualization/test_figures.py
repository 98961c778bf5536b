"""Every figure in both themes, from a small, a large and a real report: layout, files, what is left out."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from layout import Drawn
from matplotlib.figure import Figure
from PIL import Image
from reports import METHODS, REPORTS, REQUIRED, SMALL

from h2c_hf.reports.schema import load_report
from h2c_hf.visualization.bridge import gate_map, training
from h2c_hf.visualization.figures import FIGURES, FORMATS, draw, left_out, main
from h2c_hf.visualization.style import THEMES, wrap


SHIPPED = Path(__file__).parents[2] / "hub_configs" / "atlas" / "report.json"
REPORTS = {**REPORTS, "shipped": load_report(SHIPPED)}
# The themes differ in colours alone: the real report is laid out in one.
CASES = [
    (name, size, theme)
    for size, report in REPORTS.items()
    for theme in (THEMES if size in ("small", "large") else ["light"])
    for name in FIGURES
    if name not in left_out(report)
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "size", "theme"), CASES)
def test_no_text_overlaps_or_leaves_the_page_and_every_axis_has_its_unit(name, size, theme):
    with matplotlib.rc_context(THEMES[theme].settings):
        drawn = Drawn(FIGURES[name][1](REPORTS[size], THEMES[theme]))
    assert len(drawn.texts) > 3
    assert drawn.problems() == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [size for size, report in REPORTS.items() if "gates" in report])
@pytest.mark.parametrize("theme", THEMES)
def test_the_map_of_the_gates_that_the_demo_shows(size, theme):
    with matplotlib.rc_context(THEMES[theme].settings):
        drawn = Drawn(gate_map(REPORTS[size], THEMES[theme]))
    assert drawn.problems() == []


BREAKS = {
    "overlaps": lambda figure: [figure.text(0.5, 0.5, text) for text in ("one", "two")],
    "leaves the canvas": lambda figure: figure.text(0.99, 0.5, "beyond"),
    "covers": lambda figure: figure.axes[0].legend(["a"], loc="center"),
    "names no unit": lambda figure: figure.axes[0].set_xlabel("time"),
    "has no label": lambda figure: figure.axes[0].set_xlabel(""),
    "mathdefault": lambda figure: figure.axes[0].set_title(r"$\mathdefault{x}$"),
}


@pytest.mark.parametrize("problem", BREAKS)
def test_the_check_of_the_layout_sees_what_is_broken(problem):
    theme = THEMES["light"]
    with matplotlib.rc_context(theme.settings):
        figure = FIGURES["output_lengths"][1](SMALL, theme)
        assert Drawn(figure).problems() == []
        BREAKS[problem](figure)
        found = Drawn(figure).problems()
    assert any(problem in line for line in found), found


@pytest.mark.parametrize("name", THEMES)
def test_methods_are_told_apart_without_colour(name):
    looks = THEMES[name].looks([*METHODS, "another one"])
    for of_look in ("marker", "hatch"):
        assert len({getattr(look, of_look) for look in looks.values()}) == len(looks)
    assert THEMES[name].looks(["h2c"])["h2c"] == looks["h2c"]


def test_wrapped_text_fits_and_says_where_it_went_on():
    text = "Wide WWWWWWWWWWWWWWWWWWWWWWWWWWWWWW words and iiiiii, " * 5
    for width in (0.4, 1.0, 2.5):
        for lines in (1, 2, 30):
            wrapped = wrap(text, width, 9, lines)
            assert wrapped.count("\n") < lines
            assert wrapped.endswith("…") == (
                wrapped.replace("\n", "").replace(" ", "") != text.replace(" ", "")
            )
            figure = Figure()
            with matplotlib.rc_context(THEMES["light"].settings):
                figure.text(0, 0, wrapped, fontsize=9)
                (box,) = Drawn(figure, dpi=200).texts.values()
            assert box.width / 200 <= width + 0.05
    assert wrap("日 $5_x", 9) == "▯ $5_x"


def test_the_command_draws_every_figure_in_both_themes_and_formats(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(SMALL))
    assert main([str(tmp_path), "--theme", "both", "--output", str(tmp_path / "figures")]) == 0
    files = {
        f"{name}{theme}.{suffix}"
        for name in FIGURES
        for theme in ("", "-dark")
        for suffix in ("png", "svg", "pdf")
    }
    assert {path.name for path in (tmp_path / "figures").iterdir()} == files
    assert "Drew 14 of 14 figures" in capsys.readouterr().out
    for path in (tmp_path / "figures").iterdir():
        if path.suffix == ".svg":
            assert (
                ElementTree.parse(path).getroot().tag.endswith("svg") and "<dc:date>" not in path.read_text()
            )
            continue
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
            continue
        with Image.open(path) as image:
            grey = image.convert("L")
            dark = grey.getpixel((1, 1)) < 50
            assert dark == path.stem.endswith("-dark") and (dark or grey.getpixel((1, 1)) == 255)
            low, high = grey.getextrema()
            assert image.width >= 1000 and low < 60 and high > 200  # ink on paper


def test_the_same_report_gives_the_same_bytes(tmp_path):
    report = {key: SMALL[key] for key in ("latency_parts", "injection", "examples")}
    one, two = (draw(report, tmp_path / run, formats=FORMATS, dpi=40) for run in ("one", "two"))
    assert len(one) == 9
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_what_is_left_out_is_said(tmp_path, capsys):
    report = {
        **REQUIRED,
        "methods": SMALL["methods"],
        "gates": SMALL["gates"],
        "by_category": {},
        "examples": [],
    }
    report["training"] = {"history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert main([str(tmp_path / "report.json"), "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Drew 4 of 14 figures" in out
    assert "Left out categories: the report has no by_category." in out
    assert "Left out layer_radar: the report has no injection." in out
    assert "Left out gates_over_training: the report has no training.history.*.gate/*." in out
    assert out.count("Left out") == 10 and not (tmp_path / "generations.png").exists()


def test_a_missing_report_is_told_in_a_sentence(tmp_path):
    command = [
        sys.executable,
        "-m",
        "h2c_hf.cli",
        "plot",
        str(tmp_path / "none.json"),
        "--output",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "No such file" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_drawing_needs_no_model():
    code = (
        "import sys, h2c_hf.visualization.figures; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_source_has_one_colour_in_every_panel():
    lines = [
        line
        for axes in training(REPORTS["shipped"], THEMES["light"]).axes
        for line in axes.lines
        if line.get_label()[0] != "_"
    ]
    looks = {}
    for line in lines:
        looks.setdefault(line.get_label(), set()).add(
            (line.get_color(), line.get_marker(), line.get_linestyle())
        )
    shown = [line.get_label() for line in lines]
    assert any(shown.count(label) == 2 for label in looks), "the validation sets are in two panels"
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == len(looks), "no two sources look alike"


def test_the_training_loss_is_smoothed_over_the_raw_one():
    raw, smooth, *_ = training(REPORTS["shipped"], THEMES["light"]).axes[0].lines
    assert smooth.get_label() == "training" and raw.get_alpha() < 0.5
    assert np.abs(np.diff(smooth.get_ydata())).mean() < np.abs(np.diff(raw.get_ydata())).mean() / 4
    assert np.mean(smooth.get_ydata()) == pytest.approx(np.mean(raw.get_ydata()), rel=0.05)


@pytest.mark.parametrize("size", ["small", "large"])
def test_categories_fit_into_a_column(size):
    assert FIGURES["categories"][1](REPORTS[size], THEMES["light"]).get_figwidth() <= 3.5


@pytest.mark.parametrize("name", THEMES)
def test_parts_of_the_latency_have_the_colours_of_their_models(name):
    theme = THEMES[name]
    figure = FIGURES["latency_parts"][1](REPORTS["shipped"], theme)
    shown = {
        text.get_text(): patch.get_facecolor()
        for axes in figure.axes
        for text, patch in zip(*legend_of(axes), strict=True)
    }
    methods = theme.looks([])
    for part, method in (
        ("Receiver prefill", "receiver"),
        ("Sharer prefill", "sharer"),
        ("Sharer writes", "text_to_text"),
        ("bridge", "h2c"),
    ):
        assert matplotlib.colors.same_color(shown[part], methods[method].color), part
    assert len(set(shown.values())) == len(shown)


def legend_of(axes) -> tuple[list, list]:
    legend = axes.get_legend()
    return legend.get_texts(), legend.get_patches()
