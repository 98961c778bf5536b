"""Perplexity of answers of instruction data, by Receiver tokens: alone, with the Sharer's words or states."""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..data.examples import IGNORE_INDEX, H2CCollator, encode_example
from ..data.exchanges import Exchange, UnusableRecordError
from ..data.rows import spread_rows
from ..data.sources import DataSource, reader
from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..prompts import PROMPTS, Prompts, user_turn
from ..reports.statistics import perplexity_row
from .batch import Batch
from .methods import MAX_HINT_TOKENS, METHODS, sharer_text
from .progress import Progress, fingerprint
from .questions import HINT_GROWTH


# Those that the Receiver answers.
MEASURED = ("receiver", "text_to_text", "h2c", "shuffled", "zeros", "noise", "adapter")


def load_exchanges(
    path: str, name: str | None, split: str, limit: int | None = None
) -> tuple[list[Exchange], int]:
    """(prompt as messages, the assistant's turn) of instruction data in any layout that training reads; and
    how many records no exchange could be made of. ``limit``: so many records, spread over all.

    Raises:
        ValueError: for data that cannot be read, or is in no known layout.
    """
    source = DataSource(path, name, split)
    records = source.load()
    rows = spread_rows(len(records), limit)
    read, exchanges, unusable = reader(records.column_names, source), [], 0
    for row, record in zip(rows, records.select(rows), strict=True):
        try:
            exchanges += read(record)
        except UnusableRecordError:
            unusable += 1
        except ValueError as error:
            raise ValueError(f"Row {row} of {source.title}: {error}") from error
    return exchanges, unusable


@torch.no_grad()
def perplexity(
    model: H2CForCausalLM,
    processor: H2CProcessor,
    exchanges: list[Exchange],
    methods: list[str],
    longest: dict[str, int],
    batch_size: int = 8,
    adapter: H2CBridgeModel | None = None,
    prompts: Prompts = PROMPTS,
    progress: Progress | None = None,
) -> tuple[dict[str, dict], dict[str, int]]:
    """Perplexity of the assistant's turn of each exchange, given the turns before it.

    Args:
        methods: those of `MEASURED` among them are measured.
        longest: {"receiver", "sharer"}: tokens of a prompt and its answer; longer ones are refused and
            counted.

    Returns:
        {method: {"perplexity", "low", "high", "n", "tokens"}}; and counts: `exchanges`, `asked`, `refused`.
    """
    methods, progress = [name for name in MEASURED if name in methods], progress or Progress()
    room = {
        "receiver": longest["receiver"] - (HINT_GROWTH * MAX_HINT_TOKENS if "text_to_text" in methods else 0)
    }
    examples = []
    for messages, answer in exchanges:
        example = encode_example(processor, messages, answer)
        tokens = len(example["input_ids"]) + len(example["target_ids"])
        if (
            tokens <= room["receiver"]
            and len(example["sharer_input_ids"]) + MAX_HINT_TOKENS <= longest["sharer"]
        ):
            examples.append({**example, "exchange": (messages, answer)})
    if not examples:
        raise ValueError(
            f"None of {len(exchanges)} conversations fits into {longest}; expected some shorter ones."
        )
    examples.sort(key=lambda example: len(example["input_ids"]) + len(example["target_ids"]))
    parts = [
        part.tolist() for part in np.array_split(np.arange(len(examples)), -(-len(examples) // batch_size))
    ]

    def compute(number: int) -> dict:
        part = [examples[row] for row in parts[number]]
        nll = {name: losses(name, model, processor, part, adapter, prompts) for name in methods}
        return {"nll": nll, "tokens": [len(example["target_ids"]) for example in part]}

    asked = {
        "exchanges": exchanges, "methods": methods, "batch_size": batch_size, "longest": str(longest),
        "prefix": prompts.prefix, "bridge": fingerprint(model.bridge), "adapter": fingerprint(adapter),
        "chat_template_kwargs": processor.chat_template_kwargs,
    }  # fmt: skip
    records = list(
        tqdm(
            progress.each(asked, len(parts), compute),
            desc="perplexity",
            unit="batch",
            disable=progress.rank > 0,
        )
    )
    records = progress.gather(records)
    tokens = [count for record in records for count in record["tokens"]]
    rows = {
        name: perplexity_row([nll for record in records for nll in record["nll"][name]], tokens)
        for name in methods
    }
    return rows, {
        "exchanges": len(exchanges),
        "asked": len(examples),
        "refused": len(exchanges) - len(examples),
    }


def losses(
    name: str,
    model: H2CForCausalLM,
    processor: H2CProcessor,
    examples: list[dict],
    adapter: H2CBridgeModel | None,
    prompts: Prompts,
) -> list[float]:
    """Negative log-likelihood of each example's target, nats, summed over its tokens."""
    inputs = H2CCollator(processor)(examples)
    start = int((inputs["labels"] != IGNORE_INDEX).int().argmax(1)[0])
    batch = Batch(model, processor, examples, adapter=adapter)
    prompt = {key: inputs[key][:, :start] for key in ("input_ids", "attention_mask")}
    device = model.device
    batch.inputs = {key: value.to(device) for key, value in {**inputs, **prompt}.items()}
    if name == "text_to_text":
        hints = sharer_text(batch, batch.inputs, max_new_tokens=MAX_HINT_TOKENS, do_sample=False)
        hinted = [
            with_hint(*example["exchange"], hint, processor, prompts)
            for example, hint in zip(examples, hints, strict=True)
        ]
        return losses("receiver", model, processor, hinted, adapter, prompts)
    labels = inputs["labels"].to(device)
    cache = METHODS[name].cache(batch)
    logits = model(
        inputs["input_ids"].to(device),
        inputs["attention_mask"].to(device),
        labels=labels,
        past_key_values=cache,
    ).logits
    targets = labels[:, start:]
    return (
        F.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none"
        )
        .sum(1)
        .tolist()
    )


def with_hint(
    messages: list[dict] | str, answer: str, hint: str, processor: H2CProcessor, prompts: Prompts
) -> dict:
    """Return the example with the Sharer's text after its last question."""
    *before, last = user_turn(messages) if isinstance(messages, str) else messages
    told = {**last, "content": f"{last['content']}\n{prompts.prefix} {hint}"}
    return encode_example(processor, [*before, told], answer)
