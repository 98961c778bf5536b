"""What the Hub checks of a model card, and what it reads of `.eval_results/`, as far as it is documented."""

import re

import yaml


LICENCES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m",
    "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0",
    "epl-2.0", "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0",
    "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "unknown", "other",
)  # fmt: skip


def card_errors(content: str) -> list[str]:
    """Return what the Hub's validation is known to refuse: bad yaml, and wrong types of its fields."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    if not match:
        return []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"invalid yaml: {error}"]
    if not isinstance(data, dict):
        return ["the metadata is no mapping"]
    errors = []
    for name in (
        "license",
        "license_name",
        "license_link",
        "library_name",
        "pipeline_tag",
        "base_model_relation",
    ):
        if name in data and not isinstance(data[name], str):
            errors.append(f'"{name}" must be a string')
    if data.get("license", "mit") not in LICENCES:
        errors.append(f'"license" must be one of {", ".join(LICENCES)}')
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required where "license" is other')
    if data.get("base_model_relation", "finetune") not in ("finetune", "adapter", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of finetune, adapter, merge, quantized')
    for name in ("base_model", "datasets", "metrics", "tags"):
        values = data.get(name, [])
        if not all(
            isinstance(value, str) and value for value in ([values] if isinstance(values, str) else values)
        ):
            errors.append(f'"{name}" must be a string or a list of strings')
    for name in ("base_model", "datasets"):
        values = data.get(name, [])
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
                errors.append(f'"{name}" holds {value!r}, which is no repo id')
    for model in data.get("model-index", []):
        if not model.get("name") or not isinstance(model.get("results"), list):
            errors.append('"model-index" needs a name and results')
            continue
        for result in model["results"]:
            if (
                not result.get("task", {}).get("type")
                or not {"name", "type"} <= result.get("dataset", {}).keys()
            ):
                errors.append('a result of "model-index" needs task.type, dataset.name and dataset.type')
            for metric in result.get("metrics", []) or [{}]:
                if not metric.get("type") or not isinstance(metric.get("value"), int | float):
                    errors.append('a metric of "model-index" needs a type and a number as its value')
    return errors


def eval_results(files: dict[str, bytes]) -> list[dict]:
    """Return the Hub's view of a repo's `.eval_results/*.yaml`: each entry, or why a file is unreadable."""
    found = []
    for path in sorted(path for path in files if re.fullmatch(r"\.eval_results/[^/]+\.yaml", path)):
        try:
            entries = yaml.safe_load(files[path])
            found += [{"filename": path, "data": checked(entry)} for entry in entries]
        except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            found.append({"filename": path, "error": repr(error)})
    return found


def checked(entry: dict) -> dict:
    dataset, value = entry["dataset"], entry["value"]
    if not isinstance(value, int | float) or not all(
        isinstance(dataset[name], str) for name in ("id", "task_id")
    ):
        raise TypeError("dataset.id and dataset.task_id must be strings and value a number")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset["id"]):
        raise ValueError(f"dataset.id is {dataset['id']!r}, which is no dataset of the Hub")
    if "source" in entry and not entry["source"]["url"].startswith("https://"):
        raise ValueError("source.url must be an address")
    return entry
