"""`h2c evaluate` from its config to its files."""

import csv
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState, debug_launcher
from pairs import join
from scipy import stats
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.cli import main
from h2c_hf.evaluation.evaluate import gates
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.modeling import H2CForCausalLM, H2CProcessor
from h2c_hf.prompts import LETTERS
from h2c_hf.reports.items import load_items
from h2c_hf.reports.schema import load_report


ROOT = Path(__file__).parent.parent.parent
BRIDGE = str(ROOT / "hub_configs" / "atlas")
FEW = [
    "--model",
    BRIDGE,
    "--dtype",
    "float32",
    "--methods",
    "receiver",
    "h2c",
    "sharer",
    "shuffled",
    "--timed_questions",
    "0",
]


def without_clock(directory: Path) -> tuple[dict, list[dict]]:
    return load_report(directory / "report.json"), load_items(directory / "items.parquet")


def test_a_report_has_all_that_was_asked_for(tmp_path):
    more = [
        "--limit",
        "24",
        "--forms",
        "choice",
        "open",
        "--hand_off",
        "atlas",
        "--hand_off_limit",
        "12",
        "--hand_off_facts",
        "2",
        "--adapter",
        BRIDGE,
    ]
    timed = ["--timed_questions", "2", "--output_lengths", "1", "6", "--examples", "1"]
    assert main(["evaluate", *FEW[:-2], "adapter", *more, *timed, "--output_dir", str(tmp_path)]) == 0
    report, items = without_clock(tmp_path)
    names = ["receiver", "h2c", "sharer", "shuffled", "adapter"]
    assert list(report["methods"]) == list(report["open_form"]) == list(report["hand_off"]) == names
    assert report["counts"]["choice"] == {
        "questions": 24, "asked": 24, "truncated": 0, "refused": 0, "refused_rows": [],
        "cut_sharer_texts": {},
    }  # fmt: skip
    for name in ("receiver", "h2c", "sharer"):
        assert (
            report["methods"][name]["per_token_ms_median"] > 0 and report["methods"][name]["ttft_ms_p90"] > 0
        )
        assert all(row[name] > 0 for row in report["output_lengths"])
    assert set(report["latency_parts"]["h2c"]) == {
        "sharer_prefill",
        "receiver_prefill",
        "bridge",
        "decode",
        "other",
    }
    assert report["environment"]["torch"] == torch.__version__ and report["models"]["bridge"]["id"] == BRIDGE
    assert report["training"]["history"] and report["gates"]["key"] and report["config"]["seed"] == 0
    assert len(items) == (24 + 24 + 12) * len(names)
    for name in names:
        rows = [row for row in items if row["method"] == name and row["form"] == "choice"]
        assert report["methods"][name]["accuracy"] == pytest.approx(sum(row["correct"] for row in rows) / 24)
        for row in rows:
            assert row["prediction"] == "ABCD"[max(range(4), key=row["scores"].__getitem__)]
            assert row["correct"] == (row["prediction"] == row["expected"])
    page = (tmp_path / "report.md").read_text()
    assert "control: adapter" in page and "refused 0" in page and "cheaper than the Sharer" in page


