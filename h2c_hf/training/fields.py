"""`H2CArguments`: the pair, the bridge and the data of a run. Without torch: `h2c train --help` lists them."""

from dataclasses import dataclass
from typing import Literal

from ..fields import TEMPLATE_HELP, HfArg


@dataclass
class H2CArguments:
    """The pair, the bridge and the data of a run; the fields of a yaml file under `hub_configs/`."""

    sharer: str | None = HfArg(default=None, help="the model that reads: a Hub id, folder, GGUF file, 'atlas', or a name in 'h2c models'")
    receiver: str | None = HfArg(default=None, help="the model that answers, named likewise")
    sharer_revision: str | None = HfArg(default=None, help="commit of the Sharer")
    receiver_revision: str | None = HfArg(default=None, help="commit of the Receiver")
    sharer_gguf_file: str | None = HfArg(default=None, help="GGUF file in the Sharer's folder or repo; its weights are dequantized")
    receiver_gguf_file: str | None = HfArg(default=None, help="GGUF file in the Receiver's folder or repo; its weights are dequantized")
    sharer_chat_template: str | None = HfArg(default=None, help="Jinja file, or 'plain': lets a base model without a template chat")
    receiver_chat_template: str | None = HfArg(default=None, help="Jinja file, or 'plain': lets a base model without a template chat")
    sharer_quantization: Literal["none", "nf4", "int8"] = HfArg(default="none", help="load the Sharer in 4 or 8 bits (bitsandbytes)")
    sharer_device_map: str | None = HfArg(default=None, help="where the Sharer is put, if not on the rank's own device")
    base_dtype: str = HfArg(default="auto", help="dtype of Sharer and Receiver: 'auto' is that of their weights")
    attn_implementation: str | None = HfArg(default=None, help="attention of Sharer and Receiver")
    trust_remote_code: bool = HfArg(default=False, help="let Sharer and Receiver run code from their repos")

    chat_template_kwargs: dict | str | None = HfArg(default=None, help=TEMPLATE_HELP)

    init_from: str | None = HfArg(default=None, help="a bridge to go on from, instead of a new one")
    bridge_form: str | None = HfArg(default=None, help="of a new bridge: 'message' gives the Sharer's tokens cache positions; 'rewrite'")
    token_rank: int | None = HfArg(default=None, help="of a new bridge's message: width of the shared projection of embeddings. 0: none")
    token_hidden_size: int | None = HfArg(default=None, help="hidden units of a perceptron beside that projection. 0: none")
    fit_examples: int = HfArg(default=1000, help="training examples whose texts a new bridge's message is fitted to first. 0: none")
    draft_tokens: int = HfArg(default=0, help="tokens that the Sharer writes after its prompt, for the bridge to read, too. 0: none")
    num_attention_heads: int | None = HfArg(default=None, help="heads per cross-attention block; more heads, finer attention")
    ffn_multiplier: int | None = HfArg(default=None, help="width of each block's FFN, in widths of the cache; wider learns more")
    dropout: float | None = HfArg(default=None, help="share of activations dropped in training; 0 for one pass over much data")
    gate_init: float | None = HfArg(default=None, help="logit of the gates before training; 1.0 passes sigmoid(1.0) = 0.73 of the update")
    layer_alignment: str | None = HfArg(default=None, help="which Sharer layer a Receiver layer reads; 'top_down' pairs them from the top")
    recency_bias: bool | None = HfArg(default=None, help="let heads prefer near positions, as ALiBi does")
    start_shut: bool | None = HfArg(default=None, help="begin with updates of zero: the first step starts from the Receiver alone")
    update_scale: float | None = HfArg(default=None, help="factor of every update of the cache; larger learns faster and less stably")
    sharer_rank: int | None = HfArg(
        default=None, help="width of a Sharer projection that both blocks of a layer share; 0: each has its own"
    )

    train_data: list[str] = HfArg(default_factory=list, help="what to train on: paths, or fields of DataSource ('path=...,weight=...')")
    validation_data: list[str] = HfArg(default_factory=list, help="what to validate on, each source apart; never a test split")
    validation_fraction: float = HfArg(default=0.0, help="hold out this share of the training data, where there is no validation_data")
    max_length: int = HfArg(default=2048, help="longest example, in tokens of either model; longer ones are dropped and counted")
    num_proc: int | None = HfArg(default=None, help="processes that encode the data")
    streaming: bool = HfArg(default=False, help="read the data as it is needed, for what does not fit on the disk; needs max_steps")
    sharer_states: str | None = HfArg(default=None, help="folder of Sharer states that 'h2c precompute' wrote; no Sharer is loaded then")
    sharer_states_dtype: Literal["float32", "bfloat16", "float8_e4m3fn"] = HfArg(default="bfloat16", help="how sharer_states are stored")

    blank_sharer: bool = HfArg(default=False, help="train the adapter control: zeros instead of the Sharer's states; no Sharer is loaded")

    early_stopping_patience: int | None = HfArg(default=None, help="stop after so many evaluations without a better metric_for_best_model")
    generations: int = HfArg(default=4, help="so many validation examples are answered in words after each evaluation")
    dry_run: bool = HfArg(default=False, help="print what the run would do and need, and stop; loads no weights")


@dataclass
class LoraArguments:
    """The adapter of the Receiver in `h2c lora`."""

    lora_rank: int = HfArg(default=16, help="rank of the adapter; more learns more, and is larger")
    lora_dropout: float = HfArg(default=0.0, help="dropout of the adapter's input")
    lora_learning_rates: list[float] = HfArg(
        default_factory=lambda: [2e-4, 1e-3], help="learning rates that are tried; the best by validation loss is kept"
    )
