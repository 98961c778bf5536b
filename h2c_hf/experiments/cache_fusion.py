"""Position-wise cache fusion, the related system that H2C is compared with: the Receiver's cache is fused
with the Sharer's cache, token by token and layer by layer.

Method: Fu et al. 2025, "Cache-to-Cache: Direct Semantic Communication Between Large Language Models", arXiv
2510.03215. Written anew from its description, with changes that made it stronger here: each model reads its
own tokens, and a token of the Receiver gets the Sharer's that holds its last character; the chat frame is
aligned from the end of the caches; gates start open.

    model = CacheFusion(sharer, receiver, processor, anneal_steps=346)

The model then serves as any `H2CForCausalLM`: in `H2CTrainer`, `evaluate` and `generate`.
"""

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache

from ..modeling import H2CBridgeConfig, H2CForCausalLM, H2CProcessor
from ..modeling.inputs_h2c import CACHE, forked, model_inputs
from ..modeling.layers_h2c import StackedLinear, normalized
from ..modeling.processing_h2c import encode_marked
from ..prompts import user_turn


FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 1e-3
FIRST_GATE = 2.0  # open, of 1,000 draws, 999
# On the scale of `token_ends`: where a prompt ends, and its content, before every token of the frame. fp32
# counts so far exactly.
LAST, CONTENT = 2.0**20, 2.0**20 - 2**10
# SentencePiece's tokens of a single byte, and its mark for a space.
BYTE, SPACE = re.compile("<0x[0-9A-F]{2}>"), "\u2581"


class FusionBridge(PreTrainedModel):
    """The modules that update every bridged layer's keys and values; stacked as in `H2CBridgeModel`.

    A block sees the Receiver's flattened keys (or values) of a token beside those of the Sharer's token:

        z = mlp(join([sharer, receiver]));  x + gate * sigmoid(heads(mlp(z))) * out(mlp(z))

    with a weight for each head and token, and one learned gate, which is drawn (Gumbel-sigmoid) in training,
    ever harder, and 0 or 1 after it. Gates begin open and `out` at zero: before training, the Receiver
    answers as it does alone.
    """

    config: H2CBridgeConfig
    config_class = H2CBridgeConfig
    base_model_prefix = "bridge"

    def __init__(
        self, config: H2CBridgeConfig, sharer_size: int, anneal_steps: int, inner_size: int | None = None
    ):
        """
        Args:
            sharer_size: key-value heads x head_dim of the Sharer.
            anneal_steps: training steps over which the gates harden; all that there will be.
            inner_size: width of a block, by default twice the Receiver's keys: more parameters than the H2C
                bridge of the pair.
        """
        super().__init__(config)
        self.alignment, self.anneal_steps = config.alignment, anneal_steps
        blocks, size = 2 * len(self.alignment), config.receiver_size
        inner = 2 * size if inner_size is None else inner_size
        self.join = StackedLinear(blocks, sharer_size + size, inner)
        self.mlp, self.heads_mlp, self.out_mlp = (
            ResidualMLP(blocks, inner, config.dropout) for _ in range(3)
        )
        self.heads = StackedLinear(blocks, inner, config.receiver_num_key_value_heads)
        self.out = StackedLinear(blocks, inner, size)
        self.gate = nn.Parameter(torch.full((blocks,), FIRST_GATE))
        self.register_buffer("steps", torch.zeros(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StackedLinear):
            bound = 0.0 if module is self.out else module.weight.shape[2] ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)

    @property
    def read_layers(self) -> list[int]:
        """The Sharer layers whose keys and values some bridged layer reads."""
        return sorted({index for _, index in self.alignment})

    def gate_values(self) -> dict[str, list[float | None]]:
        """As `H2CBridgeModel.gate_values`; above 0.5, the gate is open after training."""
        values = {kind: [None] * self.config.receiver_num_hidden_layers for kind in ("key", "value")}
        opened = torch.sigmoid(self.gate.detach()).tolist()
        for i, (layer, _) in enumerate(self.alignment):
            values["key"][layer], values["value"][layer] = opened[2 * i], opened[2 * i + 1]
        return values

    def forward(
        self,
        states: tuple[torch.Tensor | None, ...],
        receiver_cache: Cache,
        receiver_attention_mask: torch.Tensor | None = None,
    ) -> Cache:
        """A new cache, bridged layers rewritten. states: `CacheFusion.read`, one for each cache position."""
        new_cache = forked(receiver_cache)
        layers = [new_cache.layers[layer] for layer, _ in self.alignment]
        cached = torch.stack([x for layer in layers for x in (layer.keys, layer.values)]).transpose(2, 3)
        blocks, batch, length, heads, head_dim = cached.shape
        receiver = cached.reshape(blocks, batch * length, heads * head_dim)
        sharer = torch.stack(
            [half for _, index in self.alignment for half in states[index].chunk(2, -1)]
        ).flatten(1, 2)
        mask = (
            receiver.new_ones(batch * length)
            if receiver_attention_mask is None
            else receiver_attention_mask.flatten()
        )
        tokens, every = mask.nonzero()[:, 0].to(receiver.device), slice(None)

        z = self.mlp(
            self.join(torch.cat([sharer[:, tokens], receiver[:, tokens]], -1).to(self.gate.dtype), every)
        )
        added = self.out(self.out_mlp(z), every).unflatten(-1, (heads, head_dim))
        weight = torch.sigmoid(self.heads(self.heads_mlp(z), every))
        added = (weight * self._gates(weight))[..., None] * added
        bridged = (
            receiver.index_add(1, tokens, added.flatten(-2).to(receiver.dtype))
            .view(cached.shape)
            .transpose(2, 3)
        )
        for layer, keys, values in zip(layers, bridged[::2], bridged[1::2], strict=True):
            layer.keys, layer.values = keys, values
        return new_cache

    def _gates(self, like: torch.Tensor) -> torch.Tensor:
        """(blocks, tokens, heads): 0 to 1 in training, drawn for every token and head; 0 or 1 after it."""
        logits = self.gate.view(-1, 1, 1)
        if not self.training:
            return (logits > 0).to(like)
        done = (self.steps / self.anneal_steps).clamp(max=1)
        self.steps += 1
        temperature = FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** done
        noise = -torch.log(torch.empty_like(like).exponential_())  # Gumbel
        return torch.sigmoid((logits + noise) / temperature)


