"""The bridge: a Sharer's hidden states in, a rewritten Receiver KV cache out. Knows no tokenizer or LM.

Each bridged layer has a key block and a value block,

    block(x, h) = x + sigmoid(gate) * FFN(LN(MHA(LN(x), LN(h), LN(h))))

with x the Receiver's flattened keys or values and h the hidden states of the Sharer layer that it reads. All
blocks run at once: their parameters are stacked, index 2 * i for the keys and 2 * i + 1 for the values of the
i-th bridged layer.

That is the published form. `H2CBridgeConfig` has options for the attention (`recency_bias`), for how much is
added (`start_shut`, `update_scale`) and for how the Sharer is read (`sharer_rank`: `norm_sharer` and a
projection are then one for both blocks of a layer).
"""

import json
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache

from .configuration_h2c import H2CBridgeConfig
from .inputs_h2c import check_cache, check_mask, check_states, forked
from .layers_h2c import StackedLinear, StackedNorm, inverse_deviation
from .message_h2c import MessageProjection, add_message, inverse_frequencies, message_positions, rotated
from .weights_h2c import WeightsMixin


# Elements of Sharer states that are read together. More would take memory (of all blocks' FFNs at once)
# without saving time: on CPU, of 2**18 to 2**24, 2**22 was among the fastest at every size; on a GPU all
# layers of 512 tokens of the reference pair are 50 million.
GROUP_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}


def recency_bias(heads: int, mask: torch.Tensor) -> torch.Tensor:
    """Return the attention bias (batch, heads, 1, length) by later tokens; see `H2CBridgeConfig`.

    Args:
        mask: (batch, length), which may have padding anywhere.
    """
    slopes = 2 ** (torch.arange(heads, device=mask.device) * (-8 / heads))
    after = mask.sum(1, keepdim=True) - mask.cumsum(1)
    return -slopes[:, None, None] * after[:, None, None]


