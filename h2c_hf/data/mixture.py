"""The training mixture: sources encoded, filtered by length and weighed, with counts of all examples."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import datasets
from datasets import Dataset, IterableDataset, Value
from jinja2 import TemplateError

from ..modeling import H2CProcessor
from .examples import Rendered, encode_rendered, render_example
from .exchanges import Exchange, UnusableRecordError
from .files import told_of
from .sources import DataSource, group_of, reader
from .tables import share


IDS = ("input_ids", "sharer_input_ids", "target_ids")
# Raised when what is encoded changes, so that the datasets cache does not serve what an earlier version
# encoded.
ENCODING = 3


@dataclass
class SourceCount:
    """Counts of a source's records: examples = kept + dropped, and kept = used + held_out + those that the
    weights leave. A record is one example, or several with `turns="all"`."""

    source: str
    weight: float | None
    records: int = 0
    examples: int = 0
    kept: int = 0
    used: int = 0
    held_out: int = 0
    dropped: Counter = field(default_factory=Counter)


@dataclass
class DataReport:
    """Counts by source. Those of a stream grow while it is read."""

    sources: list[SourceCount]
    streaming: bool = False

    def reset(self) -> None:
        """Begin to count again, as a stream does that is read anew."""
        for count in self.sources:  # in place: the stream holds them
            count.__init__(count.source, count.weight)

    def to_dict(self) -> dict:
        return {
            "streaming": self.streaming,
            "sources": [{**asdict(source), "dropped": dict(source.dropped)} for source in self.sources],
        }

    def __str__(self) -> str:
        if self.streaming:
            return "\n".join(f"  {source.source}: streamed, counted as it is read" for source in self.sources)
        lines = []
        for count in self.sources:
            share = "" if count.weight is None else f", weight {count.weight:g}"
            held = f", {count.held_out:,} held out" if count.held_out else ""
            lines.append(
                f"  {count.source}: {count.records:,} records, {count.kept:,} examples kept{held}, "
                f"{count.used:,} used{share}"
            )
            lines += [
                f"    dropped, {reason}: {number:,}" for reason, number in sorted(count.dropped.items())
            ]
        return "\n".join(lines)


def build_dataset(
    sources: list[DataSource],
    processor: H2CProcessor,
    max_length: int = 2048,
    seed: int = 0,
    num_proc: int | None = None,
    streaming: bool = False,
    hold_out: float = 0.0,
    together: int | None = None,
) -> tuple[Dataset | IterableDataset, Dataset | None, DataReport]:
    """Encode and mix.

    Args:
        max_length: longest example, in tokens of either model as they are fed: the Sharer's prompt; the
            Receiver's prompt and target.
        seed: of which examples a weighted mixture takes, and of their order.
        hold_out: share of the examples that are left for validation. Which is decided by the text of a
            record's first prompt, so that one conversation, or a question that occurs twice, is never on both
            sides.
        together: most tokens of both prompts and the target together, if a bridge gives the Sharer's tokens
            positions in the Receiver's context window.

    Returns:
        The mixture, with the columns of `h2c_hf.data.examples.encode_example`; the held-out part, or None;
        and the counts.

    Raises:
        ValueError: if weights are given to some sources alone, or nothing is left.
    """
    weights = [source.weight for source in sources]
    if None in weights and any(weights):
        raise ValueError(
            f"Some sources have a weight and others have none: got {weights}; expected a weight for all, or "
            "for none."
        )
    counts = [SourceCount(source.title, source.weight) for source in sources]
    if streaming:
        parts = [
            encode_stream(source, processor, (max_length, together), count)
            for source, count in zip(sources, counts, strict=True)
        ]
        probabilities = None if None in weights else [weight / sum(weights) for weight in weights]
        mixed = datasets.interleave_datasets(parts, probabilities, seed=seed) if len(parts) > 1 else parts[0]
        return mixed, None, DataReport(counts, streaming=True)
    parts = [
        encode_source(source, processor, (max_length, together), num_proc, count)
        for source, count in zip(sources, counts, strict=True)
    ]
    held_out = None
    if hold_out:
        sides = [split(part, hold_out) for part in parts]
        parts = [kept for kept, _ in sides]
        held_out = datasets.concatenate_datasets([held for _, held in sides])
        for count, (_, held) in zip(counts, sides, strict=True):
            count.held_out = len(held)
    for count, part in zip(counts, parts, strict=True):
        if not len(part):
            raise ValueError(
                f"Nothing of {count.source} is left: {count.records:,} records, dropped "
                f"{dict(count.dropped)}."
            )
    if held_out is not None and not len(held_out):
        raise ValueError(
            f"A validation_fraction of {hold_out} holds out none of {sum(map(len, parts)):,} examples; "
            "expected more."
        )
    parts = weigh(parts, weights, seed)
    for count, part in zip(counts, parts, strict=True):
        count.used = len(part)
    return (
        datasets.concatenate_datasets(parts).select_columns(IDS),
        held_out and held_out.select_columns(IDS),
        DataReport(counts),
    )


def weigh(parts: list[Dataset], weights: list[float | None], seed: int) -> list[Dataset]:
    """As many examples as the weights allow without a repeat: the first source to run out is used whole."""
    if None in weights:
        return parts
    unit = min(len(part) / weight for part, weight in zip(parts, weights, strict=True))
    numbers = [
        min(len(part), max(1, round(unit * weight))) for part, weight in zip(parts, weights, strict=True)
    ]
    return [
        part.shuffle(seed=seed).select(range(number)) for part, number in zip(parts, numbers, strict=True)
    ]


def split(examples: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """(kept, held out), by the hash of each record's first prompt."""
    held = [group < fraction * 2**32 for group in examples["group"]]
    kept, held_out = ([i for i, is_held in enumerate(held) if is_held == side] for side in (False, True))
    return examples.select(kept), examples.select(held_out)


