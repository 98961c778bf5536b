"""Drafts of the Sharer in training: written once, before the first step, after all examples' prompts."""

from datasets import Dataset

from ..modeling import H2CForCausalLM, H2CProcessor
from ..modeling.processing_h2c import left_pad, padding_id
from ..prompts import end_tokens


BATCH = 32  # examples


def with_drafts(data: Dataset, model: H2CForCausalLM, processor: H2CProcessor, tokens: int) -> Dataset:
    """Return the examples with up to `tokens` greedy tokens of the Sharer after their `sharer_input_ids`.

    The bridge then trains on the same inputs as in `generate(sharer_max_new_tokens=tokens)`; the Sharer reads
    prompt and draft in one pass.
    """
    tokenizer = processor.sharer_tokenizer
    ends, pad = end_tokens(model.sharer, tokenizer), padding_id(tokenizer)

    def write(batch: dict[str, list]) -> dict[str, list]:
        ids, mask = left_pad(batch["sharer_input_ids"], pad)
        draft = model.draft(ids, mask, tokens, **ends)
        rows = zip(draft.sharer_input_ids, draft.sharer_attention_mask.bool(), strict=True)
        return {"sharer_input_ids": [row[kept].tolist() for row, kept in rows]}

    order = sorted(range(len(data)), key=lambda row: len(data[row]["sharer_input_ids"]))  # little padding
    back = sorted(range(len(order)), key=order.__getitem__)
    written = data.select(order).map(
        write, batched=True, batch_size=BATCH, desc="Writing drafts", load_from_cache_file=False
    )
    return written.select(back)