class H2CBridgeModel(WeightsMixin, PreTrainedModel):
    """Rewrites a Receiver's KV cache from a Sharer's hidden states, layer by layer.

    Method: the H2C course project, "Hidden-to-Cache"; its checkpoints convert (`h2c convert`).
    """

    config: H2CBridgeConfig
    config_class = H2CBridgeConfig
    base_model_prefix = "bridge"
    main_input_name = "sharer_hidden_states"
    _no_split_modules: list[str] = []
    _supports_sdpa = True  # its attention is `scaled_dot_product_attention`

    def __init__(self, config: H2CBridgeConfig):
        super().__init__(config)
        self.alignment = config.alignment
        self.message = MessageProjection(config) if config.bridge_form == "message" else None
        if self.message is None:
            self._keep_in_fp32_modules_strict = ["gate"]  # bf16 swallows a gate's small updates
            self._init_blocks(config)
        self.post_init()

    def _init_blocks(self, config: H2CBridgeConfig) -> None:
        blocks = 2 * len(self.alignment)
        size = config.receiver_size
        inner = config.ffn_multiplier * config.receiver_size
        self.norm_receiver = StackedNorm(blocks, size)
        self.q_proj = StackedLinear(blocks, size, size)
        if config.sharer_rank is None:
            self.norm_sharer = StackedNorm(blocks, config.sharer_hidden_size)
            self.kv_proj = StackedLinear(blocks, config.sharer_hidden_size, 2 * size)
        else:
            self.norm_sharer = StackedNorm(blocks // 2, config.sharer_hidden_size)
            self.sharer_proj = StackedLinear(blocks // 2, config.sharer_hidden_size, config.sharer_rank)
            self.kv_proj = StackedLinear(blocks, config.sharer_rank, 2 * size)
        self.o_proj = StackedLinear(blocks, size, size)
        self.norm_ffn = StackedNorm(blocks, size)
        self.ffn_in = StackedLinear(blocks, size, inner)
        self.ffn_out = StackedLinear(blocks, inner, size)
        # In fp32 whatever the default dtype is: `from_config` does not read `_keep_in_fp32_modules_strict`.
        self.gate = nn.Parameter(torch.full((blocks,), float(config.gate_init), dtype=torch.float32))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, StackedLinear):
            # Glorot, as the original's attention has it; stacked, so the fans are those of one block.
            bound = math.sqrt(6 / (module.weight.shape[1] + module.weight.shape[2]))
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, StackedNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, H2CBridgeModel) and module.message is None:
            init.constant_(module.gate, self.config.gate_init)
            if self.config.start_shut:
                init.zeros_(module.ffn_out.weight)

    def requires_grad_(self, requires_grad: bool = True):
        """As in torch; the dictionary of a message stays frozen."""
        super().requires_grad_(requires_grad)
        if self.message is not None:
            self.message.freeze_dictionary()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. (transformers takes the first parameter's: the gate's, which stays in fp32.)"""
        return (self.q_proj if self.message is None else self.message.kv_proj).weight.dtype

    @property
    def read_layers(self) -> list[int]:
        """The indices into the Sharer's hidden states that the bridge reads."""
        return self.config.read_layers

    @property
    def folded(self) -> bool:
        """Whether `fold` was called."""
        return self.message is None and self.norm_sharer.folded

    @torch.no_grad()
    def fold(self) -> None:
        """Fold norms and gates into the neighbouring projections, in place, for inference.

        The output is the same but for rounding; work that does not depend on the prompt is done once. A
        folded bridge cannot be trained, saved or loaded into. A bridge of the message form has nothing to
        fold.
        """
        if self.folded or self.message is not None:
            return
        reading = self.kv_proj if self.config.sharer_rank is None else self.sharer_proj
        for norm, linear in (
            (self.norm_receiver, self.q_proj),
            (self.norm_sharer, reading),
            (self.norm_ffn, self.ffn_in),
        ):
            weight, scale, shift = linear.weight.float(), norm.weight.float(), norm.bias.float()
            linear.bias.copy_(linear.bias + torch.einsum("boi,bi->bo", weight, shift))
            weight = weight * scale[:, None]
            # The mean of what is normalised already is zero.
            linear.weight.copy_(weight - weight.mean(-1, keepdim=True))
            norm.folded = True
        opened = torch.sigmoid(self.gate.float()) * self.config.update_scale
        self.ffn_out.weight.copy_(self.ffn_out.weight * opened[:, None, None])
        self.ffn_out.bias.copy_(self.ffn_out.bias * opened[:, None])
        self.register_state_dict_pre_hook(self._refuse_folded)
        self.register_load_state_dict_pre_hook(self._refuse_folded)
        self.eval()

    def train(self, mode: bool = True):
        if mode and self.folded:
            self._refuse_folded()
        return super().train(mode)

    def _refuse_folded(self, *_, **__) -> None:
        raise ValueError(
            "The bridge is folded, which is for inference alone; load it again to train it, save it or load "
            "weights into it."
        )

    def gate_values(self) -> dict[str, list[float | None]]:
        """Return sigmoid(gate) of every block, {"key": [...], "value": [...]}, by Receiver layer; None for a
        layer that is not bridged.

        A bridge of the message form has no gates: None for every layer.
        """
        values: dict[str, list[float | None]] = {
            kind: [None] * self.config.receiver_num_hidden_layers for kind in ("key", "value")
        }
        if self.message is not None:
            return values
        gate = self.gate.detach()
        gate = gate.full_tensor() if hasattr(gate, "full_tensor") else gate  # FSDP2 leaves each rank a part
        opened = torch.sigmoid(gate.float()).tolist()
        for i, (layer, _) in enumerate(self.alignment):
            values["key"][layer], values["value"][layer] = opened[2 * i], opened[2 * i + 1]
        return values

    def forward(
        self,
        sharer_hidden_states: tuple[torch.Tensor, ...],
        receiver_cache: Cache,
        sharer_attention_mask: torch.Tensor | None = None,
        receiver_attention_mask: torch.Tensor | None = None,
        in_place: bool = False,
        group: tuple[int, int] | None = None,
    ) -> Cache:
        """Return a new cache, bridged layers rewritten or extended by a message; `receiver_cache` stays.

        A message's positions, one for each column of `sharer_hidden_states`, stand first; the cache's
        `message_mask`, (batch, sharer length), says which of them are padding. See `message_h2c`.

        Args:
            sharer_hidden_states: S + 1 tensors (batch, sharer length, sharer_hidden_size), as transformers
                returns them; those outside `read_layers` may be None.
            receiver_cache: R layers of keys and values (batch, key-value heads, length, head_dim).
            sharer_attention_mask: (batch, sharer length), 1 for tokens, 0 for padding. Padding is not
                attended.
            receiver_attention_mask: (batch, length), likewise. Padded positions are left as they are.
            in_place: rewrite `receiver_cache` itself, each layer's old keys and values freed as soon as they
                are rewritten.
            group: one of `groups`, to rewrite its layers alone; hidden states that only others read may be
                None.

        Raises:
            ValueError: if a shape is not that of the config, or a layer keeps only a window of the prompt.
        """
        alignment = self.alignment if group is None else self.alignment[slice(*group)]
        read = [index for _, index in alignment] + [0] * self.config.reads_embeddings
        batch, sharer_length = check_states(self.config, read, sharer_hidden_states)
        length = check_cache(self.config, [layer for layer, _ in alignment], receiver_cache, batch)
        check_mask("sharer_attention_mask", sharer_attention_mask, batch, sharer_length)
        check_mask("receiver_attention_mask", receiver_attention_mask, batch, length)
        new_cache = receiver_cache if in_place else forked(receiver_cache)
        for first, last in self.groups(batch, max(length, sharer_length)) if group is None else [group]:
            if self.message is None:
                self._rewrite_layers(
                    first,
                    last,
                    sharer_hidden_states,
                    new_cache,
                    sharer_attention_mask,
                    receiver_attention_mask,
                )
            else:
                self._add_message(first, last, sharer_hidden_states, new_cache, sharer_attention_mask)
        if self.message is not None:
            ones = torch.ones(batch, sharer_length, dtype=torch.long, device=self.device)
            new_cache.message_mask = ones if sharer_attention_mask is None else sharer_attention_mask
        return new_cache

    def groups(self, batch: int, length: int) -> dict[tuple[int, int], list[int]]:
        """Which bridged layers are computed together, as many as `GROUP_ELEMENTS` allows: the first and the
        last + 1 of each group, and the indices of the hidden states that it reads. `length` is the longer
        prompt's."""
        together = len(self.alignment)
        # Each group would be compiled for itself.
        if not torch.compiler.is_compiling() and self._compiled_call_impl is None:
            elements = GROUP_ELEMENTS.get(self.device.type, GROUP_ELEMENTS["cuda"])
            together = max(1, elements // (batch * length * self.config.sharer_hidden_size))
        groups = [
            (first, min(first + together, len(self.alignment)))
            for first in range(0, len(self.alignment), together)
        ]
        also = [0] * self.config.reads_embeddings
        return {
            (first, last): [index for _, index in self.alignment[first:last]] + also for first, last in groups
        }

    def _add_message(
        self, first: int, last: int, sharer_hidden_states: tuple, cache: Cache, sharer_attention_mask
    ) -> None:
        """Put the message's keys and values before those of a group's layers, in place."""
        batch, length, _ = sharer_hidden_states[self.alignment[first][1]].shape
        states = [sharer_hidden_states[index] for _, index in self.alignment[first:last]]
        states = torch.stack([state.to(self.device, self.dtype).flatten(0, 1) for state in states])
        # Projected once, for the first group, and let go after the last.
        tokens = getattr(cache, "message_tokens", None)
        if tokens is None and self.config.reads_embeddings:
            tokens = self.message.project_tokens(
                sharer_hidden_states[0].to(self.device, self.dtype).flatten(0, 1)
            )
        cache.message_tokens = tokens if last < len(self.alignment) else None
        projected = self.message(slice(first, last), states, tokens)  # (layers, batch * length, 2 * size)
        heads = self.config.receiver_num_key_value_heads
        projected = projected.view(last - first, batch, length, 2 * heads, -1).transpose(2, 3)
        position_ids = message_positions(batch, length, sharer_attention_mask, self.device)
        for (layer, _), (keys, values) in zip(
            self.alignment[first:last], (p.chunk(2, 1) for p in projected), strict=True
        ):
            add_message(cache, layer, rotated(keys, position_ids, self.frequencies(layer)), values)

    def frequencies(self, layer: int) -> torch.Tensor | None:
        """Return the frequencies by which a Receiver layer rotates its keys; None if it does not."""
        rope, types = self.config.receiver_rope_parameters, self.config.receiver_layer_types
        if types is not None:
            rope = rope.get(types[layer])
        if rope is None:
            return None
        longest = self.config.receiver_max_position_embeddings or 2048
        return inverse_frequencies(json.dumps(rope, sort_keys=True), self.config.receiver_head_dim, longest)

    def _rewrite_layers(
        self, first, last, sharer_hidden_states, cache, sharer_attention_mask, receiver_attention_mask
    ) -> None:
        """Rewrite a group's layers, in place; their old keys and values are freed."""
        layers = [cache.layers[layer] for layer, _ in self.alignment[first:last]]
        batch, heads, length, head_dim = layers[0].keys.shape
        # (blocks, batch * length, size): keys and values of the group's layers, heads flattened
        cached = torch.stack(
            [states.to(self.gate.device) for layer in layers for states in (layer.keys, layer.values)]
        )
        receiver = cached.transpose(2, 3).reshape(len(cached), batch * length, heads * head_dim)
        states = [sharer_hidden_states[index] for _, index in self.alignment[first:last]]
        # States held by the closure: tensors of inference mode cannot be saved for the backward pass.
        rewrite = partial(
            self._rewrite, slice(2 * first, 2 * last), states, sharer_attention_mask, receiver_attention_mask
        )
        # Computed again in the backward pass: a bridge is a hundredth of the work of a step, and much of what
        # that would keep. A compiler decides itself.
        again = torch.is_grad_enabled() and self.training and not torch.compiler.is_compiling()
        bridged = checkpoint(rewrite, receiver, use_reentrant=False) if again else rewrite(receiver)
        bridged = bridged.view(len(cached), batch, length, heads, head_dim).transpose(2, 3)
        for layer, keys, values in zip(layers, bridged[::2], bridged[1::2], strict=True):
            layer.keys, layer.values = keys.to(layer.keys.device), values.to(layer.values.device)

    def _rewrite(
        self, group, sharer_hidden_states, sharer_attention_mask, receiver_attention_mask, receiver
    ) -> torch.Tensor:
        """Return the keys and values of a group with the blocks' updates added.

        Args:
            sharer_hidden_states: one for each layer, (batch, sharer length, sharer_hidden_size).
            receiver: (blocks, batch * length, size), keys and values.
        """
        device, dtype, batch = self.gate.device, self.dtype, len(sharer_hidden_states[0])
        sharer = [states.to(device, dtype).flatten(0, 1) for states in sharer_hidden_states]

        update = self._attend(group, receiver.to(dtype), sharer, batch, sharer_attention_mask)
        update = self.ffn_in(self.norm_ffn(update, group), group)
        update = self.ffn_out(F.dropout(F.gelu(update), self.config.dropout, self.training), group)
        opened = (
            torch.ones_like(self.gate[group])
            if self.folded
            else torch.sigmoid(self.gate[group]) * self.config.update_scale
        )
        scale = opened[:, None, None].to(update.dtype)
        if receiver_attention_mask is not None:
            scale = scale * receiver_attention_mask.to(update).reshape(1, -1, 1)
        return torch.addcmul(receiver, scale.to(receiver.dtype), update.to(receiver.dtype))

    def _attend(self, group, receiver, sharer, batch, sharer_attention_mask) -> torch.Tensor:
        """Cross-attention of a group's blocks. receiver: (blocks, batch * length, size); sharer: blocks / 2
        times (batch * sharer length, sharer_hidden_size) -> (blocks, batch * length, size)."""
        blocks, tokens, size = receiver.shape
        heads = self.config.num_attention_heads

        kv = self._keys_and_values(group, sharer)
        mask = None
        if sharer_attention_mask is not None:
            mask = sharer_attention_mask.to(kv.device, torch.bool)
        if self.config.recency_bias:
            tokens_read = (
                torch.ones(batch, kv.shape[1] // batch, dtype=torch.long, device=kv.device)
                if mask is None
                else mask.long()
            )
            bias = recency_bias(heads, tokens_read).to(kv.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask[:, None, None], -torch.inf)
        elif mask is not None:
            mask = mask[:, None, None]
        if mask is not None:
            mask = mask.repeat(blocks, 1, 1, 1)
        # Layer, batch, token, block, k or v, head, dim.
        kv = kv.view(blocks // 2, batch, -1, 2, 2, heads, size // heads)
        key, value = kv.permute(4, 0, 3, 1, 5, 2, 6).reshape(2, blocks * batch, heads, -1, size // heads)

        query = self.q_proj(self.norm_receiver(receiver, group), group)
        query = query.view(blocks * batch, tokens // batch, heads, size // heads).transpose(1, 2)
        width = size // heads
        # The CPU's kernel takes 16 numbers at once, and slows down with 8.
        wider = -width % 16 if query.device.type == "cpu" else 0
        query, key, value = (F.pad(states, (0, wider)) if wider else states for states in (query, key, value))
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.config.dropout if self.training else 0.0,
            scale=width**-0.5,
        )[..., :width]  # fmt: skip
        return self.o_proj(attended.transpose(1, 2).reshape(blocks, tokens, size), group)

    def _keys_and_values(self, group, sharer) -> torch.Tensor:
        """Return k and v, (blocks / 2, tokens, 4 * size): of a layer's key block, then of its value block.

        Both blocks read the same hidden states, with norms of their own: one matmul serves both. Centering
        and scaling are linear, so they are folded into the weights. Only 1 / std varies by token; it is
        applied to the narrow output.
        """
        shared = self.config.sharer_rank is not None
        layers = slice(group.start // 2, group.stop // 2)
        weight, bias = self.norm_sharer.folded_into(
            *((self.sharer_proj, layers) if shared else (self.kv_proj, group))
        )
        weight = weight.view(len(sharer), -1, weight.shape[-1]).transpose(1, 2)
        if weight.device.type == "cpu" and not torch.is_grad_enabled():
            # Spares a copy of the states.
            projected = torch.stack([torch.mm(*pair) for pair in zip(sharer, weight, strict=True)])
        else:
            # Spares launches; and a copy can be saved for the backward pass, a tensor of inference mode not.
            projected = torch.bmm(torch.stack(sharer), weight)
        scale = torch.stack([inverse_deviation(states) for states in sharer])
        projected = torch.addcmul(bias.view(len(sharer), 1, -1), projected, scale[..., None]).to(
            projected.dtype
        )
        if not shared:
            return projected
        weight, bias = self.kv_proj.weight[group], self.kv_proj.bias[group]
        weight = weight.view(len(sharer), -1, weight.shape[-1]).transpose(1, 2)
        return torch.baddbmm(bias.view(len(sharer), 1, -1), projected, weight)


__all__ = ["H2CBridgeModel"]
