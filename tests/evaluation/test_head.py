"""The Sharer's scores are its own logits, whatever its forward does after the LM head."""

import pytest
import torch
from pairs import join, tiny_model, tiny_processor
from transformers import (
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    WhisperConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from h2c_hf.evaluation.batch import Batch
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.modeling.loss_h2c import head_of


SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# Configs in which the arithmetic after the LM head makes a large difference.
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**SHAPE, final_logit_softcapping=2.0),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.1),
    "cohere2": Cohere2Config(**SHAPE, logit_scale=0.1),
    "granite": GraniteConfig(**SHAPE, logits_scaling=7.0),
    "granitemoe": GraniteMoeConfig(**SHAPE, logits_scaling=7.0, num_local_experts=2, num_experts_per_tok=1),
    "falcon_h1": FalconH1Config(
        **SHAPE, lm_head_multiplier=0.2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
    ),
    # `base_model` is the whole model.
    "llama4": Llama4TextConfig(**SHAPE, intermediate_size_mlp=48, num_local_experts=2),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    ),
    "bloom": BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4),
    "opt": OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32,
    ),
    # `num_hidden_layers` is the number of the encoder's, which the Sharer does not have
    "whisper": WhisperConfig(
        vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=3, decoder_attention_heads=4,
        decoder_ffn_dim=48, init_std=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        decoder_start_token_id=0,
    ),
}  # fmt: skip


def sharer_of(name: str):
    torch.manual_seed(1)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(CONFIGS[name])](CONFIGS[name]).eval()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_of_the_last_states_are_the_models_own(name):
    model, ids = sharer_of(name), torch.randint(1, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    found = head_of(model)(output.hidden_states[-1])
    torch.testing.assert_close(found, output.logits, atol=1e-5, rtol=1e-5)
    assert model(input_ids=ids).logits.allclose(output.logits)  # the model itself is as it was


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "granitemoe", "gpt2", "llama4", "whisper"])
@torch.no_grad()
def test_the_sharers_scores_are_its_own_logits(name):
    processor, sharer = tiny_processor(), sharer_of(name)
    receiver = tiny_model("qwen2", 2, vocab_size=len(processor.receiver_tokenizer))
    model = join(sharer, receiver)
    batch = Batch(model, processor, [{"question": "Who?"}, {"question": "And where is it?"}], "open")
    inputs = batch.inputs
    positions = (inputs["sharer_attention_mask"].cumsum(1) - 1).clamp(min=0)
    whole = sharer(
        input_ids=inputs["sharer_input_ids"],
        attention_mask=inputs["sharer_attention_mask"],
        position_ids=positions,
    )
    torch.testing.assert_close(METHODS["sharer"].logits(batch), whole.logits[:, -1], atol=1e-4, rtol=1e-4)
