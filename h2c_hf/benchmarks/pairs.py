"""The pair of the benchmarks: random weights in the shapes of the reference pair, or in a share of them."""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ..hub.conversion import stack_blocks
from ..modeling import H2CBridgeConfig, H2CForCausalLM
from .per_layer import PerLayerBridge


# All widths and vocabularies of Llama-3.1-8B and Qwen2.5-0.5B divided by this; layers, and query heads to a
# key-value head, as there.
PAIRS = {"tiny": 32, "scaled": 16, "reference": 1}


def pair(scale: int, dropout: float, device: torch.device) -> H2CForCausalLM:
    """The reference pair with all widths divided by `scale`, in bf16 on CUDA; the bridge in fp32.

    On CPU, whole, it would take 34 GB: there all layers of the Sharer have one set of weights. The time is
    that of different ones, since a layer's 0.9 GB pass through every cache in between.
    """
    whole = scale == 1
    common = {"max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    sharer = LlamaConfig(
        hidden_size=4096 // scale, intermediate_size=14336 // scale, num_hidden_layers=32,
        vocab_size=128256 // scale, num_attention_heads=32 if whole else 4,
        num_key_value_heads=8 if whole else 1, **common,
    )  # fmt: skip
    receiver = Qwen2Config(
        hidden_size=896 // scale, intermediate_size=4864 // scale, num_hidden_layers=24,
        vocab_size=151936 // scale, num_attention_heads=14 if whole else 7,
        num_key_value_heads=2 if whole else 1, head_dim=64 if whole else 128 // scale,
        tie_word_embeddings=True, **common,
    )  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    depth, shared = sharer.num_hidden_layers, whole and device.type == "cpu"
    with device:
        sharer.num_hidden_layers = 1 if shared else depth
        models = [
            LlamaForCausalLM._from_config(sharer, dtype=dtype),
            Qwen2ForCausalLM._from_config(receiver, dtype=dtype),
        ]
    if shared:
        repeat_layer(models[0], depth)
    # Heads of the reference's width, 8: with heads of width 1 the scores, which do not shrink, would outweigh
    # all else.
    config = H2CBridgeConfig.published(
        models[0].config, receiver, num_attention_heads=max(1, 16 // scale), dropout=dropout
    )
    return H2CForCausalLM(config, *models)


def repeat_layer(model: LlamaForCausalLM, depth: int) -> None:
    """Make a model of one layer one of `depth` layers, all with the weights of that one."""
    layers = model.model.layers
    weights = {id(parameter): parameter for parameter in layers[0].parameters()}
    for index in range(1, depth):
        layers.append(copy.deepcopy(layers[0], dict(weights)))
        layers[index].self_attn.layer_idx = index
    model.config.num_hidden_layers = depth


def first_way(model: H2CForCausalLM, device: torch.device) -> PerLayerBridge:
    """Return a bridge of the first implementation, and give the model's bridge the same weights."""
    first = PerLayerBridge(model.config)
    model.bridge.load_state_dict(stack_blocks(first.state_dict(), model.config))
    return first.to(device)


def random_prompts(model: H2CForCausalLM, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Prompts without padding, with masks that say so, as `H2CForCausalLM.forward` takes them."""
    prompts = {}
    for prefix, base in (("", model.receiver), ("sharer_", model.sharer)):
        prompts[f"{prefix}input_ids"] = torch.randint(
            1, base.config.vocab_size, (batch, tokens), device=base.device
        )
        prompts[f"{prefix}attention_mask"] = torch.ones_like(prompts[f"{prefix}input_ids"])
    return prompts
