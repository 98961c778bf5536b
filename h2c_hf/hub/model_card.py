"""The model card of a bridge, from its config and what lies beside it: `report.json`, `data.json`, `training.json`, `figures/`.

Every number in it is copied from one of these.
"""

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment

from ..data.sources import NAMES
from ..evaluation.page import TITLES, percent
from ..evaluation.schema import load_report
from ..modeling import H2CBridgeConfig


TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# The licences of Llama's versions are licence ids of the Hub; each asks for this notice, and for the name.
LLAMA = re.compile(r"llama-?(\d+(?:\.\d+)?)", re.IGNORECASE)
# Titles of the parts of a report whose accuracies are told apart: {key: what it was asked in}.
FORMS = {"methods": "multiple choice", "open_form": "in words, exact match", "hand_off": "a passage that only the Sharer reads"}


def write_model_card(directory: str | Path, config: H2CBridgeConfig, repo: str, license: str | None = None) -> Path:
    """Write `README.md` into a bridge's folder.

    Args:
        directory: holds the bridge, and what there is to tell of it.
        repo: the id or the folder that the card tells to load.
        license: a licence id of the Hub, for a pair without a Llama: a Llama brings its own.

    Raises:
        ValueError: for a `report.json` that is none.
    """
    directory = Path(directory)
    report = load_report(directory / "report.json") if (directory / "report.json").is_file() else None
    counts, recipe = (read_json(directory / name) for name in ("data.json", "training.json"))
    ids = {"sharer": config.sharer_model_id or "the Sharer", "receiver": config.receiver_model_id or "the Receiver"}
    sources = counts.get("counts", {}).get("train", {}).get("sources", [])
    llama = llama_version(config)
    name = repo.rstrip("/").split("/")[-1]
    data = ModelCardData(
        base_model=hub_ids(ids.values()) or None,
        base_model_relation="adapter" if hub_ids(ids.values()) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=f"llama{llama}" if llama else license,
        **({"license_link": f"https://huggingface.co/{llama_id(config)}/blob/main/LICENSE"} if llama else {}),
        datasets=hub_ids(source["source"].split(" ")[0] for source in sources) or None,
        metrics=["accuracy"] if report else None,
        tags=["h2c", "kv-cache"],
        model_name=name if report else None,
        eval_results=eval_results(report) if report else None,
    )
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(TEMPLATE.read_text("utf-8"))
    text = template.render(
        card_data=data.to_yaml(), repo=repo, **ids,
        title=name if not llama or name.lower().startswith("llama") else f"Llama {name}",
        llama=llama, config=config, report=report, sources=sources, recipe=recipe,
        forms=FORMS, titles=TITLES, percent=percent,
        figures=sorted(path.name for path in (directory / "figures").glob("*.png")),
    )  # fmt: skip
    path = directory / "README.md"
    beside = directory / "README.md.part"
    ModelCard(text).save(beside)
    return beside.replace(path)


def llama_id(config: H2CBridgeConfig) -> str | None:
    """The id of the Llama in the pair; the Sharer's where both are."""
    return next((model for model in (config.sharer_model_id, config.receiver_model_id) if LLAMA.search(model or "")), None)


def llama_version(config: H2CBridgeConfig) -> str | None:
    """Its version, "3.1", whose licence then holds for the bridge."""
    match = LLAMA.search(llama_id(config) or "")
    return match and match[1]


def hub_ids(names) -> list[str]:
    """Those of `names` that are ids on the Hub, and not folders; the short names of datasets in full."""
    names = [NAMES[name][0] if name in NAMES else name for name in names]
    return list(dict.fromkeys(name for name in names if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)))


def eval_results(report: dict) -> list[EvalResult]:
    """Every result of a report, for the `model-index`: the methods, controls and differences of each form."""
    dataset = Path(report.get("config", {}).get("data") or "report").name  # a path of this machine says nothing elsewhere

    def result(part: str, name: str, kind: str, value: float, subject: str | None = None) -> EvalResult:
        title = f"{dataset}, {part}" + (f": {subject}" if subject else "")
        return EvalResult(
            task_type="question-answering" if part == FORMS["methods"] else "text-generation", dataset_type=dataset,
            dataset_name=title, dataset_config=subject or part, metric_type=kind, metric_name=name, metric_value=value,
        )  # fmt: skip

    # Results of one task, dataset and config are written as one: the config tells the parts apart.
    results = []
    for key, part in FORMS.items():
        for method, row in report.get(key, {}).items():
            if isinstance(row, dict) and row.get("accuracy") is not None:
                results.append(result(part, f"accuracy, {TITLES.get(method, method)}", "accuracy", row["accuracy"]))
    for key in ("recovered", "information_gain"):
        if report[key]["value"] is not None:
            results.append(result(FORMS["methods"], key, key, report[key]["value"]))
    for group in ("by_category", "by_subject"):
        for subject, row in report.get(group, {}).items():
            results += [
                result(FORMS["methods"], f"accuracy, {TITLES.get(method, method)}", "accuracy", value, subject)
                for method, value in row.items()
                if method != "n"
            ]
    for method, row in report.get("perplexity", {}).items():
        value = row.get("perplexity") if isinstance(row, dict) else row
        if isinstance(value, int | float):
            results.append(result("replies", f"perplexity, {TITLES.get(method, method)}", "perplexity", value))
    return results


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
