"""Prompts that begin alike: an instruction, a passage, few-shot examples. Both models read it once."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache

from .inputs_h2c import check_goes_on, check_prompt, forked, refuse_cache


@dataclass
class Prefix:
    """The caches and hidden states of a shared prefix; a batch of one."""

    sharer_cache: Cache
    sharer_hidden_states: tuple[torch.Tensor | None, ...]
    receiver_cache: Cache

    @property
    def bytes(self) -> int:
        layers = [
            layer
            for cache in (self.sharer_cache, self.receiver_cache)
            for layer in cache.layers
            if layer.is_initialized
        ]
        tensors = [
            *self.sharer_hidden_states,
            *(states for layer in layers for states in (layer.keys, layer.values)),
        ]
        return sum(states.numel() * states.element_size() for states in tensors if states is not None)


class H2CPrefixCache:
    """Answers batches of prompts that share a prefix.

    Both models' caches of a prefix are kept; the least recently used prefix is dropped first. The bridge
    rewrites every position for every prompt, since each attends to all that the Sharer read. Answers are
    bitwise the same with a kept prefix and with a new one.
    """

    def __init__(self, model, max_bytes: int):
        """
        Args:
            model: an `H2CForCausalLM`.
            max_bytes: the most bytes of kept prefixes.

        Raises:
            ValueError: for a model without the Sharer's weights, or a model that keeps other than keys and
                values.
        """
        check_goes_on(model, "sharer", "receiver")
        self.model, self.max_bytes = model, max_bytes
        self._kept: OrderedDict[tuple, Prefix] = OrderedDict()

    @property
    def bytes(self) -> int:
        """The bytes of the kept prefixes."""
        return sum(prefix.bytes for prefix in self._kept.values())

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()

    @torch.no_grad()
    def generate(
        self,
        prefix: dict[str, torch.Tensor],
        input_ids: torch.Tensor,
        sharer_input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ):
        """Return the output of `H2CForCausalLM.generate` for the whole prompts.

        Args:
            prefix: `input_ids` and `sharer_input_ids`, (1, length) each, that every prompt begins with: of
                the shared messages, `processor.apply_chat_template(messages, add_generation_prompt=False)`.
            input_ids, sharer_input_ids, attention_mask, sharer_attention_mask: (batch, length), the whole
                prompts, left-padded.
            kwargs: as for `H2CForCausalLM.generate`.

        Raises:
            ValueError: for prompts that do not begin with the prefix or hold nothing else, or that `generate`
                would refuse.
        """
        if self.model._bridge_disabled:
            return self.model.generate(input_ids, attention_mask, **kwargs)
        refuse_cache(kwargs, "each call makes its own, of the prefix and what comes after.")
        cache = self.bridged_cache(prefix, input_ids, sharer_input_ids, attention_mask, sharer_attention_mask)
        return self.model.generate(input_ids, attention_mask, cache=cache, **kwargs)

    @torch.no_grad()
    def bridged_cache(
        self,
        prefix: dict[str, torch.Tensor],
        input_ids: torch.Tensor,
        sharer_input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
    ) -> Cache:
        """As `H2CForCausalLM.bridged_cache`; arguments as those of `generate`."""
        model = self.model
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        sharer_attention_mask = (
            torch.ones_like(sharer_input_ids) if sharer_attention_mask is None else sharer_attention_mask
        )
        check_prompt("sharer_", sharer_input_ids, sharer_attention_mask, model.sharer, least=1)
        model.check_receiver_prompt(
            input_ids, attention_mask, sharer_attention_mask, sharer_input_ids.shape[1]
        )
        if len(input_ids) != len(sharer_input_ids):
            raise ValueError(
                f"The Sharer got {len(sharer_input_ids)} prompts and the Receiver {len(input_ids)}; expected "
                "as many."
            )
        # One token more than the prefix for the Sharer; for the Receiver another one, the kickstart, which is
        # never cached.
        check_prefix("sharer_", prefix, sharer_input_ids, sharer_attention_mask, more=1)
        check_prefix("", prefix, input_ids, attention_mask, more=2)
        shared, batch = self._read(prefix), len(input_ids)

        ids, mask = after_prefix(sharer_input_ids, sharer_attention_mask, prefix["sharer_input_ids"].shape[1])
        new = model.read(ids, mask, model.bridge.read_layers, repeated(shared.sharer_cache, batch))
        states = tuple(
            None if old is None else torch.cat([old.expand(batch, -1, -1), state], 1)
            for old, state in zip(shared.sharer_hidden_states, new, strict=True)
        )
        length = prefix["input_ids"].shape[1]
        ids, receiver_mask = after_prefix(input_ids, attention_mask, length)
        cache = model.prefill(ids, receiver_mask, repeated(shared.receiver_cache, batch))
        padding_first(cache, attention_mask, length)
        return model.bridge(states, cache, mask, attention_mask[:, :-1], in_place=True)

    def _read(self, prefix: dict[str, torch.Tensor]) -> Prefix:
        """Return the kept caches of a prefix; read it first if it is new."""
        model, layers = self.model, self.model.bridge.read_layers
        ids, sharer_ids = prefix["input_ids"], prefix["sharer_input_ids"]
        key = (*layers, None, *sharer_ids[0].tolist(), None, *ids[0].tolist())
        if key not in self._kept:
            sharer_cache = DynamicCache(config=model.sharer.config)
            states = model.read(sharer_ids, None, layers, sharer_cache)
            kickstart = ids[:, -1:]  # stands for the one that `prefill` leaves out
            receiver_cache = model.prefill(torch.cat([ids, kickstart], 1))
            self._kept[key] = Prefix(sharer_cache, states, receiver_cache)
        self._kept.move_to_end(key)
        found = self._kept[key]
        while self._kept and self.bytes > self.max_bytes:
            self._kept.popitem(last=False)
        return found


def check_prefix(
    name: str,
    prefix: dict[str, torch.Tensor],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    more: int,
) -> None:
    """
    Raises:
        ValueError: for a prefix that is missing or no single one, and prompts that do not begin with it.
    """
    expected = prefix.get(f"{name}input_ids")
    if expected is None or expected.dim() != 2 or len(expected) != 1 or not expected.shape[1]:
        got = "None" if expected is None else f"shape {tuple(expected.shape)}"
        raise ValueError(
            f"The prefix has {name}input_ids of {got}; expected (1, length), what all prompts begin with."
        )
    length = expected.shape[1]
    for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
        ids = ids[mask.bool()]
        if len(ids) < length + more:
            raise ValueError(
                f"Prompt {row} in {name}input_ids has {len(ids)} tokens; expected at least {more} more than "
                f"the prefix's {length}."
            )
        if not torch.equal(ids[:length], expected[0].to(ids.device)):
            same = int((ids[:length] == expected[0].to(ids.device)).int().cumprod(0).sum())
            raise ValueError(
                f"Prompt {row} in {name}input_ids begins with {same} tokens of the prefix; expected all "
                f"{length}."
            )


def after_prefix(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens after the first `length`, left-padded, (batch, width), and a mask of prefix and rest.

    The mask is (batch, length + width): padding then stands between prefix and rest.
    """
    rest = attention_mask.sum(1) - length
    width = int(rest.max())
    own = torch.arange(width, device=rest.device) >= width - rest[:, None]
    mask = torch.cat([own.new_ones(len(own), length), own], 1).to(attention_mask.dtype)
    return input_ids[:, -width:], mask


