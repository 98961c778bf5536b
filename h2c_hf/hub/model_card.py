"""The model card of a bridge, from its config and the files beside it: `report.json`, `data.json`,
`training.json`, `figures/`.

Every number in it is copied from one of these.
"""

import hashlib
import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment

from .. import REPOSITORY
from ..atomic import atomic
from ..modeling import H2CBridgeConfig
from ..reports.page import REGIMES, TITLES, number, percent
from ..reports.schema import load_report
from .licence import (
    GEMMA_NOTICE,
    GEMMA_RESTRICTIONS,
    attribution,
    built_with,
    follows_in_name,
    has_gemma,
    llama_version,
    name_begins,
)
from .results import PARTS, hub_ids, model_index, public_name, write_eval_results


TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def write_model_card(
    directory: str | Path, config: H2CBridgeConfig, repo: str, license: str | None = None
) -> Path:
    """Write `README.md` into a bridge's folder, and `.eval_results/` if its results belong on a leaderboard.

    Args:
        directory: holds the bridge, its report and its recipe.
        repo: the id or the folder that the card tells to load.
        license: a licence id of the Hub; a Llama or a Gemma in the pair brings its own.

    Raises:
        ValueError: for a `report.json` that is none.
    """
    directory = Path(directory)
    report = load_report(directory / "report.json") if (directory / "report.json").is_file() else None
    counts, recipe = (read_json(directory / name) for name in ("data.json", "training.json"))
    ids = {role: getattr(config, f"{role}_model_id") or "" for role in ("sharer", "receiver")}
    sources = [
        {**source, "source": source["source"] + mark}
        for part, mark in (("train", ""), ("guard", ", as guards"))
        for source in counts.get("counts", {}).get(part, {}).get("sources", [])
    ]
    llama, gemma = llama_version(config, license), has_gemma(config, license)
    name = repo.rstrip("/").split("/")[-1]
    parts = {"f1": "sets", "perplexity": "perplexity"}
    metrics = (
        ["accuracy", *(metric for metric, part in parts.items() if report.get(part))] if report else None
    )
    data = ModelCardData(
        base_model=hub_ids(ids.values()) or None,
        base_model_relation="adapter" if hub_ids(ids.values()) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=f"llama{llama}" if llama else "gemma" if gemma else license,
        **({"license_link": "LICENSE"} if llama else {}),  # see `follow_licence`
        datasets=hub_ids(source["source"].split(" ")[0] for source in sources) or None,
        metrics=metrics,
        tags=["h2c", "kv-cache"],
        model_name=name if report else None,
        eval_results=model_index(report) if report else None,
    )
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    sets: dict[str, dict] = {}
    for set_name, row in (report or {}).get("sets", {}).items():
        sets.setdefault(row["regime"], {})[set_name] = {**row, "source": public_source(row["source"])}
    forms = {part: title for part, (title, _, _) in PARTS.items()}
    if sets and report["config"]["data"] == "none":  # the headline is the first set's
        forms["methods"] = f"{next(iter(report['sets']))}, exact match"
    text = template.render(
        card_data=data.to_yaml(), repo=repo, license=data.license, project=REPOSITORY,
        **{role: shown(name, role.title()) for role, name in ids.items()},
        title=name if not llama or follows_in_name(name, llama) else f"{name_begins(llama)} {name}",
        built_with=llama and built_with(llama), attribution=llama and attribution(llama),
        gemma=gemma, gemma_notice=GEMMA_NOTICE, gemma_restrictions=GEMMA_RESTRICTIONS,
        config=config, report=report, recipe=recipe,
        sources=[{**source, "source": public_source(source["source"])} for source in sources],
        forms=forms, titles=TITLES, percent=percent, number=number, span=span,
        sets=sets, regimes=REGIMES,
        figures=sorted(
            path.name for path in (directory / "figures").glob("*.png") if not path.stem.endswith("-dark")
        ),
    )  # fmt: skip
    text = str(ModelCard(text)).rstrip("\n") + "\n"
    with atomic(directory / "README.md") as temporary_path:
        temporary_path.write_text(f"{text}{signature(text)}\n", encoding="utf-8")
        write_eval_results(directory, report, repo)  # if this fails, the old card stays
    return directory / "README.md"


def span(row: dict) -> str:
    """A value with its interval, or why it is not defined."""
    if row["value"] is None:
        return f"not defined{': ' + row['reason'] if row.get('reason') else ''}"
    return f"{percent(row['value'])} ({percent(row['low'])} to {percent(row['high'])})"


def public_source(title: str) -> str:
    """The title of a source without the folders of this machine."""
    path, _, rest = title.partition(" ")
    return f"{public_name(path)} {rest}".strip()


def signature(text: str) -> str:
    """Return the last line of a card: a comment with a checksum, which shows edits by hand."""
    checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"<!-- Written by h2c_hf, checksum_{checksum}: an edited card is not overwritten. -->"


def written_by_us(card: Path) -> bool:
    """Return whether `write_model_card` wrote this README.md and nobody edited it since."""
    text, _, last = card.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
    return last == signature(f"{text}\n")


def shown(model: str | None, role: str) -> str:
    """Return how a card names a base model."""
    if not model:
        return f"the {role}, which the config does not name"
    return (
        f"the model in `{model[2:]}/` of this repo"
        if model.startswith("./")
        else f"[`{model}`](https://huggingface.co/{model})"
    )


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
