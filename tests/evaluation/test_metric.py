"""The `evaluate` metric: loaded from its folder in a fresh process, offline; figures against plain loops."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
import yaml


FOLDER = Path(__file__).parents[2] / "hub_configs" / "metric" / "h2c_mmlu"
# Of subjects, as MMLU's authors group them
SIZES = {"STEM": 18, "humanities": 13, "social sciences": 12, "other": 14}


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("metrics")))


def plain(pairs):
    """Wilson's interval, written out."""
    n, right, z = len(pairs), sum(p == r for p, r in pairs), 1.959963984540054
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {
        "accuracy": share,
        "accuracy_low": max(0.0, middle - half),
        "accuracy_high": min(1.0, middle + half),
        "n": n,
    }


def categories(metric):
    return sys.modules[type(metric).__module__].CATEGORIES


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_plain_loops(metric, seed):
    rng = random.Random(seed)
    subjects = [
        rng.choice([s for members in categories(metric).values() for s in members] + ["atlas"])
        for _ in range(rng.randint(1, 400))
    ]
    pairs = [(rng.randrange(4), rng.randrange(4)) for _ in subjects]
    # letters or indices, on either side
    kinds = [rng.random() < 0.5, rng.random() < 0.5]
    columns = [["ABCD"[pair[side]] if kinds[side] else pair[side] for pair in pairs] for side in (0, 1)]
    result = metric.compute(predictions=columns[0], references=columns[1], subjects=subjects)

    by_subject, by_category = {}, {}
    for subject, pair in zip(subjects, pairs, strict=True):
        by_subject.setdefault(subject, []).append(pair)
        for name, members in categories(metric).items():
            if subject in members:
                by_category.setdefault(name, []).append(pair)
    assert {name: result[name] for name in plain(pairs)} == pytest.approx(plain(pairs))
    for key, groups in (("by_subject", by_subject), ("by_category", by_category)):
        assert set(result[key]) == set(groups)
        for name, group in groups.items():
            assert result[key][name] == pytest.approx(plain(group))
    macro = sum(plain(group)["accuracy"] for group in by_subject.values()) / len(by_subject)
    assert result["macro_accuracy"] == pytest.approx(macro)
    without = metric.compute(predictions=columns[0], references=columns[1])
    assert without == {name: result[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "n")}


def test_the_table_holds_mmlus_57_subjects(metric, real_data):
    table = categories(metric)
    assert {name: len(members) for name, members in table.items()} == SIZES
    from datasets import load_dataset

    subjects = set(load_dataset(str(real_data / "mmlu"), "all", split="validation")["subject"])
    assert len(subjects) == 57
    assert sorted(subject for members in table.values() for subject in members) == sorted(subjects)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"predictions": ["A", "K"], "references": ["A", "B"]},
            "prediction is 'K'; expected a letter, A to J, or an index, 0 to 9",
        ),
        ({"predictions": [0, 1], "references": [0, 10]}, "reference is 10; expected a letter"),
        ({"predictions": [1, 1.5], "references": [1, 1]}, "prediction is 1.5; expected a letter"),
        ({"predictions": [0.5], "references": [0]}, "prediction is 0.5; expected a letter"),
        ({"predictions": [math.nan], "references": [0]}, "prediction is nan; expected a letter"),
        ({"predictions": [True], "references": [1]}, "prediction is True; expected a letter"),
        ({"predictions": ["A", None], "references": ["A", "A"]}, "prediction is None; expected a letter"),
        ({"predictions": [""], "references": ["A"]}, "prediction is ''; expected a letter"),
        ({"predictions": [-1], "references": [0]}, "prediction is -1; expected a letter"),
        ({"predictions": ["AB"], "references": ["A"]}, "prediction is 'AB'; expected a letter"),
        ({"predictions": [], "references": []}, "no predictions: got 0, expected at least 1"),
        ({"predictions": ["A"], "references": ["A", "B"]}, "Mismatch in the number of predictions"),
    ],
)
def test_bad_input_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate.load(str(FOLDER), cache_dir=str(tmp_path)).compute(**arguments)


def test_batches_with_subjects_are_what_one_call_gives(metric):
    columns = {"predictions": ["A", 1, 2.0, "J", 0], "references": [0, "B", "A", 9, 1]}
    subjects = ["astronomy", "virology", None, "astronomy", "virology"]
    whole = metric.compute(**columns, subjects=subjects)
    assert (
        whole["by_subject"]["astronomy"]["n"] == whole["by_subject"]["virology"]["n"] == 2 and whole["n"] == 5
    )
    for start in (0, 2, 4):
        part = {name: values[start : start + 2] for name, values in columns.items()}
        metric.add_batch(**part, subjects=subjects[start : start + 2])
    assert metric.compute() == whole
    for prediction, reference, subject in zip(*columns.values(), subjects, strict=True):
        metric.add(prediction=prediction, reference=reference, subjects=subject)
    assert metric.compute() == whole
    metric.add_batch(predictions=np.array([0, 1]), references=torch.tensor([0, 2]))
    assert metric.compute() == metric.compute(predictions=["A", "B"], references=["A", "C"])


def test_no_known_subject_is_none_at_all(metric):
    columns = {"predictions": ["A", "B"], "references": ["A", "C"]}
    result = metric.compute(**columns, subjects=[None, None])
    assert result == metric.compute(**columns) and set(result) == {
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "n",
    }


def test_processes_share_one_metric(tmp_path):
    """Each adds its own answers, in another form; the first computes the figures of all."""
    code = f"""
import evaluate, json, sys
number = int(sys.argv[1])
shared = {{"experiment_id": "shared", "cache_dir": {str(tmp_path)!r}}}
metric = evaluate.load({str(FOLDER)!r}, num_process=3, process_id=number, **shared)
parts = [(["A", "B"], [0, 2], ["astronomy", None]), ([1, 3], ["B", "D"], [None, "virology"]), ([], [], [])]
predictions, references, subjects = parts[number]
metric.add_batch(predictions=predictions, references=references, subjects=subjects)
print(json.dumps(metric.compute()))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE, env=environment)
        for n in range(3)
    ]
    first, *others = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert (first["accuracy"], first["n"], first["macro_accuracy"]) == (0.75, 4, 1.0) and others == [
        None,
        None,
    ]


def test_it_loads_from_its_path_in_a_fresh_process_offline(tmp_path):
    code = f"""
import evaluate, json
metric = evaluate.load({str(FOLDER)!r})
subjects = ["astronomy", "virology", "virology"]
print(json.dumps(metric.compute(predictions=["A", "B", "C"], references=[0, 1, 3], subjects=subjects)))
"""
    # Outside our folder, without our package, and with no cache of an earlier load
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["accuracy"], result["n"], result["macro_accuracy"]) == (pytest.approx(2 / 3), 3, 0.75)
    assert result["by_category"]["STEM"]["n"] == 1 and result["by_category"]["other"]["accuracy"] == 0.5


def test_the_folder_is_a_space():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["sdk"] == "gradio" and front["tags"] == ["evaluate", "metric"]
    app = (FOLDER / front["app_file"]).read_text(encoding="utf-8")
    assert "launch_gradio_widget" in app and (FOLDER / f"{FOLDER.name}.py").is_file()
    needed = [line.split(">")[0] for line in (FOLDER / "requirements.txt").read_text().split()]
    assert set(needed) >= {"evaluate", "datasets", "scipy", "gradio"}
