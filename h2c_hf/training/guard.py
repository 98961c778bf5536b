"""Guards in training: examples in which the Sharer has read another question, and the Receiver answers as it
does alone.

Without them a bridge is trained on messages that help, and one that does not belong to the question changes
the answer nevertheless.
"""

from datasets import Dataset

from ..modeling import H2CForCausalLM, H2CProcessor
from ..modeling.processing_h2c import left_pad, padding_id
from ..prompts import end_tokens


BATCH = 32  # examples
ANSWER_TOKENS = 24  # of the Receiver; a longer answer is cut, and its end is not learned


def with_guards(data: Dataset, model: H2CForCausalLM, processor: H2CProcessor) -> Dataset:
    """Return the examples with `sharer_input_ids` of another example, half the data away, and with the
    Receiver's own greedy answer as `target_ids`.

    Raises:
        ValueError: for fewer than two examples.
    """
    if len(data) < 2:
        raise ValueError(f"guard_data has {len(data)} examples; expected at least 2, to exchange messages.")
    tokenizer = processor.receiver_tokenizer
    ends, pad = end_tokens(model.receiver, tokenizer), padding_id(tokenizer)

    def answer(batch: dict[str, list]) -> dict[str, list]:
        ids, mask = (part.to(model.receiver.device) for part in left_pad(batch["input_ids"], pad))
        written = model.receiver.generate(
            ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=pad, **ends
        )
        answers = written[:, ids.shape[1] :].tolist()
        return {"target_ids": [until_end(tokens, ends.get("eos_token_id", [])) for tokens in answers]}

    order = sorted(range(len(data)), key=lambda row: len(data[row]["input_ids"]))  # little padding
    back = sorted(range(len(order)), key=order.__getitem__)
    answered = data.select(order).map(
        answer,
        batched=True,
        batch_size=BATCH,
        desc="Writing the Receiver's answers",
        load_from_cache_file=False,
    )
    others = [(row + len(data) // 2) % len(data) for row in range(len(data))]
    exchanged = data.select(others)["sharer_input_ids"]
    guards = answered.select(back).remove_columns("sharer_input_ids")
    guards = guards.add_column("sharer_input_ids", list(exchanged)).select_columns(data.column_names)
    return guards.cast(data.features)


def until_end(tokens: list[int], ends: list[int]) -> list[int]:
    """Return the tokens up to the first end token, and with it."""
    return next((tokens[: n + 1] for n, token in enumerate(tokens) if token in ends), tokens)
