"""A conversation, turn by turn: both models read, and the bridge rewrites, only what is new in a turn."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .inputs_h2c import check_goes_on, check_prompt, forked, refuse_cache


@dataclass
class Past:
    """The state kept between turns."""

    bridge: torch.nn.Module
    sharer_ids: list[int]  # those that `sharer_cache` and `sharer_hidden_states` are of
    sharer_cache: Cache
    sharer_hidden_states: tuple[torch.Tensor | None, ...]
    ids: list[int]  # those that the two caches below are of
    receiver_cache: Cache  # as the Receiver alone has it
    bridged_cache: Cache
    # Of each turn: the Receiver's positions that were bridged by its end, the Sharer's tokens that were read.
    turns: list[tuple[int, int]]


class H2CConversation:
    """Answers one turn of a conversation after the other.

    A bridge of the message form gives the same cache turn by turn as for the whole conversation at once: each
    Sharer token has its own position. In the other form, a position of the Receiver's cache is bridged in the
    turn in which it first stands before the kickstart, from all that the Sharer had read by then, and stays
    so; a turn's kickstart and answer are bridged in the next turn. A turn that reads otherwise than it did (a
    message was edited, or the chat template writes earlier turns in another way) is bridged anew, with all
    after it, as a fresh conversation would.
    """

    def __init__(self, model):
        """
        Args:
            model: an `H2CForCausalLM`.

        Raises:
            ValueError: for a model without the Sharer's weights, or a Receiver that keeps other than keys and
                values.
        """
        check_goes_on(model, "receiver")
        self.model, self._past = model, None

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        sharer_input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ):
        """Return the output of `H2CForCausalLM.generate` for the conversation so far. A turn that fails
        leaves everything as it was.

        Args:
            input_ids, sharer_input_ids: (1, length), the whole conversation, as
                `processor.apply_chat_template(messages)` gives it.
            attention_mask, sharer_attention_mask: all ones.
            kwargs: as for `H2CForCausalLM.generate`.

        Raises:
            ValueError: for more than one conversation, padding, or a prompt that is empty or longer than a
                context window.
        """
        for prefix, ids, mask, model in (
            ("", input_ids, attention_mask, self.model.receiver),
            ("sharer_", sharer_input_ids, sharer_attention_mask, self.model.sharer),
        ):
            check_prompt(prefix, ids, mask, model, least=1 if prefix else 2, bridged=not prefix)
            if len(ids) != 1 or (mask is not None and not mask.all()):
                got = "padding" if len(ids) == 1 else f"a batch of {len(ids)}"
                raise ValueError(
                    f"Got {got} in {prefix}input_ids; expected one conversation, without padding."
                )
        self.model.check_receiver_prompt(input_ids, None, None, sharer_input_ids.shape[1])
        if self.model._bridge_disabled:  # the Receiver alone; what was read before is kept
            return self.model.generate(input_ids, attention_mask, **kwargs)
        refuse_cache(kwargs, "a conversation keeps its own.")
        past = self._read_on(input_ids, sharer_input_ids)
        output = self.model.generate(input_ids, attention_mask, cache=forked(past.bridged_cache), **kwargs)
        self._past = past
        return output

    def _read_on(self, input_ids: torch.Tensor, sharer_input_ids: torch.Tensor) -> Past:
        """Return the state after this turn. The current state is not changed."""
        model, past = self.model, self._past
        if past is None or past.bridge is not model.bridge:  # the bridge was swapped
            sharer_cache, *receiver_caches = (
                DynamicCache(config=base.config) for base in (model.sharer, model.receiver, model.receiver)
            )
            unread = (None,) * (model.config.sharer_num_hidden_layers + 1)
            past = Past(
                model.bridge, [], sharer_cache, unread, [], receiver_caches[0], receiver_caches[1], []
            )
        ids, sharer_ids = input_ids[0, :-1].tolist(), sharer_input_ids[0].tolist()
        # The last position is always read and bridged: where nothing is new, the last turn is answered again.
        same, sharer_same = common_prefix(past.ids, ids[:-1]), common_prefix(past.sharer_ids, sharer_ids)
        turns = [turn for turn in past.turns if turn[0] <= same and turn[1] <= sharer_same]
        bridged = turns[-1][0] if turns else 0

        sharer_cache = first_positions(
            past.sharer_cache, min(sharer_same, len(sharer_ids) - 1), model.sharer.config
        )
        read = sharer_cache.get_seq_length()
        new_states = model.read(sharer_input_ids[:, read:], None, model.bridge.read_layers, sharer_cache)
        states = tuple(
            new if old is None else torch.cat([old[:, :read], new], 1)
            for old, new in zip(past.sharer_hidden_states, new_states, strict=True)
        )
        receiver_cache = first_positions(past.receiver_cache, same, model.receiver.config)
        model.prefill(input_ids[:, receiver_cache.get_seq_length() :], None, receiver_cache)

        turns.append((len(ids), len(sharer_ids)))
        # Each token's keys and values are its own; their positions move with the length.
        if model.config.bridge_form == "message":
            return Past(
                model.bridge,
                sharer_ids,
                sharer_cache,
                states,
                ids,
                receiver_cache,
                model.bridge(states, receiver_cache),
                turns,
            )
        unbridged = DynamicCache()
        bridged_cache = first_positions(past.bridged_cache, bridged, model.receiver.config)
        for index, layer in enumerate(receiver_cache.layers):
            unbridged.update(layer.keys[..., bridged:, :], layer.values[..., bridged:, :], index)
        for index, layer in enumerate(model.bridge(states, unbridged).layers):
            bridged_cache.update(layer.keys, layer.values, index)
        return Past(model.bridge, sharer_ids, sharer_cache, states, ids, receiver_cache, bridged_cache, turns)


def common_prefix(first: list[int], second: list[int]) -> int:
    """How many ids two lists begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(first), len(second)))


def first_positions(cache: Cache, length: int, config: PreTrainedConfig) -> Cache:
    """Return a cache of the first positions of another, which is not changed.

    It is empty if the other cannot go back to them (a sliding window has dropped earlier positions) or cannot
    go on from them (linear attention starts over with more than one token).
    """
    surplus = cache.get_seq_length() - length
    if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return DynamicCache(config=config)
    cache = forked(cache)
    # The Sharer's last layers may not run at all.
    filled = [layer for layer in cache.layers if layer.is_initialized]
    if surplus and any(layer.get_seq_length() > layer.keys.shape[-2] for layer in filled):
        return DynamicCache(config=config)
    for layer in filled if surplus else []:
        layer.crop(-surplus)
    return cache


__all__ = ["H2CConversation"]