class ResidualMLP(nn.Module):
    """x + W2 gelu(W1 norm(x)), for each of `blocks`."""

    def __init__(self, blocks: int, size: int, dropout: float):
        super().__init__()
        self.wide = StackedLinear(blocks, size, size)
        self.back = StackedLinear(blocks, size, size)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        every = slice(None)
        update = self.back(F.gelu(self.wide(normalized(x), every)), every)
        return x + F.dropout(update, self.dropout, self.training)


class CacheFusion(H2CForCausalLM):
    """Replaces `H2CForCausalLM` for training with `H2CTrainer`, `evaluate` with its controls and `generate`.

    For prompts that are chat templates around a user's turn, as `H2CProcessor.apply_chat_template` makes
    them, of tokenizers whose tokens are bytes (Llama, Qwen, Gemma, the embedded pair). Saving and
    conversations, which only a bridge for the Hub needs, are left out.
    """

    def __init__(
        self,
        sharer: PreTrainedModel,
        receiver: PreTrainedModel,
        processor: H2CProcessor,
        anneal_steps: int,
        inner_size: int | None = None,
        **overrides,
    ):
        """
        Args:
            anneal_steps, inner_size: see `FusionBridge`.
            overrides: fields of `H2CBridgeConfig`; those of the shapes, `dropout` and `layer_alignment` count
                here.
        """
        config = H2CBridgeConfig.published(sharer.config, receiver.config, **overrides)
        # A config in which the Sharer is the one with a cache.
        turned = H2CBridgeConfig.published(receiver.config, sharer.config)
        super().__init__(
            config, sharer, receiver, FusionBridge(config, turned.receiver_size, anneal_steps, inner_size)
        )
        self.frames, self.bytes = {}, {}
        for role in ("sharer", "receiver"):
            tokenizer = getattr(processor, f"{role}_tokenizer")
            self.frames[role], self.bytes[role] = frame_length(tokenizer), token_bytes(tokenizer)
        # The kickstart is not in the Receiver's cache: its last token there gets the Sharer's last, which is
        # where the Sharer answers.
        self.frames["receiver"] -= 1

    def _read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layers: list[int],
        take: Callable,
        cache: Cache | None = None,
    ) -> None:
        """In the place of hidden state i, the keys and values of the Sharer's layer i, (batch, length, 2 x
        size + 1) in fp32; last in each row, where its token ends. (The controls exchange or blank them
        together.) After them the last hidden state."""
        cache = DynamicCache()
        inputs = model_inputs(self.sharer, input_ids, attention_mask)
        last = self.sharer.base_model(**inputs, **{CACHE: cache}, use_cache=True).last_hidden_state
        ends = self._ends("sharer", input_ids, attention_mask).to(last.device)[:, :, None]
        for index in self.bridge.read_layers:
            layer = cache.layers[index]
            take(
                index,
                torch.cat(
                    [*(x.transpose(1, 2).flatten(2).float() for x in (layer.keys, layer.values)), ends], -1
                ),
            )
        take(len(cache.layers), last)

    def bridged_cache(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharer_input_ids: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
        sharer_hidden_states: tuple[torch.Tensor, ...] | None = None,
        receiver_cache: Cache | None = None,
    ) -> Cache:
        """As in `H2CForCausalLM`."""
        states, cache = sharer_hidden_states, receiver_cache
        states = self.read(sharer_input_ids, sharer_attention_mask) if states is None else states
        cache = self.prefill(input_ids, attention_mask) if cache is None else cache
        mask = None if attention_mask is None else attention_mask[:, :-1]
        ends, aligned = self._ends("receiver", input_ids[:, :-1], mask), []
        for state in states[:-1]:
            if state is not None:
                state = state.to(ends.device)
                places = aligned_places(ends, state[..., -1])
                state = state[..., :-1].take_along_dim(places[:, :, None], 1)
            aligned.append(state)
        return self.bridge(tuple(aligned), cache, mask)

    def _ends(self, role: str, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        return token_ends(self.bytes[role].to(input_ids.device)[input_ids], mask, self.frames[role])


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """How many bytes of text each token stands for, (vocabulary,); 1 for a special token.

    Raises:
        ValueError: for a tokenizer whose tokens are not bytes.
    """
    decoder = str(tokenizer.backend_tokenizer.decoder)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if "ByteLevel" in decoder:  # a character a byte
        lengths = [len(token) for token in tokens]
    elif "ByteFallback" in decoder:  # text, with a mark for a space; of rare characters, a token a byte
        lengths = [
            1 if BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode()) for token in tokens
        ]
    else:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path!r} is not byte-level; expected one whose tokens are "
            "bytes of text."
        )
    for index, token in tokenizer.added_tokens_decoder.items():
        lengths[index] = 1 if token.special else len(token.content.encode())
    return torch.tensor(lengths)


