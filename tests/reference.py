"""The method once more, plainly: one block after the other, one example at a time, without padding, without
`generate`. Shares no code with `h2c_hf.modeling`, whose parameters it takes out of their stacked form."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class PlainBlock(nn.Module):
    """block(x, h) = x + scale * sigmoid(gate) * FFN(LN(MHA(LN(x), read(h), read(h)))), with the parameters of
    block `index` of a bridge; read(h) = LN(h) or, with a rank, a linear layer of it."""

    def __init__(self, bridge, index: int):
        super().__init__()
        config = bridge.config
        size, wide = config.receiver_num_key_value_heads * config.receiver_head_dim, config.sharer_hidden_size
        self.scale, self.recency = config.update_scale, config.recency_bias
        self.heads, rank = config.num_attention_heads, config.sharer_rank
        self.norm_receiver = nn.LayerNorm(size)
        self.norm_sharer = nn.LayerNorm(wide)
        self.norm_ffn = nn.LayerNorm(size)
        self.read = nn.Identity() if rank is None else nn.Linear(wide, rank)
        wide = rank or wide
        self.attn = nn.MultiheadAttention(
            size, config.num_attention_heads, kdim=wide, vdim=wide, batch_first=True
        )
        self.ffn = nn.Sequential(
            nn.Linear(size, config.ffn_multiplier * size),
            nn.GELU(),
            nn.Linear(config.ffn_multiplier * size, size),
        )
        blocks = len(bridge.state_dict()["gate"])
        stacked = {
            name: tensor[index * len(tensor) // blocks] for name, tensor in bridge.state_dict().items()
        }
        key_weight, value_weight = stacked["kv_proj.weight"].split(size)
        state = {
            f"{own}.{kind}": stacked[f"{theirs}.{kind}"]
            for own, theirs in (
                ("norm_receiver", "norm_receiver"), ("norm_sharer", "norm_sharer"), ("norm_ffn", "norm_ffn"),
                ("attn.out_proj", "o_proj"), ("ffn.0", "ffn_in"), ("ffn.2", "ffn_out"),
            )
            for kind in ("weight", "bias")
        }  # fmt: skip
        if rank is not None:
            state |= {f"read.{kind}": stacked[f"sharer_proj.{kind}"] for kind in ("weight", "bias")}
        state["attn.in_proj_bias"] = torch.cat([stacked["q_proj.bias"], stacked["kv_proj.bias"]])
        if size == wide:
            state["attn.in_proj_weight"] = torch.cat([stacked["q_proj.weight"], key_weight, value_weight])
        else:
            state |= {
                "attn.q_proj_weight": stacked["q_proj.weight"], "attn.k_proj_weight": key_weight,
                "attn.v_proj_weight": value_weight,
            }  # fmt: skip
        self.load_state_dict(state)
        self.gate = stacked["gate"]
        self.eval()

    @torch.no_grad()
    def forward(self, x: torch.Tensor, h: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """hidden: (positions of x, positions of h), True for what is not attended."""
        h = self.read(self.norm_sharer(h))
        bias = torch.zeros(self.heads, x.shape[1], h.shape[1])
        if hidden is not None:
            bias = bias.masked_fill(hidden, -torch.inf)
        for head in range(self.heads if self.recency else 0):
            for token in range(h.shape[1]):
                bias[head, :, token] -= (h.shape[1] - 1 - token) / 2 ** (8 * head / self.heads)
        attended, _ = self.attn(self.norm_receiver(x), h, h, attn_mask=bias)
        return x + self.scale * torch.sigmoid(self.gate) * self.ffn(self.norm_ffn(attended))


def plain_bridge(bridge, hidden_states, keys, values, hidden=None) -> tuple[list, list]:
    """The bridged keys and values, lists over layers of (1, heads, length, head_dim), of an unpadded example.
    hidden: (length, Sharer's length), True for what is not attended."""
    receiver_layers, sharer_layers = len(keys), len(hidden_states) - 1
    depth = min(receiver_layers, sharer_layers)
    keys, values = list(keys), list(values)
    top = {"top_down": sharer_layers - 1, "last": sharer_layers}[bridge.config.layer_alignment]
    for t in range(depth):
        layer, h = receiver_layers - 1 - t, hidden_states[top - t]
        for kind, states in enumerate((keys, values)):
            _, heads, length, head_dim = states[layer].shape
            flat = states[layer].transpose(1, 2).reshape(1, length, heads * head_dim)
            # A new module draws random weights, which sampling must not notice.
            with torch.random.fork_rng(devices=[]):
                block = PlainBlock(bridge, 2 * (depth - 1 - t) + kind)
            flat = block(flat, h, hidden)
            states[layer] = flat.view(1, length, heads, head_dim).transpose(1, 2)
    return keys, values


def plain_message(model, hidden_states) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A message's keys and values in every Receiver layer, (1, heads, T, head_dim), at 0 to T - 1."""
    config, state = model.config, model.bridge.state_dict()
    layers, depth = config.receiver_num_hidden_layers, config.sharer_num_hidden_layers
    length = hidden_states[0].shape[1]
    rotation = model.receiver.model.rotary_emb(hidden_states[0], torch.arange(length)[None])

    def read(name: str, index: int, states: torch.Tensor) -> torch.Tensor:
        norm = [state[f"message.{name}norm.{kind}"][index] for kind in ("weight", "bias")]
        return F.layer_norm(states, states.shape[-1:], *norm, eps=1e-5)

    def linear(name: str, index: int, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, *(state[f"message.{name}.{kind}"][index] for kind in ("weight", "bias")))

    message = []
    for layer in range(layers):
        states = hidden_states[round(depth / 6 + layer * depth * 2 / 3 / max(1, layers - 1))]
        flat = linear("kv_proj", layer, read("", layer, states))
        if config.token_rank is not None:
            normed = read("token_", 0, hidden_states[0])
            tokens = linear("token_proj", 0, normed)
            if config.token_hidden_size is not None:
                tokens = tokens + linear("token_out", 0, F.gelu(linear("token_in", 0, normed)))
            flat = flat + linear("token_kv_proj", layer, tokens)
        key, value = (
            half.view(1, length, -1, config.receiver_head_dim).transpose(1, 2) for half in flat.chunk(2, -1)
        )
        message.append((apply_rotary_pos_emb(key, key, *rotation)[1], value))
    return message


@torch.no_grad()
def plain_cache(model, input_ids, sharer_input_ids, hidden=None):
    """The bridged cache of all but the last token of an unpadded example. A message stands at positions 0 to
    T - 1 here, and the prompt from T on: with rotary positions that is the same as -T to -1, and 0."""
    hidden_states = model.sharer(sharer_input_ids, output_hidden_states=True).hidden_states
    if model.config.bridge_form == "message":
        positions = torch.arange(input_ids.shape[1] - 1)[None] + hidden_states[0].shape[1]
        cache = model.receiver(input_ids[:, :-1], position_ids=positions, use_cache=True).past_key_values
        for layer, (key, value) in zip(cache.layers, plain_message(model, hidden_states), strict=True):
            layer.keys, layer.values = torch.cat([key, layer.keys], 2), torch.cat([value, layer.values], 2)
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length += key.shape[2]
        return cache
    cache = model.receiver(input_ids[:, :-1], use_cache=True).past_key_values
    keys, values = plain_bridge(
        model.bridge,
        hidden_states,
        [layer.keys for layer in cache.layers],
        [layer.values for layer in cache.layers],
        hidden,
    )
    for layer, key, value in zip(cache.layers, keys, values, strict=True):
        layer.keys, layer.values = key, value
    return cache


@torch.no_grad()
def plain_logits(model, input_ids, sharer_input_ids, continuation, hidden=None) -> torch.Tensor:
    """Logits (T + 1, vocabulary) of the tokens that follow the prompt of an unpadded example, one step after
    the other, while `continuation` (T tokens) is read."""
    cache = plain_cache(model, input_ids, sharer_input_ids, hidden)
    logits = []
    for token in [input_ids[0, -1], *continuation]:
        output = model.receiver(token.view(1, 1), past_key_values=cache, use_cache=True)
        logits.append(output.logits[0, -1])
    return torch.stack(logits)


def plain_decode(model, input_ids, sharer_input_ids, steps: int, choose=torch.argmax) -> torch.Tensor:
    """`steps` tokens after an unpadded prompt; `choose` takes the next one from its logits (vocabulary,)."""
    tokens = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        token = choose(plain_logits(model, input_ids, sharer_input_ids, tokens)[-1])
        tokens = torch.cat([tokens, token.view(1)])
    return tokens


def plain_beams(
    model, input_ids, sharer_input_ids, steps: int, beams: int
) -> list[tuple[torch.Tensor, float]]:
    """The `beams` best continuations of `steps` tokens, best first, with log-probabilities; none ends."""
    kept = [(torch.empty(0, dtype=torch.long), 0.0)]
    for _ in range(steps):
        longer = []
        for tokens, score in kept:
            log_probabilities = (
                plain_logits(model, input_ids, sharer_input_ids, tokens)[-1].float().log_softmax(-1)
            )
            for value, token in zip(*log_probabilities.topk(beams), strict=True):
                longer.append((torch.cat([tokens, token.view(1)]), score + value.item()))
        kept = sorted(longer, key=lambda beam: -beam[1])[:beams]
    return kept
