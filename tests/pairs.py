"""Helpers of the tests: tiny real models with random weights, a random bridge, inputs and tokenizers."""

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from h2c_hf.modeling import H2CBridgeConfig, H2CForCausalLM, H2CProcessor


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "mistral": (MistralForCausalLM, MistralConfig),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig),
}
VOCABULARY = 61


def tiny_model(family: str, seed: int = 0, **config):
    """A language model with random weights so large that its logits differ; no token ends the text."""
    torch.manual_seed(seed)
    model_class, config_class = FAMILIES[family]
    defaults = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return model_class(config_class(**{**defaults, **config})).eval()


def randomize(bridge, seed: int = 0):
    """Random values for every parameter of a bridge, so that none of them is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in bridge.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((1 + 0.3 * noise) if name.endswith("norm.weight") else 0.3 * noise)
    return bridge


def join(sharer, receiver, seed: int = 0, **overrides) -> H2CForCausalLM:
    """Of the published form, but for `overrides`; or of the message form, if `bridge_form` says so."""
    make = (
        H2CBridgeConfig.from_pair if overrides.get("bridge_form") == "message" else H2CBridgeConfig.published
    )
    model = H2CForCausalLM(make(sharer.config, receiver.config, **overrides), sharer, receiver).eval()
    randomize(model.bridge, seed)
    return model


# Parameters of a bridge that are not trained with the rest, with a `token_hidden_size`.
DICTIONARY = {
    f"message.token_{part}.{kind}" for part in ("norm", "proj", "in", "out") for kind in ("weight", "bias")
}
# From the Sharer's embeddings to a message.
TOKEN_PATHS = ({}, {"token_rank": 12}, {"token_rank": 3, "token_hidden_size": 5})


def random_pair(seed: int, form: str | None = None) -> H2CForCausalLM:
    """A Sharer and a Receiver of random families and shapes, joined by a bridge with random weights.

    Args:
        form: its `bridge_form`; None: every third seed has the message form.
    """
    rng = random.Random(seed)

    def shape():
        kv_heads, head_dim = rng.choice([1, 2, 3]), rng.choice([4, 8, 12])
        heads = kv_heads * rng.choice([1, 2])
        return {
            "hidden_size": heads * head_dim, "intermediate_size": rng.choice([24, 40]),
            "num_hidden_layers": rng.randint(1, 5), "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim,
        }  # fmt: skip

    sharer = tiny_model(rng.choice(["llama", "qwen2"]), seed, **shape())
    receiver = tiny_model(rng.choice(["llama", "qwen2", "gemma2"]), seed + 1, **shape())
    if (form or ("message" if seed % 3 == 2 else "rewrite")) == "message":
        return join(sharer, receiver, seed, bridge_form="message", **rng.choice(TOKEN_PATHS))
    size = receiver.config.num_key_value_heads * receiver.config.head_dim
    heads = rng.choice([n for n in range(1, size + 1) if size % n == 0])
    # Every other one in the published form.
    options = (
        {
            "recency_bias": True,
            "update_scale": 2.5,
            "sharer_rank": rng.choice([None, 3, 12]),
            "layer_alignment": rng.choice(["top_down", "last"]),
        }
        if seed % 2
        else {}
    )
    return join(
        sharer, receiver, seed, num_attention_heads=heads, ffn_multiplier=rng.choice([1, 4]), **options
    )


def random_inputs(seed: int, batch: int | None = None) -> dict[str, torch.Tensor]:
    """A left-padded batch of the four inputs; row lengths are random for either model."""
    rng = random.Random(seed)
    batch = rng.randint(2, 4) if batch is None else batch
    inputs = {}
    for prefix in ("", "sharer_"):
        lengths = [rng.randint(2, 11) for _ in range(batch)]
        length = max(lengths)
        ids = torch.randint(
            1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed + len(prefix))
        )
        mask = torch.tensor([[0] * (length - n) + [1] * n for n in lengths])
        inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"] = ids * mask, mask
    return inputs


def alone(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row of a left-padded batch without its padding."""
    single = {}
    for prefix in ("", "sharer_"):
        kept = inputs[f"{prefix}attention_mask"][row].bool()
        for name in (f"{prefix}input_ids", f"{prefix}attention_mask"):
            single[name] = inputs[name][row, kept][None]
    return single


LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>{{ m['content'] }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|stop|>{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(specials: list[str], bos: str | None = None, **kwargs) -> PreTrainedTokenizerFast:
    """One token a byte, after the special tokens. The tokenizer itself writes `bos`, as Llama 3's does."""
    vocabulary = {
        token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, **kwargs)
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    return tokenizer


def tiny_processor() -> H2CProcessor:
    """Tokenizers like Llama's for the Sharer (bos, no pad token) and Qwen's for the Receiver (vice versa)."""
    sharer = byte_tokenizer(
        ["<|begin|>", "<|start|>", "<|stop|>", "<|eot|>"],
        bos="<|begin|>",
        eos_token="<|eot|>",
        chat_template=LLAMA_TEMPLATE,
    )
    receiver = byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN_TEMPLATE,
    )
    return H2CProcessor(sharer, receiver)


def text_pair(**overrides) -> tuple[H2CProcessor, H2CForCausalLM]:
    """A pair for the text of `tiny_processor`, and the processor. `overrides`: see `join`."""
    processor = tiny_processor()
    sizes = {name: len(getattr(processor, f"{name}_tokenizer")) for name in ("sharer", "receiver")}
    sharer = tiny_model("llama", 1, vocab_size=sizes["sharer"])
    receiver = tiny_model("qwen2", 2, vocab_size=sizes["receiver"])
    model = join(sharer, receiver, **overrides)
    return processor, model
