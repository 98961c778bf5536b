"""Read a saved `report.json`, which `report.schema.json` describes. Without torch: figures need no model."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import jsonschema


SCHEMA_VERSION = 1


def load_report(path: str | Path) -> dict:
    """Read a `report.json`.

    Raises:
        ValueError: if it is no report, one of another schema version, or one that the schema refuses.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        found = report["schema_version"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no report: expected JSON with a schema_version, as `h2c evaluate` writes it."
        ) from None
    if found != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version {found}; expected {SCHEMA_VERSION}.")
    check_report(report, path)
    return report


def check_report(report: dict, name: str | Path) -> None:
    """
    Raises:
        ValueError: naming the first place where `report.schema.json` is not met.
    """
    error = jsonschema.exceptions.best_match(schema().iter_errors(report))
    if error is not None:
        raise ValueError(
            f"{name} is not as the schema of reports has it: {error.json_path}: {error.message[:300]}"
        )


@cache
def schema() -> jsonschema.Draft202012Validator:
    text = files("h2c_hf.reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
