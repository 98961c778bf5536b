"""`h2c precompute CONFIG.yaml`: write the Sharer's hidden states of all examples into a folder, once."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..hints import next_commands
from ..modeling import H2CForCausalLM
from ..modeling.inputs_h2c import check_prompt
from ..modeling.processing_h2c import left_pad
from ..pair import Pair
from .arguments import parse
from .data import load_data
from .sharer_states import SharerStates, bytes_per_token, states_identity


SHARD_BYTES = 2**29  # of states; a run that is killed loses at most this much


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, compute the missing states, and tell their size. Return the exit status."""
    h2c, training = parse(arguments, "h2c precompute")
    if not h2c.sharer_states:
        raise ValueError(
            "sharer_states is missing; expected the folder to write, in the yaml file or as --sharer_states "
            "DIR."
        )
    if training.world_size > 1:
        raise ValueError(f"h2c precompute was started as {training.world_size} processes; expected one.")
    pair = Pair(replace(h2c, sharer_states=None))  # this run has the Sharer in memory
    config = pair.bridge_config()
    processor = pair.processor()
    store = SharerStates(h2c.sharer_states, states_identity(h2c, training, pair, processor.sharer_tokenizer))
    damaged = store.scan()
    data = load_data(h2c, training, processor, pair.message_window())
    datasets = [data.train, *data.validation.values()]
    prompts = store.missing(datasets)
    token_bytes = bytes_per_token(
        len(store.identity["layers"]), config.sharer_hidden_size, h2c.sharer_states_dtype
    )
    needed = token_bytes * sum(map(len, prompts.values()))
    print(data.describe())
    print(
        f"{sum(map(len, datasets)):,} examples; to compute: {len(prompts):,} Sharer prompts, "
        f"{needed / 1e6:,.1f} MB",
        flush=True,
    )
    if h2c.dry_run:
        return 0
    refuse_small_disk(store.folder, needed)
    store.begin(damaged)
    if prompts:
        model = pair.model(training.device)
        if getattr(model.sharer, "hf_device_map", None) is None:
            model.sharer.to(training.device)
        with torch.autocast(
            training.device.type,
            torch.bfloat16 if training.bf16 else torch.float16,
            training.bf16 or training.fp16,
        ):
            compute(model, store, prompts, training.eval_batch_size, SHARD_BYTES // token_bytes)
    count, tokens, size = store.size()
    print(
        f"{store.folder} holds {count:,} Sharer prompts of {tokens:,} tokens in {size / 1e6:,.1f} MB: "
        f"{size / tokens / 1e3:,.3f} MB per thousand tokens ({token_bytes:,} bytes a token in "
        f"{h2c.sharer_states_dtype}, and the headers)."
    )
    next_commands(" ".join(["h2c train", *map(shlex.quote, arguments or [])]))
    return 0


def refuse_small_disk(folder: Path, needed: int) -> None:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"The Sharer states need {needed / 1e6:,.1f} MB in {folder}, which has {free / 1e6:,.1f} MB "
            "free; expected more room, or a narrower sharer_states_dtype."
        )


@torch.inference_mode()
def compute(
    model: H2CForCausalLM,
    store: SharerStates,
    prompts: dict[str, np.ndarray],
    batch_size: int,
    shard_tokens: int,
) -> None:
    """Let the Sharer read `prompts` as in training, and write shard after shard. Sorted by length, so that
    batches hold little padding, and the longest first, so that a prompt that does not fit into memory or
    window shows at once."""
    ordered = sorted(prompts.items(), key=lambda item: (-len(item[1]), item[0]))
    layers = store.identity["layers"]
    with tqdm(
        total=sum(map(len, prompts.values())), desc="Reading", unit="token", unit_scale=True
    ) as progress:
        for shard in split(ordered, shard_tokens):
            states = {}
            for start in range(0, len(shard), batch_size):
                batch = shard[start : start + batch_size]
                ids, mask = left_pad([ids.tolist() for _, ids in batch], 0)
                check_prompt("sharer_", ids, mask, model.sharer, least=1)
                read = model.read(ids, mask, layers)
                hidden = torch.stack([read[layer] for layer in layers]).cpu()
                for row, (key, prompt) in enumerate(batch):
                    states[key] = hidden[:, row, -len(prompt) :]
                    progress.update(len(prompt))
            store.write(states)


def split(ordered: list[tuple[str, np.ndarray]], tokens: int) -> list[list[tuple[str, np.ndarray]]]:
    """Runs of prompts with at most so many tokens, or a single one. The rest after some runs is split as it
    was with them: a killed run that goes on writes the shards that it would have written."""
    runs, room = [], 0
    for item in ordered:
        room -= len(item[1])
        if not runs or room < 0:
            runs.append([])
            room = tokens - len(item[1])
        runs[-1].append(item)
    return runs
