import subprocess
import sys

from PIL import Image

from h2c_hf.visualization.figures import FIGURES, draw


REPORT = {
    "methods": {
        name: {"accuracy": a, "accuracy_low": a - 0.02, "accuracy_high": a + 0.02, "n": 1000, "ttft_ms_median": t}
        for name, a, t in [("receiver", 0.25, 4), ("text_to_text", 0.9, 60), ("h2c", 0.9, 9), ("sharer", 0.95, 5), ("zeros", 0.25, 9)]
    },
    "gates": {"key": [None, 0.5], "value": [None, 0.7]},
    "training": {"history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_choice_accuracy": 0.5}]},
}


def test_every_figure_is_drawn(tmp_path):
    paths = draw(REPORT, tmp_path / "figures")
    assert [path.stem for path in paths] == list(FIGURES)
    for path in paths:
        with Image.open(path) as image:
            extremes = image.convert("L").getextrema()
            assert image.width >= 800 and extremes[0] < 100 and extremes[1] == 255  # ink on paper


def test_a_report_without_gates_or_training_still_draws(tmp_path):
    assert [path.stem for path in draw({"methods": REPORT["methods"]}, tmp_path)] == ["accuracy", "latency"]


def test_drawing_needs_no_model():
    code = "import sys, h2c_hf.visualization.figures; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