def frame_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a prompt has after the content of its last turn."""
    content = "\ue000"
    rendered = tokenizer.apply_chat_template(user_turn(content), tokenize=False, add_generation_prompt=True)
    return len(encode_marked(tokenizer, [rendered.rpartition(content)[2]])[0])


def token_ends(lengths: torch.Tensor, attention_mask: torch.Tensor, frame: int) -> torch.Tensor:
    """Return the ends of tokens, (batch, length), on a scale that tokenizers share.

    The ends of the frame after the content count up to `LAST`. The ends before it are as many bytes below
    `CONTENT` as follow them of the content. Padding is at 0.
    """
    counted = torch.where(attention_mask.bool(), lengths, 0)[:, : lengths.shape[1] - frame].float()
    after = counted.flip(1).cumsum(1).flip(1) - counted
    frame_ends = LAST + torch.arange(1 - frame, 1, device=after.device).expand(len(after), -1)
    return torch.cat([CONTENT - after, frame_ends], 1) * attention_mask


def aligned_places(ends: torch.Tensor, sharer_ends: torch.Tensor) -> torch.Tensor:
    """For each Receiver token, the first Sharer token that ends no earlier: it holds the last byte."""
    return torch.searchsorted(sharer_ends.contiguous(), ends.contiguous()).clamp(max=sharer_ends.shape[1] - 1)
