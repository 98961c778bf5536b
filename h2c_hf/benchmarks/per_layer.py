"""The method as it was first implemented, step for step, for comparison: what our step is measured against.

The Sharer is called as a causal language model, with the logits of every position and a KV cache; every hidden state is
cloned; a Python loop runs two small modules for each bridged layer; Python's and CUDA's garbage is collected in every step.
Every module and model is called as it comes, with its default arguments. Padding is masked here (at first it was not), so that both
steps compute the same loss.
"""

import gc

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache

from ..modeling import H2CBridgeConfig, H2CForCausalLM
from ..modeling.inputs_h2c import CACHE, model_inputs


class Block(nn.Module):
    """block(x, h) = x + sigmoid(gate) * FFN(LN(MHA(LN(x), LN(h), LN(h)))), its parameters named as in the original checkpoints."""

    def __init__(self, config: H2CBridgeConfig):
        super().__init__()
        size, wide, inner = config.receiver_size, config.sharer_hidden_size, config.ffn_multiplier * config.receiver_size
        self.norm_receiver, self.norm_sharer, self.norm_ffn = nn.LayerNorm(size), nn.LayerNorm(wide), nn.LayerNorm(size)
        self.attn = nn.MultiheadAttention(size, config.num_attention_heads, config.dropout, kdim=wide, vdim=wide, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(inner, size))
        self.gate = nn.Parameter(torch.tensor([config.gate_init]))

    def forward(self, x: torch.Tensor, h: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """x: (batch, length, size); h: (batch, sharer length, sharer_hidden_size); padding: (batch, sharer length), True there."""
        h = self.norm_sharer(h)
        attended, _ = self.attn(self.norm_receiver(x), h, h, key_padding_mask=padding)
        return x + torch.sigmoid(self.gate) * self.ffn(self.norm_ffn(attended))


class PerLayerBridge(nn.Module):
    """Two blocks for each bridged layer, t counted from the top; its state dict is that of an original checkpoint."""

    def __init__(self, config: H2CBridgeConfig):
        super().__init__()
        self.alignment = config.alignment[::-1]
        self.key_modifiers = nn.ModuleList(Block(config) for _ in self.alignment)
        self.value_modifiers = nn.ModuleList(Block(config) for _ in self.alignment)

    def forward(self, hidden_states, cache: DynamicCache, padding: torch.Tensor) -> DynamicCache:
        """Rewrites `cache` layer by layer."""
        for t, (layer, index) in enumerate(self.alignment):
            target = cache.layers[layer]
            target.keys = self._rewritten(self.key_modifiers[t], target.keys, hidden_states[index], padding)
            target.values = self._rewritten(self.value_modifiers[t], target.values, hidden_states[index], padding)
        return cache

    def _rewritten(self, block: Block, states: torch.Tensor, h: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        batch, heads, length, head_dim = states.shape
        flat = states.transpose(1, 2).reshape(batch, length, heads * head_dim)
        return block(flat, h, padding).view(batch, length, heads, head_dim).transpose(1, 2)


def loss(model: H2CForCausalLM, bridge: PerLayerBridge, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a batch as `H2CForCausalLM.forward` takes it, with `bridge` in the place of the model's own."""
    start = int((batch["labels"] != -100).int().argmax(1)[0])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        sharer = model_inputs(model.sharer, batch["sharer_input_ids"], batch["sharer_attention_mask"])
        outputs = model.sharer(**sharer, output_hidden_states=True, use_cache=True)  # alive until the step ends
        hidden_states = [state.clone() for state in outputs.hidden_states]
        own = model_inputs(model.receiver, ids[:, : start - 1], mask[:, : start - 1])
        cache = model.receiver(**own, use_cache=True)[CACHE]
    cache = bridge(hidden_states, cache, batch["sharer_attention_mask"] == 0)
    new = model_inputs(model.receiver, ids[:, start - 1 :], mask, past=start - 1)
    logits = model.receiver(**new, **{CACHE: cache}, use_cache=True).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, start:].flatten(), ignore_index=-100)


def collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
