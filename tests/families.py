"""Tiny models of every causal-LM family of the installed transformers, joined as Sharer and as Receiver.

python tests/families.py          # writes docs/families.md
"""

import dataclasses
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from pairs import VOCABULARY, alone, random_inputs, randomize, tiny_model
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from h2c_hf.modeling import H2CBridgeConfig, H2CForCausalLM
from h2c_hf.modeling.inputs_h2c import model_inputs
from h2c_hf.modeling.loss_h2c import head_of


FAMILIES = tuple(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name != H2CBridgeConfig.model_type)
ROLES = ("sharer", "receiver", "message")  # the last: the Receiver of a bridge of the message form
TABLE = Path(__file__).parent.parent / "docs" / "families.md"
# Values of config fields, by the names that families have for them; a config takes those that it has a field
# for.
TINY = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "n_embed", "embedding_size"), 32),
    **dict.fromkeys(("hidden_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "depth"), 2),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("d_ff", "dff", "dim_ff", "ffn_hidden_size", "mlp_hidden_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "expert_ffn_hidden_size": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    "max_sequence_length": 128,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("initializer_range", "init_std", "init_method_std"), 0.2),
    "num_key_value_heads": 2, "head_dim": 8, "dim_head": 8, "rotary_dim": 4, "type_vocab_size": 2,
    "vocab_size_per_layer_input": VOCABULARY, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "kv_lora_rank": 16, "q_lora_rank": 16, "hidden_size_per_layer_input": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "state_size": 8,
    "lru_width": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_head_dim": 8, "linear_num_heads": 4, "num_position_embeddings": 64,
    "position_embedding_size": 64, "text_hidden_size": 32, "projection_hidden_dim": 32,
    "embed_dim": 32, "output_dim": 32, "output_proj_dims": 32, "mm_embed_dim": 32, "audio_embed_dim": 32,
    "num_blocks": 1, "image_size": 28, "patch_size": 14, "global_attn_indexes": [1], "vocab_size_audio": 32,
}  # fmt: skip
# Fields that other fields of a family's config depend on.
OVERRIDES = {
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2, "n_routed_experts": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY},
    "inkling2_loop_text": {"unpadded_vocab_size": VOCABULARY},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "reformer": {"axial_pos_embds": False, "attention_head_size": 8},
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
        "shape_vocab_size": 50,
        "pronunciation_vocab_size": 50,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba2": {"layers_block_type": ["hybrid", "mamba"], "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
LARGEST = 4_000_000  # parameters: a config with more has widths of other names


def tiny_config(config_class: type[PreTrainedConfig], **overrides) -> PreTrainedConfig:
    """Return a config of few and small layers; its parts (text, vision) likewise."""
    aliases = getattr(config_class, "attribute_map", {})
    names = {field.name for field in dataclasses.fields(config_class)} | set(aliases)
    values = {name: value for name, value in TINY.items() if name in names and aliases.get(name) not in TINY}
    # Latent attention has as many key-value heads as heads, and a head_dim of its own.
    if "kv_lora_rank" in names:
        values = {
            name: value for name, value in values.items() if name not in ("num_key_value_heads", "head_dim")
        }
        values |= {"num_key_value_heads": 4} if "num_key_value_heads" in names else {}
    for name, part in (config_class.sub_configs or {}).items():
        if not dataclasses.is_dataclass(part):  # AutoConfig: of which model, the default says
            part = type(getattr(config_class(), name, None))
        if name in names and dataclasses.is_dataclass(part):
            values[name] = tiny_config(part).to_dict()
    return config_class(**{**values, **overrides})


def build(family: str):
    """Return a tiny model with random weights. Raises the family's own errors if no config fits."""
    config = tiny_config(CONFIG_MAPPING[family], **OVERRIDES.get(family, {}))
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters; expected at most {LARGEST:,}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def differs(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors differ by more than rounding."""
    return not (first - second).abs().max() <= 2e-4 * max(1.0, second.abs().max().item())


@torch.no_grad()
def faults(model: H2CForCausalLM, inputs: dict[str, torch.Tensor]) -> Iterator[str]:
    """Yield the name of each check that a joined pair fails."""
    logits = model(**inputs).logits
    output = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    for row in range(len(logits)):
        if differs(model(**alone(inputs, row)).logits[0], logits[row]):
            yield f"row {row} of the batch is not as alone"
    # The text that was generated, scored in one pass: each step's logits, and the loss.
    target = output.sequences[:, inputs["input_ids"].shape[1] :]
    labels = torch.full_like(output.sequences, -100)
    labels[:, -target.shape[1] :] = target
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(target)], 1)
    scored = {**inputs, "input_ids": output.sequences, "attention_mask": mask, "labels": labels}
    outputs = model(**scored)
    if differs(logits[:, -1], output.logits[0]):
        yield "forward is not generate's first step"
    for step, generated in enumerate(output.logits):
        if differs(outputs.logits[:, step], generated):
            yield f"forward is not generate's step {step}"
    if differs(model(**scored, skip_logits=True).loss, outputs.loss):
        yield "the loss without logits is not the loss with logits"
    read = inputs["sharer_input_ids"], inputs["sharer_attention_mask"]
    last = model.read(*read, layers=[model.config.sharer_num_hidden_layers])[-1]
    if differs(
        head_of(model.sharer)(last)[:, -1],
        model.sharer(**model_inputs(model.sharer, *read), use_cache=False).logits[:, -1],
    ):
        yield "the head's scores of the Sharer's last state are not its own"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = H2CForCausalLM.from_pretrained(folder, sharer=model.sharer, receiver=model.receiver)
    if differs(loaded(**inputs).logits, logits):
        yield "a saved bridge loads as another one"


def outcome(family: str, role: str) -> tuple[str, str]:
    """Return "works", "refused" (and why) or "no tiny config" (and why).

    Raises:
        AssertionError: if a pair that was joined fails a check.
    """
    try:
        model = build(family)
    except Exception as error:
        return "no tiny config", str(error).strip().replace("\n", " ").replace("|", "/")[:120]
    other = tiny_model("llama", 1)
    try:
        pair = H2CForCausalLM.from_pair(
            *((model, other) if role == "sharer" else (other, model)),
            bridge_form="message" if role == "message" else "rewrite",
        ).eval()
    except ValueError as error:
        assert "\n" not in str(error), f"{family} is refused in more than a sentence: {error}"
        return "refused", str(error)
    randomize(pair.bridge)
    assert not (found := list(faults(pair, random_inputs(3, 3)))), (
        f"{family} as the {role}: {', '.join(found)}"
    )
    return "works", ""


def row(family: str) -> str:
    """Return a family's row of the table."""
    outcomes = {role: outcome(family, role) for role in ROLES}
    reasons = dict.fromkeys(why for _, why in outcomes.values() if why)
    return f"| {family} | {' | '.join(outcomes[role][0] for role in ROLES)} | {' '.join(reasons)} |"


def table(rows: list[str]) -> str:
    """Return docs/families.md."""
    count = {
        role: sum(line.split(" | ")[column] == "works" for line in rows)
        for column, role in enumerate(ROLES, start=1)
    }
    return "\n".join(
        [
            "# Families",
            "",
            f"The {len(rows)} causal-LM families of transformers {transformers.__version__}: "
            f"{count['sharer']} work as the Sharer, {count['receiver']} as the Receiver, {count['message']} "
            "of them also of a message (`bridge_form: message`).",
            "",
            "A family *works* if a tiny model of it with random weights passes: "
            "forward gives the logits of `generate`, step by step; a",
            "left-padded batch answers as each row alone; the loss is the same with and without logits; "
            "a saved bridge loads as the same.",
            "Another is *refused* by `H2CForCausalLM.from_pair`, in the sentence that is quoted. "
            "`python tests/families.py` writes this",
            "page, and `tests/modeling/test_families.py` compares it.",
            "",
            "| family | as the Sharer | as the Receiver | of a message | why not |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.argv[1:]:
        for family in sys.argv[1:]:
            print(row(family))
    else:
        TABLE.write_text(table([row(family) for family in FAMILIES]))
        print(TABLE.read_text())
