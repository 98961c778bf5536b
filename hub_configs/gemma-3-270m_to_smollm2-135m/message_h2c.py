"""The message form of a bridge: every Sharer token becomes a cache position before the Receiver's prompt.

    Receiver's cache, one layer: | message: T positions, by the Sharer | prompt: N - 1 positions, its own |
    position ids:                | -T ... -1                           | 0 ... N - 2                      |

For Receiver layer l, with h the Sharer's hidden states (T, sharer_hidden_size) of the layer that l reads, and
e those of its embeddings,

    keys, values = W_l norm_l(h) + U_l P(norm(e))

where all layers share P. It is a linear map that is trained with the rest, or, with `token_hidden_size`, a
dictionary: a linear map plus a perceptron, which are learned from the two vocabularies
(`h2c_hf/training/vocabulary.py`) and then left as they are.

The keys are rotated to their positions as the Receiver rotates its own. The prompt keeps the positions that
it has without a message: with rotary positions only differences count, so the prefill does not depend on the
message, and both models read at once. The message is seen by the kickstart and the answer.
"""

import functools
import json

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

from .layers_h2c import StackedLinear, StackedNorm


class MessageProjection(nn.Module):
    """The maps from a Sharer's hidden states to the message's keys and values in each Receiver layer."""

    def __init__(self, config):
        """config: an `H2CBridgeConfig`."""
        super().__init__()
        layers = config.receiver_num_hidden_layers
        size = config.receiver_size
        width = config.sharer_hidden_size
        self.norm = StackedNorm(layers, width)
        self.kv_proj = StackedLinear(layers, width, 2 * size)
        if config.token_rank is not None:
            self.token_norm = StackedNorm(1, width)
            self.token_proj = StackedLinear(1, width, config.token_rank)
            self.token_kv_proj = StackedLinear(layers, config.token_rank, 2 * size)
        if config.token_hidden_size is not None:
            self.token_in = StackedLinear(1, width, config.token_hidden_size)
            self.token_out = StackedLinear(1, config.token_hidden_size, config.token_rank)
        self.token_rank, self.token_hidden_size = config.token_rank, config.token_hidden_size
        self.freeze_dictionary()

    def freeze_dictionary(self) -> None:
        """Take the dictionary out of training: texts would blur the words that they lack."""
        if self.token_hidden_size is not None:
            for part in (self.token_norm, self.token_proj, self.token_in, self.token_out):
                part.requires_grad_(False)

    def project_tokens(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return what every layer reads of the Sharer's tokens: (1, tokens, token_rank).

        Args:
            embeddings: (tokens, sharer_hidden_size), the Sharer's hidden state 0.
        """
        only = slice(0, 1)  # one block, which all layers share
        normed = self.token_norm(embeddings[None], only)
        projected = self.token_proj(normed, only)
        if self.token_hidden_size is None:
            return projected
        return projected + self.token_out(F.gelu(self.token_in(normed, only)), only)

    def forward(self, group: slice, hidden_states: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        """Return the keys (unrotated) and values of a group's layers: (layers, tokens, 2 * size).

        Args:
            hidden_states: (layers, tokens, sharer_hidden_size), those that each layer reads.
            tokens: what `project_tokens` returns; None without a `token_rank`.
        """
        keys_and_values = self.kv_proj(self.norm(hidden_states, group), group)
        if self.token_rank is None:
            return keys_and_values
        return keys_and_values + self.token_kv_proj(tokens.expand(len(hidden_states), -1, -1), group)


def message_positions(
    batch: int, length: int, mask: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Return the position ids (batch, length) of a left-padded message: its last token stands at -1."""
    if mask is None:
        return torch.arange(-length, 0, device=device).expand(batch, -1)
    mask = mask.to(device).long()
    return mask.cumsum(1) - 1 - mask.sum(1, keepdim=True)


@functools.lru_cache(maxsize=64)
def inverse_frequencies(rope_parameters: str, head_dim: int, max_position_embeddings: int) -> torch.Tensor:
    """Return the frequencies (rotated head_dim / 2,) of rotary positions, by `rope_parameters` as JSON."""
    parameters = json.loads(rope_parameters)
    rotated_dim = int(head_dim * parameters.pop("partial_rotary_factor", 1.0))
    # One list of factors for short texts, one for long ones: the short.
    if parameters.get("rope_type", "default") == "longrope":
        parameters = {"rope_type": "default", "rope_theta": parameters["rope_theta"]}
    with torch.device("cpu"), torch.inference_mode(False):
        config = LlamaConfig(
            head_dim=rotated_dim,
            rope_parameters=parameters,
            max_position_embeddings=max_position_embeddings,
            num_attention_heads=1,
        )
        return LlamaRotaryEmbedding(config).inv_freq.clone()


def rotated(keys: torch.Tensor, position_ids: torch.Tensor, frequencies: torch.Tensor | None) -> torch.Tensor:
    """Return keys (batch, heads, length, head_dim), rotated to `position_ids` (batch, length).

    Without `frequencies` they are returned as they are.
    """
    if frequencies is None:
        return keys
    angles = position_ids[:, None, :, None].float() * frequencies.to(keys.device)
    angles = torch.cat([angles, angles], -1)  # (batch, 1, length, rotated head_dim)
    turned, rest = keys.split([angles.shape[-1], keys.shape[-1] - angles.shape[-1]], -1)
    turned = turned.float()
    return torch.cat([(turned * angles.cos() + rotate_half(turned) * angles.sin()).to(keys.dtype), rest], -1)


def add_message(cache: Cache, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Put a message's keys and values, (batch, heads, T, head_dim) each, before those of a cache layer."""
    held = cache.layers[layer]
    held.keys = torch.cat([keys.to(held.keys), held.keys], 2)
    held.values = torch.cat([values.to(held.values), held.values], 2)
    if hasattr(held, "cumulative_length"):  # a sliding window counts what it has seen
        held.cumulative_length += keys.shape[2]


def message_mask(cache: Cache | None) -> torch.Tensor | None:
    """Return the mask (batch, T) of the message that stands first in a bridged cache: 1 for tokens, 0 for
    padding; None without one."""
    return getattr(cache, "message_mask", None)


def message_length(cache: Cache | None) -> int:
    """Return T, the number of a cache's positions that are a message's."""
    mask = message_mask(cache)
    return 0 if mask is None else mask.shape[1]


def with_message(cache: Cache | None, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mask (batch, T + length) over a message and a prompt's `attention_mask`."""
    mask = message_mask(cache)
    return attention_mask if mask is None else torch.cat([mask.to(attention_mask), attention_mask], 1)


__all__ = [
    "MessageProjection", "add_message", "inverse_frequencies", "message_length", "message_mask",
    "message_positions", "rotated", "with_message",
]  # fmt: skip
