"""`items.parquet`: every method's answer to every question, a row each, to check a report or pair two."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import atomic
from ..prompts import LETTERS, open_answer


SCHEMA = pa.schema(
    {
        "form": pa.string(), "item": pa.int32(), "question_id": pa.string(), "subject": pa.string(),
        "question": pa.string(), "expected": pa.string(), "method": pa.string(), "prediction": pa.string(),
        "correct": pa.bool_(), "scores": pa.list_(pa.float32()),
    }
)  # fmt: skip


def item_rows(form: str, questions: list[dict], results: dict[str, dict]) -> list[dict]:
    """Rows of one form ("choice", "open" or "hand_off"). `scores`: the letters' logits, in choice form."""
    rows = []
    for name, result in results.items():
        answers = zip(questions, result["predictions"], result["correct"], result["scores"], strict=True)
        for item, (question, prediction, correct, scores) in enumerate(answers):
            choice = form == "choice"
            rows.append(
                {
                    "form": form, "item": item, "question_id": question_id(question),
                    "subject": question["subject"], "question": question["question"],
                    "expected": LETTERS[question["answer"]] if choice else open_answer(question),
                    "method": name, "prediction": LETTERS[prediction] if choice else prediction,
                    "correct": bool(correct), "scores": scores,
                }
            )  # fmt: skip
    return rows


def question_id(question: dict) -> str:
    """The same for the same words, choices and passage, whatever stands around them."""
    told = [question["question"], question["choices"], question.get("passage")]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def save_items(rows: list[dict], path: Path) -> Path:
    """Write `items.parquet`, atomically."""
    with atomic(path) as temporary_path:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary_path)
    return path


def load_items(path: Path) -> list[dict]:
    """
    Raises:
        ValueError: for a file with other columns.
    """
    try:
        return pq.read_table(path, schema=SCHEMA).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path} is not the items of a report: {str(error).splitlines()[0]}") from None