def encode_source(
    source: DataSource,
    processor: H2CProcessor,
    longest: tuple[int, int | None],
    num_proc: int | None,
    count: SourceCount,
) -> Dataset:
    records = source.load()
    encode = RecordEncoder(processor, source, records.column_names, *longest)
    encoded = records.map(
        encode,
        with_indices=True,
        batched=True,
        batch_size=100,
        remove_columns=records.column_names,
        features=datasets.Features(
            {name: datasets.List(Value("int32")) for name in IDS}
            | {"group": Value("int64"), "dropped": Value("string")}
        ),
        num_proc=num_proc,
        desc=f"encoding {source.title}",
    )
    reasons = encoded["dropped"][:]
    count.records = len(records)
    count.examples = len(reasons)
    count.dropped = Counter(reason for reason in reasons if reason)
    kept = encoded.select([i for i, reason in enumerate(reasons) if not reason])
    count.kept = len(kept)
    return kept


def encode_stream(
    source: DataSource, processor: H2CProcessor, longest: tuple[int, int | None], count: SourceCount
) -> IterableDataset:
    records = source.load(streaming=True)
    with told_of(f"{source.title} could not be loaded: "):
        columns = records.column_names or list(next(iter(records)))
    encode = RecordEncoder(processor, source, columns, *longest)

    def encode_and_count(batch: dict, rows: list[int]) -> dict:
        encoded = encode(batch, rows)
        count.records += len(batch[columns[0]])
        count.examples += len(encoded["dropped"])
        count.dropped.update(reason for reason in encoded["dropped"] if reason)
        kept = [i for i, reason in enumerate(encoded["dropped"]) if not reason]
        count.kept += len(kept)
        count.used = count.kept
        return {name: [encoded[name][i] for i in kept] for name in IDS}

    return records.map(
        encode_and_count, with_indices=True, batched=True, batch_size=100, remove_columns=columns
    )


class RecordEncoder:
    """Batches of records to examples: `IDS`, the record's `group`, and in `dropped` the reason, or ""."""

    def __init__(
        self,
        processor: H2CProcessor,
        source: DataSource,
        columns: list[str],
        max_length: int,
        together: int | None = None,
    ):
        """max_length, together: see `build_dataset`."""
        self.processor = processor
        self.max_length = max_length
        self.together = together
        self.encoding = ENCODING
        # With the rest it is the key in the datasets cache, and weighs nothing here.
        self.source = replace(source, weight=None)
        self.columns = columns
        reader(columns, self.source)  # refuses columns that it cannot read

    @cached_property
    def read(self) -> Callable[[dict], Iterator[Exchange]]:
        """The function that makes exchanges of a record. Made when it is used: the datasets cache pickles the
        encoder for its key, and dill does not end on functions that call each other."""
        return reader(self.columns, self.source)

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        """
        Args:
            indices: the records' row numbers in their source.

        Raises:
            ValueError: for a record with a text that writes no list where one is needed, with its row number.
        """
        rows, rendered = [], []
        for index, *values in zip(indices, *batch.values(), strict=True):
            try:
                for row, texts in self._render_record(dict(zip(batch, values, strict=True))):
                    rows.append(row)
                    rendered.append(texts)
            except ValueError as error:
                raise ValueError(f"Row {index} of {self.source.title}: {error}") from error
        # All that could be rendered is encoded in one call: a tokenizer's call costs more than a short text.
        encoded = iter(encode_rendered(self.processor, [texts for texts in rendered if texts is not None]))
        rows = [
            row if texts is None else self._fit({**row, **next(encoded)})
            for row, texts in zip(rows, rendered, strict=True)
        ]
        return {name: [row[name] for row in rows] for name in (*IDS, "group", "dropped")}

    def _render_record(self, record: dict) -> Iterator[tuple[dict, Rendered | dict | None]]:
        """A row for each exchange of the record, and its texts; None for one that is dropped."""
        try:
            exchanges = list(self.read(record))
        except UnusableRecordError as reason:
            yield self._dropped(str(reason)), None
            return
        group = int(share(group_of(record, exchanges[0])) * 2**32)
        for exchange in exchanges:
            try:
                yield {"group": group, "dropped": ""}, render_example(self.processor, *exchange)
            except TemplateError:  # a template that has no system turn, say
                yield self._dropped("refused by a chat template"), None

    def _fit(self, row: dict) -> dict:
        if len(row["sharer_input_ids"]) > self.max_length:
            return self._dropped("too long for the Sharer")
        if len(row["input_ids"]) + len(row["target_ids"]) > self.max_length:
            return self._dropped("too long for the Receiver")
        if self.together and sum(len(row[name]) for name in IDS) > self.together:
            return self._dropped("too long for the Receiver with the Sharer's message")
        return row

    @staticmethod
    def _dropped(reason: str) -> dict:
        return {**{name: [] for name in IDS}, "group": 0, "dropped": reason}
