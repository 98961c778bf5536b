"""Score what follows the prompts of a batch, given the cache of these prompts."""

import copy

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ..modeling.inputs_h2c import CACHE, model_inputs


IGNORE_INDEX = -100


def prompt_cache(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> Cache:
    """Return a model's cache of all but the last token of left-padded prompts, (batch, length)."""
    cache = DynamicCache(config=model.config)
    if ids.shape[1] > 1:
        model.base_model(**model_inputs(model, ids[:, :-1], mask[:, :-1]), **{CACHE: cache}, use_cache=True)
    return cache


def continuations(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: Cache,
    rows: list[tuple[int, list[int]]],
) -> list[tuple[float, bool]]:
    """Return (log-likelihood, greedy) of each (row of the batch, tokens that follow its prompt).

    Args:
        ids, mask: (batch, length), the left-padded prompts.
        cache: see `prompt_cache`.
    """
    index = torch.tensor([row for row, _ in rows])
    targets = pad_sequence(
        [torch.tensor(target) for _, target in rows], batch_first=True, padding_value=IGNORE_INDEX
    )
    real = targets != IGNORE_INDEX
    # What is read: the kickstart and the target but for its last token, padded on the right behind the
    # left-padded prompt.
    read = torch.cat([ids[index, -1:].cpu(), targets[:, :-1].clamp(min=0)], 1)
    whole_mask = torch.cat([mask[index].cpu(), real[:, 1:].long()], 1)
    inputs = model_inputs(model, read, whole_mask)
    logits = model(
        **inputs, **{CACHE: rows_of(cache, index.to(inputs["input_ids"].device))}, use_cache=True
    ).logits.float()
    targets, real = targets.to(logits.device), real.to(logits.device)
    scores = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    greedy = (logits.argmax(-1) == targets) | ~real
    return list(zip((scores * real).sum(1).tolist(), greedy.all(1).tolist(), strict=True))


def rows_of(cache: Cache, index: torch.Tensor) -> Cache:
    """A new cache of some rows of another, which stays as it is."""
    cache = copy.copy(cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    cache.batch_select_indices(index)
    return cache
