import json

import pytest
import yaml


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with the Atlas questions as a task of lm-eval."""
    from lm_eval_requests import QUESTIONS, TASK  # imports lm_eval

    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.jsonl").write_text(
        "".join(json.dumps(question) + "\n" for question in QUESTIONS), encoding="utf-8"
    )
    task = TASK | {"dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}}}
    (folder / "atlas_choice.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder
