"""The method as it was first implemented, step for step, as the yardstick of ours.

Calls, copies and frees, and their order, follow the original project's code
(github.com/parkerpettit/h2c-bridge: models/attention.py, models/projector.py, evaluation/base.py,
training/trainer.py). The Sharer is called as a causal language model, with the logits of every position and a
KV cache; every hidden state is cloned; the Receiver's prefill has its logits too; a Python loop runs two
small modules for each bridged layer and clones what goes in and out; Python's and CUDA's garbage is collected
in every step; the norm of every gradient is fetched. Padding is masked here, and targets follow their
kickstart (at first neither was so), so that both ways compute the same; the bridge is in the precision of
ours.
"""

import gc

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from ..modeling import H2CBridgeConfig, H2CForCausalLM
from ..modeling.inputs_h2c import CACHE, model_inputs


class Block(nn.Module):
    """block(x, h) = x + sigmoid(gate) * FFN(LN(MHA(LN(x), LN(h), LN(h)))), named as in old checkpoints."""

    def __init__(self, config: H2CBridgeConfig):
        super().__init__()
        size = config.receiver_size
        wide = config.sharer_hidden_size
        inner = config.ffn_multiplier * config.receiver_size
        self.norm_receiver = nn.LayerNorm(size)
        self.norm_sharer = nn.LayerNorm(wide)
        self.norm_ffn = nn.LayerNorm(size)
        self.attn = nn.MultiheadAttention(
            size, config.num_attention_heads, config.dropout, kdim=wide, vdim=wide, batch_first=True
        )
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = nn.Sequential(
            nn.Linear(size, inner),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(inner, size),
            nn.Dropout(config.dropout),
        )
        self.gate = nn.Parameter(torch.tensor([config.gate_init]))

    def forward(self, x: torch.Tensor, h: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """x: (batch, length, size); h: (batch, T, sharer_hidden_size); padding: (batch, T), True there."""
        h = self.norm_sharer(h)
        attended, _ = self.attn(self.norm_receiver(x), h, h, key_padding_mask=padding, need_weights=False)
        return x + torch.sigmoid(self.gate) * self.ffn(self.norm_ffn(self.dropout(attended)))


class PerLayerBridge(nn.Module):
    """Two blocks for each bridged layer, t counted from the top, as in an original checkpoint."""

    def __init__(self, config: H2CBridgeConfig):
        super().__init__()
        self.blocks = {layer: (t, index) for t, (layer, index) in enumerate(config.alignment[::-1])}
        self.key_modifiers = nn.ModuleList(Block(config) for _ in self.blocks)
        self.value_modifiers = nn.ModuleList(Block(config) for _ in self.blocks)

    def forward(self, hidden_states, cache: DynamicCache, padding: torch.Tensor | None) -> DynamicCache:
        bridged = DynamicCache()
        for layer, own in enumerate(cache.layers):
            keys, values = own.keys.clone(), own.values.clone()
            if layer in self.blocks:
                t, index = self.blocks[layer]
                keys = (
                    rewritten(self.key_modifiers[t], keys, hidden_states[index], padding).clone().contiguous()
                )
                values = (
                    rewritten(self.value_modifiers[t], values, hidden_states[index], padding)
                    .clone()
                    .contiguous()
                )
            bridged.update(keys, values, layer)
        return bridged


def rewritten(
    block: Block, states: torch.Tensor, h: torch.Tensor, padding: torch.Tensor | None
) -> torch.Tensor:
    """states: keys or values, (batch, heads, length, head_dim)."""
    batch, heads, length, head_dim = states.shape
    flat = states.transpose(1, 2).reshape(batch, length, heads * head_dim)
    return block(flat, h, padding).view(batch, length, heads, head_dim).transpose(1, 2)


def bridged_cache(
    model: H2CForCausalLM, bridge: PerLayerBridge, prompt: dict[str, torch.Tensor]
) -> DynamicCache:
    """As `H2CForCausalLM.bridged_cache`; `prompt` has its inputs, the kickstart last in `input_ids`."""
    with torch.no_grad():
        sharer = model_inputs(model.sharer, prompt["sharer_input_ids"], prompt["sharer_attention_mask"])
        outputs = model.sharer(**sharer, output_hidden_states=True)
        hidden_states = tuple(state.detach().clone() for state in outputs.hidden_states)
        del outputs
        own = model_inputs(model.receiver, prompt["input_ids"][:, :-1], prompt["attention_mask"][:, :-1])
        cache = DynamicCache()
        model.receiver(**own, **{CACHE: cache}, use_cache=True)
    gc.collect()
    bridged = bridge(hidden_states, cache, prompt["sharer_attention_mask"] == 0)
    del cache, hidden_states
    empty_cache()
    return bridged


def loss(model: H2CForCausalLM, bridge: PerLayerBridge, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a batch as `H2CForCausalLM.forward` takes it, with `bridge` for the model's own."""
    start = int((batch["labels"] != -100).int().argmax(1)[0])
    prompt = batch | {name: batch[name][:, :start] for name in ("input_ids", "attention_mask")}
    cache = bridged_cache(model, bridge, prompt)
    new = model_inputs(
        model.receiver, batch["input_ids"][:, start - 1 :], batch["attention_mask"], past=start - 1
    )
    return model.receiver(**new, **{CACHE: cache}, labels=batch["labels"][:, start - 1 :].clone()).loss


def update(bridge: PerLayerBridge, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """Backward and the optimizer's step, with every norm that was logged."""
    optimizer.zero_grad()
    loss.backward()
    empty_cache()
    for block in (*bridge.key_modifiers, *bridge.value_modifiers):
        block.attn.out_proj.weight.grad.norm().item(), block.gate.grad.norm().item()
    sum(parameter.grad.norm(2).item() ** 2 for parameter in bridge.parameters())
    nn.utils.clip_grad_norm_(bridge.parameters(), 500.0).item()
    optimizer.step()
    return loss.item()


def empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
