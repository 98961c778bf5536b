"""The card is written from what lies beside it, and says nothing else."""

import json
import re
import shutil
from pathlib import Path
from random import Random

import pytest
from cards import card_errors
from huggingface_hub import ModelCard

from h2c_hf.hub.model_card import write_model_card
from h2c_hf.modeling import H2CBridgeConfig
from h2c_hf.reports.page import TITLES


ATLAS = Path(__file__).parents[2] / "hub_configs" / "atlas"
DATA = {
    "counts": {
        "train": {
            "streaming": False,
            "sources": [
                {"source": "openhermes train", "weight": 0.8, "records": 1234, "examples": 1230,
                 "kept": 1111, "used": 1100, "held_out": 0, "dropped": {"too long": 119}},
                {"source": "/somewhere/mine.jsonl train", "weight": 0.2, "records": 77, "examples": 77,
                 "kept": 77, "used": 76, "held_out": 0, "dropped": {}},
            ],
        }
    }
}  # fmt: skip
RECIPE = {
    "learning_rate": 0.001,
    "warmup_steps": 0.1,
    "seed": 42,
    "optim": "adamw_torch",
    "total_train_batch_size": 64,
}


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "report.json"):
        shutil.copy(ATLAS / name, tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    (tmp_path / "training.json").write_text(json.dumps(RECIPE))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "accuracy.png").write_bytes(b"")
    return tmp_path


def config(folder, **changes) -> H2CBridgeConfig:
    return H2CBridgeConfig.from_pretrained(folder, **changes)


LLAMA = {
    "sharer_model_id": "meta-llama/Llama-3.1-8B-Instruct",
    "receiver_model_id": "Qwen/Qwen2.5-0.5B-Instruct",
    "sharer_revision": "abc",
}


MEASURES = {
    "accuracy",
    "macro_accuracy",
    "contained",
    "f1",
    "perplexity",
    "ttft_ms_median",
    "ttft_ms_p90",
    "per_token_ms_median",
}


@pytest.fixture
def scrambled(folder) -> dict:
    """The report in `folder`, with a different number for each result, so that none is mistaken."""
    random = Random(0)
    report = json.loads((folder / "report.json").read_text())
    report["perplexity"] = {
        name: {"perplexity": 1.0, "low": 1.0, "high": 1.0, "n": 1, "tokens": 1} for name in report["methods"]
    }

    def other(value, least: float = 0):
        if isinstance(value, dict):
            return {key: other(child, least) for key, child in value.items()}
        if isinstance(value, int | float):
            return random.randrange(10**6, 10**7) if isinstance(value, int) else least + random.random()
        return value

    for key in (
        "methods",
        "open_form",
        "hand_off",
        "by_category",
        "by_subject",
        "recovered",
        "information_gain",
    ):
        report[key] = other(report[key])
    report["perplexity"] = other(report["perplexity"], least=1)
    for key in (
        "training",
        "examples",
        "injection",
        "probability_shift",
        "comparisons",
        "output_lengths",
        "latency_parts",
        "confusion",
    ):
        del report[key]
    (folder / "report.json").write_text(json.dumps(report))
    return report


def body(text: str) -> str:
    return text.split("---\n", 2)[2]


def test_every_result_is_in_the_model_index_and_nothing_else_is(folder, scrambled):
    card = ModelCard.load(write_model_card(folder, config(folder), "u/r"))
    parts = [scrambled[key] for key in ("methods", "open_form", "hand_off", "perplexity")]
    expected = [
        value for part in parts for row in part.values() for key, value in row.items() if key in MEASURES
    ]
    expected += [scrambled["recovered"]["value"], scrambled["information_gain"]["value"]]
    groups = [scrambled[key] for key in ("by_category", "by_subject")]
    expected += [
        value for group in groups for row in group.values() for key, value in row.items() if key != "n"
    ]
    assert len(expected) > 250
    assert sorted(result.metric_value for result in card.data.eval_results) == sorted(expected)
    assert not re.findall(r"\d\.\d{4,}", body(str(card)))


