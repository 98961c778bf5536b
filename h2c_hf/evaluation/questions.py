"""The questions: Atlas, or any dataset in the columns of `cais/mmlu`; few-shot turns; and the prompts that
are too long for a model."""

from collections import Counter
from pathlib import Path

from ..atlas.questions import atlas_questions
from ..data.parsing import parse_question
from ..data.tables import load_table
from ..modeling import H2CProcessor
from ..prompts import PROMPTS, Prompts
from .batch import conversation, for_sharer
from .methods import METHODS, TextToText
from .runner import MAX_ANSWER_TOKENS


NO_SUBJECT = "no subject"  # of questions without one
HINT_GROWTH = 3  # the Receiver's tokens a token of the Sharer's text, at most


def read_rows(path: str, name: str | None, split: str, columns: tuple[str, ...] = ()) -> list[dict]:
    """The rows of a dataset by short name, Hub id, folder or file, test splits included.

    Raises:
        ValueError: if there is no such dataset, configuration or split, or a column is missing.
    """
    try:
        rows = load_table(path, name, "train" if Path(path).is_file() else split)
    except ValueError as error:
        raise ValueError(
            f"The dataset {path!r} ({name or 'default'}, split {split!r}) cannot be read: {error}"
        ) from None
    if missing := sorted(set(columns) - set(rows.column_names)):
        raise ValueError(
            f"{path} has no column {missing[0]!r}; expected {', '.join(columns)}, got "
            f"{', '.join(rows.column_names)}."
        )
    return rows.to_list()


def load_questions(
    path: str, name: str | None, split: str, shots: int = 0, shots_split: str = "dev"
) -> list[dict]:
    """Questions in the columns of `cais/mmlu`; 'atlas' is the embedded world. `answer` may be a letter,
    `choices` the text of a list (of a CSV file), and `subject` need not be there. Each with the first
    ``shots`` questions of its subject in ``shots_split`` as few-shot turns.

    Raises:
        ValueError: for data that cannot be read, a row whose choices or answer are none, or a subject with
            fewer shots.
    """
    questions = _questions(path, name, split)
    if not shots:
        return questions
    before: dict[str, list[dict]] = {}
    for question in _questions(path, name, shots_split):
        before.setdefault(question["subject"], []).append(question)
    for question in questions:
        found = before.get(question["subject"], [])[:shots]
        if len(found) < shots:
            raise ValueError(
                f"Subject {question['subject']!r} has {len(found)} questions in {shots_split!r}; expected "
                f"{shots} shots."
            )
        question["shots"] = found
    return questions


def _questions(path: str, name: str | None, split: str) -> list[dict]:
    if path == "atlas":
        if split not in ("train", "validation", "test"):
            raise ValueError(f"atlas has no split {split!r}; expected train, validation or test.")
        return atlas_questions(split)
    columns, questions = ("question", "choices", "answer"), []
    for number, row in enumerate(read_rows(path, name, split, columns)):
        try:
            asked = parse_question({column: row[column] for column in columns})
        except ValueError as error:
            raise ValueError(f"Row {number} of {path} ({split}): {error}") from None
        questions.append({**asked, "subject": row.get("subject") or NO_SUBJECT})
    return questions


def limits(
    model,
    methods: list[str],
    form: str,
    max_length: int | None = None,
    answer_tokens: int = MAX_ANSWER_TOKENS,
    draft_tokens: int = 0,
) -> dict[str, int]:
    """Return the longest prompt of each model, {"receiver", "sharer"}, that leaves room for its answer.

    A message takes a position of the Receiver's window for each token of the Sharer's prompt: "both" then
    limits the sum.
    """
    texts = [METHODS[name].max_tokens for name in methods if isinstance(METHODS[name], TextToText)]
    written = {"receiver": HINT_GROWTH * max(*texts, draft_tokens, 0), "sharer": max(*texts, draft_tokens, 0)}
    answered = answer_tokens if form == "open" else 0
    found = {}
    for role in ("receiver", "sharer"):
        window = getattr(
            getattr(model, role).config.get_text_config(decoder=True), "max_position_embeddings", None
        )
        room = float("inf") if window is None else window - written[role] - answered
        found[role] = min(room, max_length or float("inf"))
        if role == "receiver" and model.config.bridge_form == "message":
            found["both"] = room - draft_tokens
    return found


def fit(
    questions: list[dict],
    processor: H2CProcessor,
    longest: dict[str, int],
    form: str,
    prompts: Prompts = PROMPTS,
    skyline: bool = False,
) -> tuple[list[dict], dict]:
    """Make every prompt fit: the earliest few-shot turns are dropped first (truncated); a prompt that is
    still too long is refused.

    Args:
        longest: tokens, as `limits` gives them.
        skyline: the Receiver must have room for the passage, too.

    Returns:
        The questions that are asked; and counts: `questions`, `asked`, `truncated`, `refused`, and
        `refused_rows`.
    """
    asked, refused, counts = [], [], Counter(truncated=0)
    for row, question in enumerate(questions):
        fitted = dict(question)
        while not fits(fitted, processor, longest, form, prompts, skyline) and fitted.get("shots"):
            fitted["shots"] = fitted["shots"][1:]
        if not fits(fitted, processor, longest, form, prompts, skyline):
            refused.append(row)
            continue
        counts["truncated"] += len(fitted.get("shots", [])) < len(question.get("shots", []))
        asked.append(fitted)
    return asked, {
        "questions": len(questions),
        "asked": len(asked),
        **counts,
        "refused": len(refused),
        "refused_rows": refused,
    }


def fits(
    question: dict,
    processor: H2CProcessor,
    longest: dict[str, int],
    form: str,
    prompts: Prompts,
    skyline: bool = False,
) -> bool:
    messages = conversation(question, form, prompts=prompts)
    told = for_sharer(messages, question)
    inputs = processor.apply_chat_template([told if skyline else messages], [told])
    lengths = {"receiver": inputs["input_ids"].shape[1], "sharer": inputs["sharer_input_ids"].shape[1]}
    lengths["both"] = inputs["input_ids"].shape[1] + inputs["sharer_input_ids"].shape[1]
    return all(lengths[name] <= limit for name, limit in longest.items())