def test_sets_of_both_regimes_and_no_choice(tmp_path):
    sets = [
        "name=facts,regime=private,path=atlas,form=hand_off,facts=2,split=test,limit=8",
        "name=repeat,regime=private,path=atlas,form=repeat,split=test,tokens=3,limit=6",
        "name=known,regime=shared,path=atlas,form=open,split=test,limit=8",
    ]
    methods = ["receiver", "skyline", "h2c", "sharer", "shuffled"]
    arguments = [
        "--model",
        BRIDGE,
        "--dtype",
        "float32",
        "--methods",
        *methods,
        "--data",
        "none",
        "--sets",
        *sets,
    ]
    timed = ["--timed_questions", "2", "--output_lengths", "1", "3", "--examples", "1"]
    assert main(["evaluate", *arguments, *timed, "--output_dir", str(tmp_path)]) == 0
    report, items = without_clock(tmp_path)
    assert {name: (row["regime"], row["n"]) for name, row in report["sets"].items()} == {
        "facts": ("private", 8), "repeat": ("private", 6), "known": ("shared", 8),
    }  # fmt: skip
    assert (
        list(report["sets"]["facts"]["methods"]) == methods
        and "skyline" not in report["sets"]["known"]["methods"]
    )
    assert len(report["sets"]["repeat"]["methods"]["h2c"]["token_accuracy_by_position"]) == 3
    for name, one in report["sets"].items():
        for method, row in one["methods"].items():
            asked = [item for item in items if item["form"] == name and item["method"] == method]
            assert row["n"] == len(asked) and row["accuracy"] == pytest.approx(
                sum(item["correct"] for item in asked) / len(asked)
            )
    # The first set is the headline.
    assert report["methods"]["h2c"]["accuracy"] == report["sets"]["facts"]["methods"]["h2c"]["accuracy"]
    assert report["methods"]["skyline"]["ttft_ms_median"] > 0 and report["counts"]["repeat"]["asked"] == 6
    assert "## Shared regime" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*FEW, "--output_dir", "x", "--data", "none"], "data is 'none' and there are no sets"),
        (
            [*FEW, "--output_dir", "x", "--sets", *2 * ["name=a,regime=shared,path=atlas,form=open"]],
            "Two sets are called 'a'",
        ),
        (
            [*FEW, "--output_dir", "x", "--sets", "name=open,regime=shared,path=atlas,form=open"],
            "which is a part of every report",
        ),
        (
            [*FEW, "--output_dir", "x", "--sets", "name=a,regime=private,path=atlas,form=open"],
            "0 of its .* have a passage; expected all",
        ),
        ([*FEW, "--output_dir", "x", "--lora", "x"], "The method 'lora' and the field lora .* go together"),
        (["--model", BRIDGE], "output_dir is missing"),
        ([*FEW, "--output_dir", "x", "--methods", "h2c", "sharer", "zeros"], "methods lacks receiver"),
        ([*FEW, "--output_dir", "x", "--methods", "receiver", "h2c", "sharer"], "methods lacks a control"),
        ([*FEW, "--output_dir", "x", "--adapter", BRIDGE], "go together"),
        ([*FEW, "--output_dir", "x", "--batch_size", "1"], "batch_size is 1; expected at least 2"),
        (
            [*FEW, "--output_dir", "x", "--hand_off", "atlas", "--hand_off_facts", "0"],
            "hand_off_facts is 0; expected at least 1",
        ),
        (
            [*FEW, "--output_dir", "x", "--hand_off", "atlas", "--hand_off_facts", "9999"],
            "A passage has 9999 facts; expected 1 to",
        ),
        ([*FEW, "--output_dir", "x", "--form", "open"], "no field 'form' .*; did you mean 'forms'"),
        ([*FEW, "--output_dir", "x", "--split", "best"], "atlas has no split 'best'"),
        ([*FEW, "--output_dir", "x", "--data", "no/such"], "The dataset 'no/such' .* cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    assert re.search(f"^h2c: .*{message}", capsys.readouterr().err.strip().splitlines()[-1])


def test_what_is_too_long_is_counted(tmp_path):
    """A limit that some questions pass: they are refused, and the report says which."""
    assert main(["evaluate", *FEW, "--limit", "60", "--max_length", "35", "--output_dir", str(tmp_path)]) == 0
    counts = load_report(tmp_path / "report.json")["counts"]["choice"]
    assert 0 < counts["refused"] == len(counts["refused_rows"]) < 60
    assert (
        counts["asked"]
        == 60 - counts["refused"]
        == load_report(tmp_path / "report.json")["methods"]["h2c"]["n"]
    )


def test_letters_and_mixed_numbers_of_choices_make_a_report(tmp_path):
    """A CSV file with two to four choices a question, answers by letter and no subject."""
    questions = atlas_questions("test")[:12]
    with open(tmp_path / "questions.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "choices", "answer"])
        for number, question in enumerate(questions):
            choices = question["choices"][: 2 + number % 3]
            rows.writerow(
                [question["question"], str(choices), LETTERS[min(question["answer"], len(choices) - 1)]]
            )
    assert (
        main(["evaluate", *FEW, "--data", str(tmp_path / "questions.csv"), "--output_dir", str(tmp_path)])
        == 0
    )
    report, items = without_clock(tmp_path)
    assert report["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3) and list(report["by_subject"]) == [
        "no subject"
    ]
    assert {len(row["scores"]) for row in items} == {2, 3, 4} and len(items) == 12 * 4
    assert all(LETTERS.index(row["prediction"]) < len(row["scores"]) for row in items)
    assert main(["plot", str(tmp_path / "report.json"), "--output", str(tmp_path / "figures")]) == 0


def command(directory: Path) -> list[str]:
    arguments = [
        *FEW,
        "--limit",
        "96",
        "--batch_size",
        "4",
        "--forms",
        "choice",
        "open",
        "--output_dir",
        str(directory),
    ]
    return [sys.executable, "-m", "h2c_hf.cli", "evaluate", *arguments]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    """Killed at three random points, each deeper; what comes out is what an uninterrupted run writes."""
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    progress = tmp_path / "killed" / "progress-0.jsonl"
    for least in sorted(random.Random(time.time()).sample(range(2, 46), 3)):
        process = subprocess.Popen(
            command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and (
            not progress.exists() or progress.read_bytes().count(b"\n") < least
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and progress.read_bytes().count(b"\n") < 48
        assert not (tmp_path / "killed" / "report.json").exists()
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    assert progress.read_bytes().count(b"\n") == 48  # no batch was asked twice
    reports = [load_report(tmp_path / name / "report.json") for name in ("killed", "whole")]
    for report in reports:
        report["environment"].pop("git_commit")  # somebody may be at work here
    assert reports[0] == reports[1]
    assert (tmp_path / "killed" / "items.parquet").read_bytes() == (
        tmp_path / "whole" / "items.parquet"
    ).read_bytes()


def few_batches(directory: str) -> None:
    PartialState._reset_state()  # a forked process has its parent's
    main(["evaluate", *FEW, "--limit", "30", "--batch_size", "4", "--output_dir", directory])


@pytest.mark.slow
def test_two_processes_share_the_batches(tmp_path):
    few_batches(str(tmp_path / "one"))
    debug_launcher(few_batches, (str(tmp_path / "two"),), num_processes=2)
    one, two = (without_clock(tmp_path / name) for name in ("one", "two"))
    assert two[0]["methods"] == one[0]["methods"]
    assert [row["prediction"] for row in two[1]] == [row["prediction"] for row in one[1]]
    lines = [(tmp_path / "two" / f"progress-{rank}.jsonl").read_text().count("\n") for rank in (0, 1)]
    assert lines == [4, 4]


@pytest.fixture
def random_pair(real_data, tmp_path) -> Path:
    """A bridge folder: the real tokenizers, small random models with a short window, a random bridge."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 768, "initializer_range": 0.2,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    sharer = LlamaForCausalLM(LlamaConfig(vocab_size=128256, **shape))
    receiver = Qwen2ForCausalLM(Qwen2Config(vocab_size=151936, **shape))
    folder = tmp_path / "pair"
    model = H2CForCausalLM.from_pair(
        sharer, receiver, sharer_model_id="./sharer", receiver_model_id="./receiver"
    )
    model.save_pretrained(folder)
    sharer.save_pretrained(folder / "sharer")
    receiver.save_pretrained(folder / "receiver")
    names = ("llama-3.1", "qwen2.5")
    H2CProcessor(
        *(AutoTokenizer.from_pretrained(real_data / "tokenizers" / name) for name in names)
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 5])
def test_real_mmlu_questions_through_every_method(random_pair, real_data, tmp_path, shots):
    """The 285 dev questions (with 5 shots: 100 of validation): every method runs, and knows nothing."""
    split, limit = ("validation", ["--limit", "100"]) if shots else ("dev", [])
    methods = [name for name in METHODS if name not in ("skyline", "lora", "text_to_text_draft")]
    arguments = [
        "--model",
        str(random_pair),
        "--adapter",
        str(random_pair),
        "--methods",
        *methods,
        "--data",
        str(real_data / "mmlu"),
    ]
    arguments += [
        "--data_name",
        "all",
        "--split",
        split,
        "--shots",
        str(shots),
        *limit,
        "--batch_size",
        "32",
        "--timed_questions",
        "0",
    ]
    assert main(["evaluate", *arguments, "--examples", "1", "--output_dir", str(tmp_path / "out")]) == 0
    report = load_report(tmp_path / "out" / "report.json")
    counts = report["counts"]["choice"]
    print(
        f"{shots} shots:",
        {name: round(row["accuracy"], 3) for name, row in report["methods"].items()},
        counts,
    )
    assert (
        counts["questions"] == (100 if shots else 285)
        and counts["asked"] + counts["refused"] == counts["questions"]
    )
    # What is too long loses its shots first, and is refused where it has none to lose.
    assert counts["truncated"] > 0 if shots else counts["refused"] > 0 == counts["truncated"]
    assert counts["cut_sharer_texts"]["text_to_text"] == counts["asked"]  # a random Sharer never ends
    for name in methods:
        row = report["methods"][name]
        assert row["n"] == counts["asked"]
        assert stats.binomtest(round(row["accuracy"] * row["n"]), row["n"], 0.25).pvalue > 1e-3
    assert (
        len(report["by_category"]) == 4
        and sum(row["n"] for row in report["by_subject"].values()) == counts["asked"]
    )
    assert json.loads((tmp_path / "out" / "report.json").read_text())["schema_version"] == 1


def test_a_bridge_without_gates_has_none_in_its_report(atlas):
    model, _ = atlas
    assert set(gates(model)) == {"gates"}
    assert gates(join(model.sharer, model.receiver, bridge_form="message")) == {}