def test_a_message_is_described_without_gates(folder):
    text = body(
        write_model_card(folder, config(folder, bridge_form="message", token_rank=48), "u/r").read_text()
    )
    assert "message form" in text and "token rank 48" in text
    assert "gates begin" not in text and "FFN" not in text


def test_earlier_runs_and_guards_are_told(folder):
    earlier = [{"max_steps": 1400, "total_train_batch_size": 16, "learning_rate": 0.0003}, {}]
    (folder / "training.json").write_text(json.dumps({**RECIPE, "earlier": earlier}))
    guards = {"guard": DATA["counts"]["train"]}
    (folder / "data.json").write_text(json.dumps({"counts": {**DATA["counts"], **guards}}))
    text = body(write_model_card(folder, config(folder), "u/r").read_text())
    first, last = (
        "It went on from a bridge of 1400 steps of 16 examples, at a learning rate of 0.0003.",
        "It went on from a bridge whose training was not recorded.",
    )
    assert text.index(first) < text.index(last) and "| earlier |" not in text
    names = [source["source"] for source in DATA["counts"]["train"]["sources"]]
    assert text.count(", as guards | ") == len(names)


def test_the_tables_are_the_reports_rows_and_all_of_them(folder, scrambled):
    text = body(write_model_card(folder, config(folder), "u/r").read_text())
    results = text[text.index("## Results") : text.index("## Training")]
    tables = [
        [line for line in block.splitlines() if line.startswith("| ")][2:]
        for block in results.split("Asked ")[1:]
    ]
    replies = results[results.index("Perplexity on replies") :]

    def share(value: float) -> str:
        return f"{value * 100:.1f} %"

    def row(name: str, cells: list) -> str:
        return f"| {' | '.join([TITLES[name], *map(str, cells)])} |"

    expected = []
    for key in ("methods", "open_form", "hand_off"):
        expected.append([])
        for name, values in scrambled[key].items():
            interval = f"{share(values['accuracy_low'])} to {share(values['accuracy_high'])}"
            times = [f"{values['ttft_ms_median']:.1f}"] if key == "methods" else []
            expected[-1].append(row(name, [share(values["accuracy"]), interval, values["n"], *times]))
    perplexities = [
        row(
            name, [f"{values['perplexity']:.2f}", f"{values['low']:.2f} to {values['high']:.2f}", values["n"]]
        )
        for name, values in scrambled["perplexity"].items()
    ]
    tables[-1] = tables[-1][: -len(perplexities) - 2]
    assert tables == expected
    assert [line for line in replies.splitlines() if line.startswith("| ")][2:] == perplexities
    for key in ("recovered", "information_gain"):
        values = scrambled[key]
        assert f": {share(values['value'])} ({share(values['low'])} to {share(values['high'])})\n" in results


def test_no_number_is_in_the_card_that_is_not_in_its_sources(folder, scrambled):
    """Besides the tables of results, which another test compares cell by cell."""
    text = body(write_model_card(folder, config(folder, **LLAMA), "u/r").read_text())
    lines = [
        line
        for line in text.splitlines()
        if not re.match(r"\| (Receiver|text-to-text|H2C|Sharer|control)\b", line)
    ]
    lines = [line for line in lines if not line.startswith(("- recovered", "- information gain"))]
    written = re.findall(
        r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?",
        re.sub(r"outputs\[0|\[0, inputs|shape\[1", "", "\n".join(lines)),
    )
    sources = [
        DATA["counts"]["train"]["sources"],
        RECIPE,
        config(folder, **LLAMA).to_dict(),
        scrambled["environment"],
    ]
    assert len(written) > 25
    assert not set(written) - set(re.findall(r"\d+(?:\.\d+)?", json.dumps(sources)))


