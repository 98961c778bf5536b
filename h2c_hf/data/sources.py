"""Where examples come from: a dataset by name, Hub id or local path, in any of a few column layouts."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset

from ..atlas.documents import atlas_quizzes
from ..atlas.facts import SPLITS
from ..atlas.questions import atlas_passages, atlas_questions, atlas_told
from .prompts import FORMS, choice_answer, choice_prompt, open_answer, open_prompt, user_turn, with_passage


# Short names of datasets that have one; `atlas` comes with the package.
NAMES = {"openhermes": ("teknium/OpenHermes-2.5", None), "mmlu": ("cais/mmlu", "all")}
FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# ShareGPT's names of the roles, as OpenHermes has them.
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

# Forms that need another column; any of those that stand there will do.
COLUMNS = {"hand_off": ("passage",), "told": ("hint", "told"), "quiz": ("messages",)}

# A prompt, as messages (or as plain text, for models without a chat template, too), and the assistant's turn that follows it; then,
# where the Sharer reads another prompt, that.
Exchange = tuple[list[dict] | str, str] | tuple[list[dict], str, list[dict]]


class UnusableRecordError(ValueError):
    """A record of which no example can be made; the message is the reason that is counted."""


@dataclass
class DataSource:
    """One source of a mixture.

    Args:
        path: `atlas`, `openhermes`, `mmlu`, a Hub id, a folder, or a .json, .jsonl, .csv or .parquet file.
        name: configuration of the dataset, where it has several.
        split: as `datasets.load_dataset` takes it ("train", "train[:1000]" ...). Never a test split.
        revision: commit of a dataset on the Hub.
        weight: share of the mixture. Where no source has one, all examples of all sources are used.
        form: of multiple-choice questions: "choice", answered by letter; "open", in words and without the choices; "hand_off",
            in words, after a `passage` that the Sharer alone reads (in Atlas, of invented facts about the split's entities);
            "told", by letter, where the Receiver's own prompt has the answer: in a `hint` that both read, or in what the Receiver
            alone is `told` (in Atlas, half of them, and it is not what the Sharer knows), so that the bridge learns to let it stand;
            or "quiz", of Atlas: chats of several questions, each with what answers it, for both to read (`turns` counts there, too).
        turns: of a conversation: the "first" assistant turn is a target, or "all" are, each after what went before it.
        variants: of Atlas: so many differently worded questions a fact.
        facts: of Atlas in the form "hand_off": so many facts a passage.
        values: of Atlas in the form "hand_off": so many passages about each value that facts have, instead of one about each fact.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    weight: float | None = None
    form: str = "choice"
    turns: str = "first"
    variants: int = 1
    facts: int = 4
    values: int = 0

    def __post_init__(self):
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"The weight of {self.path} is {self.weight}; expected a number above 0.")
        for field, known in (("form", (*FORMS, *COLUMNS)), ("turns", ("first", "all"))):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} of {self.path} is {getattr(self, field)!r}; expected one of {', '.join(known)}.")
        if re.match(r"test\b", self.split):
            raise ValueError(f"split of {self.path} is {self.split!r}: a test split is for reports; expected train or validation data.")

    @classmethod
    def parse(cls, source: "str | dict | DataSource") -> "DataSource":
        """A source from a mapping (yaml), or from `PATH` or `path=PATH,split=...` (the command line).

        Raises:
            ValueError: for a field that there is not, or a value that it cannot have.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, str):
            pairs = [part.partition("=") for part in source.split(",")] if "=" in source else [("path", "=", source)]
            source = {key.strip(): value.strip() for key, _, value in pairs}
        known = {field.name: field.type for field in fields(cls)}
        for key in source:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ValueError(f"A data source has no field {key!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
        if "path" not in source:
            raise ValueError(f"A data source has no path, but {source}; expected path=NAME_OR_ID_OR_FOLDER.")
        try:
            typed = {"weight": float, "variants": int, "facts": int, "values": int}
            return cls(**{key: typed.get(key, lambda value: value)(value) for key, value in source.items() if value is not None})
        except TypeError as error:
            raise ValueError(f"A data source cannot be {source}: {error}.") from None

    @property
    def title(self) -> str:
        """What reports call it."""
        form = {"choice": "", "hand_off": f"hand_off {self.facts}"}.get(self.form, self.form)
        return " ".join(part for part in (self.path, self.name, self.split, form) if part)

    def load(self, streaming: bool = False) -> Dataset | IterableDataset:
        """The records, one a row.

        Raises:
            ValueError: for a path or split that is not there, in one sentence.
        """
        if self.path == "atlas":
            if self.split not in SPLITS:
                raise ValueError(f"atlas has no split {self.split!r}; expected one of {', '.join(SPLITS)}.")
            data = Dataset.from_list(self._atlas())
            return data.to_iterable_dataset() if streaming else data
        path, name = NAMES.get(self.path, (self.path, self.name))
        options = {"split": self.split, "streaming": streaming}
        try:
            if Path(path).is_file():
                if Path(path).suffix not in FILES:
                    raise ValueError(f"{path} is a {Path(path).suffix or 'nameless'} file; expected {', '.join(FILES)}.")
                return datasets.load_dataset(FILES[Path(path).suffix], data_files=path, **options)
            return datasets.load_dataset(path, self.name or name, revision=self.revision, **options)
        except (FileNotFoundError, ConnectionError, ValueError) as error:  # datasets' own: long, and with advice on its own arguments
            raise ValueError(f"{self.title} could not be loaded: {' '.join(str(error).split())}") from None

    def _atlas(self) -> list[dict]:
        if self.form == "hand_off":
            return atlas_passages(self.split, self.facts, invented=True, values=self.values)
        if self.form == "told":  # of each fact one of two
            both = zip(atlas_told(self.split, False, self.variants), atlas_told(self.split, True, self.variants), strict=True)
            return [{"hint": None, "told": None, **pair[number % 2]} for number, pair in enumerate(both)]
        if self.form == "quiz":
            return atlas_quizzes(self.split, self.variants)
        return atlas_questions(self.split, self.variants)


def reader(columns: list[str], source: DataSource) -> Callable[[dict], Iterator[Exchange]]:
    """The function that makes exchanges of a record with these columns.

    Raises:
        ValueError: for columns in no known layout, or without the one that the form needs.
    """
    if (needed := COLUMNS.get(source.form)) and not set(needed) & set(columns):
        raise ValueError(f"{source.title} has the columns {', '.join(columns)}; expected {' or '.join(needed)} among them.")
    layouts: dict[tuple[str, ...], Callable] = {
        ("question", "choices", "answer"): read_question,
        ("conversations",): read_sharegpt,
        ("messages",): read_messages,
        ("prompt", "completion"): read_pair,
    }
    for needed, read in layouts.items():
        if set(needed) <= set(columns):
            return lambda record: read(record, source)
    expected = "; ".join(" + ".join(needed) for needed in layouts)
    raise ValueError(f"{source.title} has the columns {', '.join(columns)}; expected one of: {expected}.")


def read_question(record: dict, source: DataSource) -> Iterator[Exchange]:
    """Multiple choice in the columns of `cais/mmlu`."""
    try:
        if source.form == "hand_off":
            prompt = open_prompt(record)
            yield user_turn(prompt), open_answer(record), user_turn(with_passage(record["passage"], prompt))
            return
        if source.form == "told":
            for_both = record.get("hint")
            told = user_turn(choice_prompt(record, record.get("told") or for_both))
            yield told, choice_answer(record), user_turn(choice_prompt(record, for_both))
            return
        prompt, answer = FORMS[source.form]
        yield user_turn(prompt(record)), answer(record)
    except (ValueError, TypeError):
        raise UnusableRecordError("answer is none of the choices") from None


def read_sharegpt(record: dict, source: DataSource) -> Iterator[Exchange]:
    """`conversations`: from / value, as in OpenHermes-2.5."""
    unknown = [turn["from"] for turn in record["conversations"] if turn["from"] not in SHAREGPT_ROLES]
    if unknown:
        raise UnusableRecordError("unknown role")
    messages = [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    yield from targets(messages, source.turns)


def read_messages(record: dict, source: DataSource) -> Iterator[Exchange]:
    """`messages`: role / content, as in TRL."""
    yield from targets(record["messages"], source.turns)


def read_pair(record: dict, source: DataSource) -> Iterator[Exchange]:
    """`prompt` and `completion`: both text, or both messages."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not prompt.strip() or not completion.strip():
            raise UnusableRecordError("empty message")
        yield prompt, completion
        return
    yield from targets([*prompt, *completion], source.turns)


def targets(messages: list[dict], turns: str) -> Iterator[Exchange]:
    """An exchange for the first assistant turn, or for each, with all that went before it."""
    found = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i]
    if not found or all(message["role"] == "system" for message in messages[: found[0]]):
        raise UnusableRecordError("no assistant turn after a user turn")
    if any(not isinstance(message["content"], str) or not message["content"].strip() for message in messages[: found[-1] + 1]):
        raise UnusableRecordError("empty message")
    for i in found[:1] if turns == "first" else found:
        yield [{"role": m["role"], "content": m["content"]} for m in messages[:i]], messages[i]["content"]
