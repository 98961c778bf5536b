"""A report's results in the two forms that the Hub reads: `model-index` in the card, every one of them; and
`.eval_results/`, which puts the bridge's own score on the leaderboard of the dataset that it was asked.
"""

import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..data.tables import NAMES
from ..reports.page import TITLES


# Parts of a report whose rows are methods: {key: (what it was asked in, task of the Hub, prefix of its
# dataset's fields in `config`)}.
PARTS = {
    "methods": ("multiple choice", "question-answering", "data"),
    "open_form": ("in words, exact match", "text-generation", "data"),
    "hand_off": ("a passage that only the Sharer reads", "text-generation", "hand_off"),
    "perplexity": ("replies", "text-generation", "perplexity_data"),
}
# {key of a row: (metric's type, metric's name)}
MEASURES = {
    "accuracy": ("accuracy", "accuracy"),
    "macro_accuracy": ("accuracy", "mean accuracy of the subjects"),
    "contained": ("accuracy", "answer contained"),
    "f1": ("f1", "token F1"),
    "perplexity": ("perplexity", "perplexity"),
    "ttft_ms_median": ("latency", "time to first token, ms, median"),
    "ttft_ms_p90": ("latency", "time to first token, ms, p90"),
    "per_token_ms_median": ("latency", "time per further token, ms, median"),
}
FILE = Path(".eval_results") / "report.yaml"


def hub_ids(names) -> list[str]:
    """Those of `names` that are ids on the Hub, and not folders; the short names of datasets in full."""
    names = [NAMES[name][0] if name in NAMES else name for name in names]
    return list(dict.fromkeys(name for name in names if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)))


def asked(report: dict, field: str) -> tuple[str, str | None, str | None]:
    """Dataset (an id has a slash, a file or folder of this machine none), its configuration and split, of the
    evaluation's `data`, `hand_off` or `perplexity_data`."""
    config = report.get("config", {})
    if field == "data" and config.get("data") == "none":  # the headline is the first set's
        first = config["sets"][0]
        return public_name(first["source"]["path"]), first["name"], first["source"]["split"]
    name = config.get(field) or "report"
    stem = field.removesuffix("_data")
    split = config.get("split" if field == "data" else f"{stem}_split")
    return public_name(name), config.get(f"{stem}_name"), split


def public_name(dataset: str) -> str:
    """A dataset's id on the Hub; of a folder or file only its name: its path says nothing elsewhere."""
    return dataset if hub_ids([dataset]) == [dataset] and not Path(dataset).exists() else Path(dataset).name


def model_index(report: dict) -> list[EvalResult]:
    """Every result for the `model-index`: methods, controls, differences, by part, category and subject."""
    results = []

    def add(
        part: str,
        measure: tuple[str, str],
        value: float | None,
        method: str | None = None,
        group: str | None = None,
    ) -> None:
        if not isinstance(value, int | float):
            return
        title, task, field = PARTS[part]
        dataset, name, split = asked(report, field)
        results.append(
            EvalResult(
                # Results of one task, dataset, configuration and split are written as one.
                task_type=task, dataset_type=dataset, dataset_config=group or name, dataset_split=split,
                dataset_name=f"{dataset}, {group or title}", metric_type=measure[0], metric_value=value,
                metric_name=f"{measure[1]}, {TITLES.get(method, method)}" if method else measure[1],
            )
        )  # fmt: skip

    for part in PARTS:
        for method, row in report.get(part, {}).items():
            for key, measure in MEASURES.items():
                add(part, measure, row.get(key), method)
    for name, row in report.get("sets", {}).items():
        source = report["config"]["sets"][[one["name"] for one in report["config"]["sets"]].index(name)][
            "source"
        ]
        dataset = public_name(source["path"])
        for method, values in row["methods"].items():
            for key, (kind, measure) in MEASURES.items():
                if isinstance(values.get(key), int | float):
                    results.append(
                        EvalResult(
                            task_type="text-generation", dataset_type=dataset, dataset_config=name,
                            dataset_split=source["split"],
                            dataset_name=f"{dataset}, {name} ({row['regime']} regime)",
                            metric_type=kind, metric_value=values[key],
                            metric_name=f"{measure}, {TITLES.get(method, method)}",
                        )
                    )  # fmt: skip
    add(
        "methods",
        ("recovered", "recovered, (H2C - Receiver) / (Sharer - Receiver)"),
        report["recovered"]["value"],
    )
    add(
        "methods",
        ("information_gain", "information gain, H2C - best control"),
        report["information_gain"]["value"],
    )
    for key in ("by_category", "by_subject"):
        for group, row in report.get(key, {}).items():
            for method, value in row.items():
                if method != "n":
                    add("methods", MEASURES["accuracy"], value, method, group)
    return results


def write_eval_results(directory: Path, report: dict | None, repo: str) -> None:
    """Write `.eval_results/report.yaml`, or remove an old one: H2C's accuracy, in per cent, on a whole
    dataset of the Hub. A part of a dataset, or one that is not on the Hub, belongs on no leaderboard; nor do
    baselines and controls, which are not this model."""
    path = directory / FILE
    dataset, name, split = asked(report, "data") if report else ("", None, None)
    if "/" not in dataset or report["config"].get("limit"):
        path.unlink(missing_ok=True)
        return
    row = report["methods"]["h2c"]
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=name or "default",
        value=round(100 * row["accuracy"], 2),
        source_url=f"https://huggingface.co/{repo}/blob/main/report.json" if hub_ids([repo]) else None,
        source_name="report.json" if hub_ids([repo]) else None,
        notes=f"multiple choice by letter, split {split}, {report['config'].get('shots', 0)}-shot, "
        f"{row['n']} questions",
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