def words_row(share: float) -> dict:
    row = {
        f"{name}{side}": share for name in ("accuracy", "contained", "f1") for side in ("", "_low", "_high")
    }
    return {**row, "token_accuracy": share, "n": 40}


def test_sets_are_told_by_regime(folder):
    """Each set has a table of its own under its regime, a figure that is not defined says why, and every
    result is in the index."""
    report = json.loads((folder / "report.json").read_text())
    gain = {
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "p": 0.001,
        "control": "shuffled",
        "f1": {"value": 0.5, "low": 0.4, "high": 0.6},
    }
    undefined = {"value": None, "low": None, "high": None, "reason": "the Sharer does not lead"}
    shares = {"facts": 0.8125, "web": 0.0625}
    report["sets"] = {
        name: {
            "regime": regime, "source": f"/elsewhere/{name}.jsonl test", "n": 40, "recovered": undefined,
            "information_gain": gain, "pairing_gain": gain,
            "follow_rate": {"value": 0.75, "low": 0.7, "high": 0.8, "n": 40, "over_h2c": 0.9},
            "comparisons": [],
            "methods": {
                method: words_row(shares[name]) for method in ("receiver", "skyline", "h2c", "sharer")
            },
        }
        for name, regime in (("facts", "private"), ("web", "shared"))
    }  # fmt: skip
    report["config"]["sets"] = [
        {"name": name, "source": {"path": f"/elsewhere/{name}.jsonl", "split": "test"}} for name in shares
    ]
    (folder / "report.json").write_text(json.dumps(report))
    card = ModelCard.load(write_model_card(folder, config(folder), "u/r"))
    text = body(str(card))
    private, shared = text.index("### Private regime"), text.index("### Shared regime")
    assert (
        private
        < text.index("Asked facts, facts.jsonl test")
        < shared
        < text.index("Asked web, web.jsonl test")
    )
    assert "/elsewhere" not in text
    assert (
        "| H2C | 81.2 % | 81.2 % to 81.2 % | 81.2 % | 81.2 % to 81.2 % | 81.2 % | 81.2 % to 81.2 % | 40 |"
        in text[private:shared]
    )
    assert "- recovered: not defined: the Sharer does not lead" in text[shared:]
    assert "- pairing gain, matched - shuffled: 50.0 % (40.0 % to 60.0 %)" in text and "- follow rate" in text
    found = {
        (r.dataset_type, r.dataset_config, r.metric_name): r.metric_value for r in card.data.eval_results
    }
    for name, share in shares.items():
        for measure in ("accuracy", "answer contained", "token F1"):
            assert found[f"{name}.jsonl", name, f"{measure}, H2C"] == share
    assert card_errors(str(card)) == []


def test_a_report_changed_changes_the_card(folder):
    report = json.loads((folder / "report.json").read_text())
    report["methods"]["h2c"]["accuracy"] = 0.4321
    (folder / "report.json").write_text(json.dumps(report))
    text = write_model_card(folder, config(folder), "u/r").read_text()
    assert "| H2C | 43.2 % |" in text and "value: 0.4321" in text


