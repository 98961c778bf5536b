"""The sources of examples: one registry of worlds, column layouts and forms. Subjects have own modules."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from datasets import Dataset, IterableDataset

from ..prompts import FORMS
from . import atlas  # noqa: F401 - registers itself in WORLDS
from .conversations import read_messages, read_pair, read_sharegpt
from .exchanges import Exchange, UnusableRecordError
from .questions import answered, closed_book, in_words, read_choice_question, with_choice
from .repeat import repeat_records
from .squad import squad_question
from .tables import PARTS, in_part, load_table
from .worlds import WORLDS


# Columns -> question in words. The first layout that fits is taken.
QUESTION_LAYOUTS: dict[tuple[str, ...], Callable[[dict, "DataSource"], dict]] = {
    ("context", "question", "answers"): squad_question,
    ("question", "answers"): closed_book,
}
# Columns -> exchanges.
LAYOUTS: dict[tuple[str, ...], Callable[[dict, "DataSource"], Iterator[Exchange]]] = {
    ("question", "choices", "answer"): read_choice_question,
    ("conversations",): read_sharegpt,
    ("messages",): read_messages,
    ("prompt", "completion"): read_pair,
}
# Forms that need another column; any of those named will do.
COLUMNS = {"hand_off": ("passage",), "told": ("hint", "told"), "quiz": ("messages",)}
# Forms whose records are questions in words already.
MADE = ("words", "word_list", "two_step", "repeat")
IN_WORDS = ("words", "word_list", "two_step")  # of Atlas, with values from a list of words
WRITTEN = ("repeat", "word_list")  # the Receiver writes what the Sharer read
# Fields that a form uses; with another form they are refused, since they would change nothing.
FIELDS_OF_FORM = {
    "values": ("hand_off",), "fewest": WRITTEN, "most": WRITTEN, "count": MADE, "seed": MADE,
    "words": IN_WORDS, "new_words": IN_WORDS,
}  # fmt: skip


@dataclass
class DataSource:
    """One source of a mixture.

    Args:
        path: `atlas`, `openhermes`, `mmlu`, a Hub id, a folder, or a .json, .jsonl, .csv or .parquet file.
        name: configuration of the dataset, if it has several.
        split: as `datasets.load_dataset` takes it ("train", "train[:1000]" ...). Never a test split.
        revision: commit of a dataset on the Hub.
        weight: share of the mixture. If no source has one, all examples of all sources are used.
        form: of multiple-choice questions: "choice", answered by letter; "open", in words and without the
            choices; "hand_off", in words, after a `passage` that only the Sharer reads (in Atlas, of invented
            facts about the split's entities); "told", by letter, when the Receiver's own prompt has the
            answer: in a `hint` that both read, or in what only the Receiver is `told` (in Atlas, half of
            them, and it is not the Sharer's answer), so that the bridge learns to let it stand; or "quiz", of
            Atlas: chats of several questions, each with its answer for both to read (`turns` counts there,
            too). Of Atlas, "words": passages whose values are ordinary words (`words`, `new_words`), and
            "two_step": the same, in which two statements lead to the answer (the capital of the country that
            a city is in); "word_list": words in a random order, which the Receiver is to write (`fewest`,
            `most`). Of any dataset with texts, "repeat": the Sharer reads a text that the Receiver is to
            write (`fewest`, `most`). Passages in the layout of SQuAD and closed-book questions with `answers`
            are known by their columns and need no form.
        turns: of a conversation: the "first" assistant turn is a target, or "all" are, each after the turns
            before it.
        variants: of Atlas: so many differently worded questions a fact.
        facts: of Atlas in the forms "hand_off" and "words": so many facts a passage.
        values: of Atlas in the form "hand_off": so many passages about each value that facts have, instead of
            one about each fact.
        words: of the forms "words", "word_list" and "two_step": the file whose frequent words are the values.
        new_words: of the same forms: take the words that are kept for measuring. Never in training data.
        fewest, most: of the forms "repeat" and "word_list": words of a text.
        count: of the forms "words", "word_list", "two_step" and "repeat": so many examples, instead of one a
            fact or a text.
        seed: of the same forms: another draw.
        part: only the records of the part "train", "validation" or "test", by a hash of their first text, for
            a dataset that comes in one piece.
        crop: of passages in the layout of SQuAD: keep the sentences around the answer, up to so many words; 0
            keeps all.
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
    words: str | None = None
    new_words: bool = False
    fewest: int = 2
    most: int = 12
    count: int | None = None
    seed: int = 0
    part: str | None = None
    crop: int = 0

    # Whether test splits and new words may be read: for reports, not for training or choosing. No field: a
    # class says it.
    for_reports = False

    def __post_init__(self):
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"The weight of {self.path} is {self.weight}; expected a number above 0.")
        choices = {"form": (*FORMS, *COLUMNS, *MADE), "turns": ("first", "all"), "part": (None, *PARTS)}
        for field, known in choices.items():
            if getattr(self, field) not in known:
                expected = ", ".join(str(value) for value in known if value)
                raise ValueError(
                    f"{field} of {self.path} is {getattr(self, field)!r}; expected one of {expected}."
                )
        defaults = {field.name: field.default for field in fields(DataSource)}
        for field, forms in FIELDS_OF_FORM.items():
            if self.form not in forms and getattr(self, field) != defaults[field]:
                raise ValueError(
                    f"{field} of {self.path} is for the form {' or '.join(forms)}; got the form "
                    f"{self.form!r}."
                )
        if self.form in IN_WORDS and self.path != "atlas":
            raise ValueError(
                f"The form {self.form!r} is about Atlas' entities; expected path=atlas and words=FILE, got "
                f"path={self.path}."
            )
        if self.values and self.path != "atlas":
            raise ValueError(f"values is about Atlas' facts; expected path=atlas, got path={self.path}.")
        if self.part and self.path in WORLDS:
            raise ValueError(
                f"part is for datasets that come in one piece; expected a split of {self.path}, got "
                f"part={self.part!r}."
            )
        if (
            self.crop < 0
            or self.fewest < 1
            or self.most < self.fewest
            or (self.count is not None and self.count < 1)
        ):
            raise ValueError(
                f"{self.path} has crop {self.crop}, fewest {self.fewest}, most {self.most}, count "
                f"{self.count}; expected crop of at least 0, 1 <= fewest <= most, and a count of at least 1."
            )
        if self.for_reports:
            return
        for field in ("split", "part"):
            if re.match(r"test\b", getattr(self, field) or ""):
                raise ValueError(
                    f"{field} of {self.path} is {getattr(self, field)!r}: a test split is for reports; "
                    "expected train or validation data."
                )
        if self.new_words and self.split == "train":
            raise ValueError(
                "new_words are kept for measuring; expected them with split=validation only, got "
                "split='train'."
            )

    @classmethod
    def parse(cls, source: "str | dict | DataSource") -> "DataSource":
        """A source from a mapping (yaml), or from `PATH` or `path=PATH,split=...` (the command line).

        Raises:
            ValueError: for an unknown field, or a value that it cannot have.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, str):
            pairs = (
                [part.partition("=") for part in source.split(",")]
                if "=" in source
                else [("path", "=", source)]
            )
            source = {key.strip(): value.strip() for key, _, value in pairs}
        known = {field.name: field.type for field in fields(cls)}
        for key in source:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ValueError(
                    f"A data source has no field {key!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
                )
        if "path" not in source:
            written = ",".join(f"{key}={value}" for key, value in source.items())
            raise ValueError(f"The data source {written!r} has no path; expected path=NAME_OR_ID_OR_FOLDER.")
        typed = {key: _typed(key, value, known[key]) for key, value in source.items() if value is not None}
        try:
            return cls(**typed)
        except TypeError as error:
            raise ValueError(f"A data source cannot be {source}: {error}.") from None

    @property
    def title(self) -> str:
        """The name of the source in reports."""
        new = " new" if self.new_words else ""
        form = {
            "choice": "", "hand_off": f"hand_off {self.facts}", "words": f"words {self.facts}{new}",
            "two_step": f"two_step{new}", "word_list": f"word_list {self.fewest}-{self.most}{new}",
            "repeat": f"repeat {self.fewest}-{self.most}",
        }.get(self.form, self.form)  # fmt: skip
        return " ".join(part for part in (self.path, self.name, self.split, self.part, form) if part)

    def overlaps(self, other: "DataSource") -> bool:
        """Whether two sources read the same records of a split. Different parts have none in common."""
        same = (self.path, self.name, self.split) == (other.path, other.name, other.split)
        return same and (None in (self.part, other.part) or self.part == other.part)

    def load(self, streaming: bool = False) -> Dataset | IterableDataset:
        """The records, one a row.

        Raises:
            ValueError: for a path or split that does not exist, in one sentence.
        """
        if self.path not in WORLDS and self.form != "repeat":
            records = self._table(streaming)
            return records.filter(in_part, fn_kwargs={"part": self.part}) if self.part else records
        records = WORLDS[self.path](self) if self.path in WORLDS else self._table()
        data = Dataset.from_list(repeat_records(records, self) if self.form == "repeat" else records)
        return data.to_iterable_dataset() if streaming else data

    def questions(self) -> tuple[list[dict], int]:
        """The records as questions in words (see `h2c_hf.data.questions`), and how many records are unusable.

        Raises:
            ValueError: for records in another layout.
        """
        records = self.load()
        read = question_reader(records.column_names, self)
        if read is None:
            raise ValueError(
                f"{self.title} has the columns {', '.join(records.column_names)}; "
                f"{_expected(QUESTION_LAYOUTS)}."
            )
        questions, unusable = [], 0
        for row, record in enumerate(records):
            try:
                questions.append(read(record, self))
            except UnusableRecordError:
                unusable += 1
            except ValueError as error:
                raise ValueError(f"Row {row} of {self.title}: {error}") from error
        return questions, unusable

    def _table(self, streaming: bool = False) -> Dataset | IterableDataset:
        try:
            return load_table(self.path, self.name, self.split, self.revision, streaming)
        except ValueError as error:
            raise ValueError(f"{self.title} could not be loaded: {error}") from None


class ReportSource(DataSource):
    """A source of questions for a report: test splits and new words are allowed."""

    for_reports = True


def _typed(key: str, value, annotation):
    """A value as its field has it; the command line gives texts only."""
    kinds = {float | None: float, int: int, int | None: int, bool: _boolean}
    if annotation not in kinds:
        return value
    try:
        return kinds[annotation](value)
    except (TypeError, ValueError):
        raise ValueError(
            f"A data source has {key}={value!r}; expected {NAMES_OF_TYPES[kinds[annotation]]}."
        ) from None


def _boolean(value) -> bool:
    known = {"true": True, "false": False}
    if str(value).lower() not in known:
        raise ValueError(value)
    return known[str(value).lower()]


def question_reader(columns: list[str], source: DataSource) -> Callable[[dict, DataSource], dict] | None:
    """The function that reads records with these columns as questions in words; None for other columns."""
    if source.form in (*MADE, "hand_off", "open") and {"question", "choices", "answer"} <= set(columns):
        return _with_answers
    if source.form in MADE or "choices" in columns:
        return None
    return next((read for needed, read in QUESTION_LAYOUTS.items() if set(needed) <= set(columns)), None)


def _with_answers(record: dict, source: DataSource) -> dict:
    """A multiple-choice question in words: without `answers`, its right choice is the one that counts."""
    if not (answers := record.get("answers")):
        record = with_choice(record)
        answers = [record["choices"][record["answer"]]]
    more = {name: record[name] for name in ("entity", "group") if record.get(name)}
    passage = record.get("passage") if source.form != "open" else None
    return in_words(record["question"], answers, passage, record.get("subject") or "", **more)


NAMES_OF_TYPES = {float: "a number", int: "a whole number", _boolean: "true or false"}


def reader(columns: list[str], source: DataSource) -> Callable[[dict], Iterator[Exchange]]:
    """The function that makes exchanges of a record with these columns.

    Raises:
        ValueError: for columns in no known layout, or without the one that the form needs, or a field that
            changes nothing.
    """
    if (needed := COLUMNS.get(source.form)) and not set(needed) & set(columns):
        raise ValueError(
            f"{source.title} has the columns {', '.join(columns)}; expected {' or '.join(needed)} among them."
        )
    if source.crop and "context" not in columns:
        raise ValueError(
            f"{source.title} has the columns {', '.join(columns)} and crop={source.crop}; expected passages "
            "in `context`."
        )
    if source.form in MADE:
        return lambda record: iter([answered(record)])
    for needed, read in LAYOUTS.items():
        if set(needed) <= set(columns):
            return lambda record: read(record, source)
    if (as_question := question_reader(columns, source)) is not None:
        return lambda record: iter([answered(as_question(record, source))])
    raise ValueError(
        f"{source.title} has the columns {', '.join(columns)}; {_expected({**LAYOUTS, **QUESTION_LAYOUTS})}."
    )


def _expected(layouts: dict[tuple[str, ...], Callable]) -> str:
    return f"expected one of: {'; '.join(' + '.join(needed) for needed in layouts)}"


def group_of(record: dict, exchange: Exchange) -> str:
    """The text that decides on which side of a held-out split a record falls: everything about one text,
    passage or entity together."""
    for column in ("group", "entity", "context", "question"):
        if record.get(column):
            return record[column]
    prompt = exchange[0]
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