def repeated(cache: Cache, batch: int) -> Cache:
    """A cache of a batch of one for all rows of a batch, to go on from; the given one stays as it is."""
    cache = forked(cache)
    for layer in cache.layers:
        if layer.is_initialized:  # the Sharer's last layers may not run at all
            layer.keys = layer.keys.expand(batch, -1, -1, -1)
            layer.values = layer.values.expand(batch, -1, -1, -1)
    return cache


def padding_first(cache: Cache, attention_mask: torch.Tensor, length: int) -> None:
    """Reorder positions from prefix, padding, rest to padding, prefix, rest (left-padded prompts), in place.

    Args:
        attention_mask: (batch, positions + 1), that of the prompts.
        length: of the prefix.
    """
    column = torch.arange(attention_mask.shape[1] - 1, device=attention_mask.device)
    padding = attention_mask.shape[1] - attention_mask.sum(1, keepdim=True)
    source = torch.where(column < padding + length, (column - padding) % (padding + length), column)
    for layer in cache.layers:
        index = source.to(layer.keys.device)[:, None, :, None]
        layer.keys = layer.keys.gather(2, index.expand(*layer.keys.shape))
        layer.values = layer.values.gather(2, index.expand(*layer.values.shape))


__all__ = ["H2CPrefixCache"]