def test_front_matter_says_what_the_hub_reads(folder, online):
    path = write_model_card(folder, config(folder, **LLAMA), "u/llama-r")
    card, report = ModelCard.load(path), json.loads((folder / "report.json").read_text())
    data = card.data
    assert (
        data.base_model == [LLAMA["sharer_model_id"], LLAMA["receiver_model_id"]]
        and data.base_model_relation == "adapter"
    )
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "text-generation",
        "llama3.1",
    )
    assert data.datasets == ["teknium/OpenHermes-2.5"] and data.metrics == ["accuracy"]
    results = {
        (r.dataset_type, r.dataset_config, r.task_type, r.metric_name): r.metric_value
        for r in data.eval_results
    }
    assert len(results) == len(data.eval_results), "no two results are taken for one"
    for method, title in (
        ("h2c", "H2C"),
        ("receiver", "Receiver"),
        ("sharer", "Sharer"),
        ("zeros", "control: zeros"),
    ):
        assert (
            results["atlas", None, "question-answering", f"accuracy, {title}"]
            == report["methods"][method]["accuracy"]
        )
    assert (
        results["atlas", None, "text-generation", "accuracy, H2C"] == report["open_form"]["h2c"]["accuracy"]
    )
    assert (
        results["atlas_invented", None, "text-generation", "accuracy, H2C"]
        == report["hand_off"]["h2c"]["accuracy"]
    )
    for subject, row in report["by_subject"].items():
        assert results["atlas", subject, "question-answering", "accuracy, H2C"] == row["h2c"]
    assert {r.dataset_split for r in data.eval_results} == {"test"}
    assert card_errors(path.read_text()) == []
    card.validate()  # over the wire
    with pytest.raises(ValueError, match="base_model_relation"):
        ModelCard(path.read_text().replace("relation: adapter", "relation: cousin")).validate()


def test_a_llama_brings_its_notice_and_name(folder):
    text = write_model_card(folder, config(folder, **LLAMA), "u/bridge").read_text()
    assert "# Llama bridge" in text and "**Built with Llama.**" in text
    assert (
        "Llama 3.1 is licensed under the Llama 3.1 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved." in text
    )
    assert ModelCard(text).data.license_link == "LICENSE"
    assert (
        "# Llama-3.1-H2C" in write_model_card(folder, config(folder, **LLAMA), "u/Llama-3.1-H2C").read_text()
    )
    plain = write_model_card(
        folder, config(folder, **{**LLAMA, "sharer_model_id": "Qwen/Qwen3-8B"}), "u/bridge", "apache-2.0"
    ).read_text()
    assert "Llama" not in plain and ModelCard(plain).data.license == "apache-2.0"


def test_the_text_tells_how_to_load_what_was_measured_and_of_what_it_was_made(folder):
    text = write_model_card(folder, config(folder), "u/r").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("u/r", trust_remote_code=True)' in text
    row = json.loads((folder / "report.json").read_text())["methods"]["shuffled"]
    span = f"{100 * row['accuracy_low']:.1f} % to {100 * row['accuracy_high']:.1f} %"
    assert f"| control: shuffled | {100 * row['accuracy']:.1f} % | {span} | 1341 |" in text
    assert "| openhermes train | 0.8 | 1234 | 1111 | 1100 | too long: 119. |" in text
    assert "| learning_rate | 0.001 |" in text and "(figures/accuracy.png)" in text and "## Citation" in text
    assert (
        "\n\n\n" not in text
        and re.search(r"[^\n]\n(#|\| ---)", text.split("---\n", 2)[2].replace("|\n| ---", "")) is None
    )


def test_a_quantized_sharer_is_told_of(folder):
    assert "BitsAndBytesConfig" not in write_model_card(folder, config(folder), "u/r").read_text()
    (folder / "training.json").write_text(json.dumps({**RECIPE, "sharer_quantization": "nf4"}))
    assert "The Sharer was quantized (`nf4`)" in write_model_card(folder, config(folder), "u/r").read_text()


def test_a_bridge_alone_has_a_card_that_says_so(folder):
    for name in ("report.json", "data.json", "training.json"):
        (folder / name).unlink()
    text = write_model_card(folder, config(folder), "u/r").read_text()
    assert "it was not measured" in text and "was not recorded" in text and "model-index" not in text


def test_a_report_that_is_none_is_refused_and_the_old_card_stays(folder):
    write_model_card(folder, config(folder), "u/r")
    before = (folder / "README.md").read_text()
    (folder / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="is no report"):
        write_model_card(folder, config(folder), "u/r")
    assert (folder / "README.md").read_text() == before and not (folder / "README.md.part").exists()
