"""Perplexity of the answers of instruction data, by the Receiver's tokens: alone, with the Sharer's words, with its states."""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..data.examples import IGNORE_INDEX, H2CCollator, encode_example
from ..data.prompts import PROMPTS, Prompts
from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from .methods import MAX_HINT_TOKENS, METHODS, Batch, sharer_text
from .progress import Progress, fingerprint
from .questions import HINT_GROWTH, read_rows
from .statistics import perplexity_row


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MEASURED = ("receiver", "text_to_text", "h2c", "shuffled", "zeros", "noise", "adapter")  # those that the Receiver answers


def load_conversations(path: str, name: str | None, split: str, limit: int | None = None) -> list[list[dict]]:
    """Conversations that end in an assistant's turn, from `messages` (role, content) or OpenHermes' `conversations` (from, value).

    Raises:
        ValueError: for rows in neither layout.
    """
    conversations = []
    for row in read_rows(path, name, split):
        turns = row.get("messages") or row.get("conversations")
        if not turns:
            raise ValueError(f"{path} has rows with columns {', '.join(row)}; expected messages or conversations.")
        messages = [
            {"role": ROLES.get(turn.get("from") or turn.get("role"), "user"), "content": turn.get("value") or turn.get("content") or ""}
            for turn in turns
        ]
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        if len(messages) > 1:
            conversations.append(messages)
    if limit and limit < len(conversations):
        conversations = [conversations[row] for row in np.linspace(0, len(conversations) - 1, limit, dtype=int)]
    return conversations


@torch.no_grad()
def perplexity(
    model: H2CForCausalLM,
    processor: H2CProcessor,
    conversations: list[list[dict]],
    methods: list[str],
    longest: dict[str, int],
    batch_size: int = 8,
    adapter: H2CBridgeModel | None = None,
    prompts: Prompts = PROMPTS,
    progress: Progress | None = None,
) -> tuple[dict[str, dict], dict[str, int]]:
    """Perplexity of the last turn of each conversation, given the turns before it.

    Args:
        methods: those of `MEASURED` among them are measured.
        longest: {"receiver", "sharer"}: tokens of a prompt and its answer; longer ones are refused and counted.

    Returns:
        {method: {"perplexity", "low", "high", "n", "tokens"}}; and counts: `conversations`, `asked`, `refused`.
    """
    methods, progress = [name for name in MEASURED if name in methods], progress or Progress()
    room = {"receiver": longest["receiver"] - (HINT_GROWTH * MAX_HINT_TOKENS if "text_to_text" in methods else 0)}
    examples = []
    for messages in conversations:
        example = encode_example(processor, messages[:-1], messages[-1]["content"] or " ")
        tokens = len(example["input_ids"]) + len(example["target_ids"])
        if tokens <= room["receiver"] and len(example["sharer_input_ids"]) + MAX_HINT_TOKENS <= longest["sharer"]:
            examples.append({**example, "messages": messages})
    if not examples:
        raise ValueError(f"None of {len(conversations)} conversations fits into {longest}; expected some shorter ones.")
    examples.sort(key=lambda example: len(example["input_ids"]) + len(example["target_ids"]))
    parts = [part.tolist() for part in np.array_split(np.arange(len(examples)), -(-len(examples) // batch_size))]

    def compute(number: int) -> dict:
        part = [examples[row] for row in parts[number]]
        nll = {name: losses(name, model, processor, part, adapter, prompts) for name in methods}
        return {"nll": nll, "tokens": [len(example["target_ids"]) for example in part]}

    asked = {
        "conversations": conversations, "methods": methods, "batch_size": batch_size, "longest": str(longest),
        "prefix": prompts.prefix, "bridge": fingerprint(model.bridge), "adapter": fingerprint(adapter),
    }  # fmt: skip
    records = list(tqdm(progress.each(asked, len(parts), compute), desc="perplexity", unit="batch", disable=progress.rank > 0))
    records = progress.gather(records)
    tokens = [count for record in records for count in record["tokens"]]
    rows = {name: perplexity_row([nll for record in records for nll in record["nll"][name]], tokens) for name in methods}
    return rows, {"conversations": len(conversations), "asked": len(examples), "refused": len(conversations) - len(examples)}


def losses(
    name: str, model: H2CForCausalLM, processor: H2CProcessor, examples: list[dict], adapter: H2CBridgeModel | None, prompts: Prompts
) -> list[float]:
    """Negative log-likelihood of each example's target, nats, summed over its tokens."""
    inputs = H2CCollator(processor)(examples)
    start = int((inputs["labels"] != IGNORE_INDEX).int().argmax(1)[0])
    batch = Batch(model, processor, examples, adapter=adapter)
    prompt = {key: inputs[key][:, :start] for key in ("input_ids", "attention_mask")}
    device = model.receiver.device
    batch.inputs = {key: value.to(device) for key, value in {**inputs, **prompt}.items()}
    if name == "text_to_text":
        hints = sharer_text(batch, batch.inputs, max_new_tokens=MAX_HINT_TOKENS, do_sample=False)
        hinted = [with_hint(example["messages"], hint, processor, prompts) for example, hint in zip(examples, hints, strict=True)]
        return losses("receiver", model, processor, hinted, adapter, prompts)
    labels = inputs["labels"].to(device)
    cache = METHODS[name].cache(batch)
    logits = model(inputs["input_ids"].to(device), inputs["attention_mask"].to(device), labels=labels, past_key_values=cache).logits
    targets = labels[:, start:]
    return F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none").sum(1).tolist()


def with_hint(messages: list[dict], hint: str, processor: H2CProcessor, prompts: Prompts) -> dict:
    """The example with what the Sharer said after its last question."""
    *before, last, answer = messages
    told = {**last, "content": f"{last['content']}\n{prompts.prefix} {hint}"}
    return {**encode_example(processor, [*before, told], answer["content"] or " "), "messages": messages}
