"""The fields that name a pair and a new bridge for it. Without torch: `h2c train --help` lists them."""

from dataclasses import dataclass
from typing import Literal

from .command_line import TEMPLATE_HELP, HfArg


Quantization = Literal["none", "nf4", "int8"]  # of the Sharer, by bitsandbytes; see `loading.QUANTIZATION`


@dataclass
class PairFields:
    """The Sharer, the Receiver and the bridge of a run; see `pair.Pair`."""

    sharer: str | None = HfArg(
        default=None,
        help="the model that reads: a Hub id, folder, GGUF file, 'atlas', or a name in 'h2c models'",
    )
    receiver: str | None = HfArg(default=None, help="the model that answers, named likewise")
    sharer_revision: str | None = HfArg(default=None, help="commit of the Sharer")
    receiver_revision: str | None = HfArg(default=None, help="commit of the Receiver")
    sharer_gguf_file: str | None = HfArg(
        default=None, help="GGUF file in the Sharer's folder or repo; its weights are dequantized"
    )
    receiver_gguf_file: str | None = HfArg(
        default=None, help="GGUF file in the Receiver's folder or repo; its weights are dequantized"
    )
    sharer_chat_template: str | None = HfArg(
        default=None, help="Jinja file; 'plain' lets a base model without a template chat"
    )
    receiver_chat_template: str | None = HfArg(
        default=None,
        help="Jinja file; 'plain', as the Sharer's; 'spaced': its own, with a space before every answer",
    )
    sharer_quantization: Quantization = HfArg(
        default="none", help="load the Sharer in 4 or 8 bits (bitsandbytes)"
    )
    sharer_device_map: str | None = HfArg(
        default=None, help="where the Sharer is put, if not on the rank's own device"
    )
    base_dtype: str = HfArg(
        default="auto", help="dtype of Sharer and Receiver: 'auto' is that of their weights"
    )
    attn_implementation: str | None = HfArg(default=None, help="attention of Sharer and Receiver")
    trust_remote_code: bool = HfArg(default=False, help="let Sharer and Receiver run code from their repos")

    chat_template_kwargs: dict | str | None = HfArg(default=None, help=TEMPLATE_HELP)

    init_from: str | None = HfArg(default=None, help="a bridge to go on from, instead of a new one")
    bridge_form: str | None = HfArg(
        default=None, help="of a new bridge: 'message' gives the Sharer's tokens cache positions; 'rewrite'"
    )
    token_rank: int | None = HfArg(
        default=None, help="of a new bridge's message: width of the shared projection of embeddings. 0: none"
    )
    token_hidden_size: int | None = HfArg(
        default=None, help="hidden units of a perceptron beside that projection. 0: none"
    )
    fit_examples: int = HfArg(
        default=1000, help="training examples whose texts a new bridge's message is fitted to first. 0: none"
    )
    draft_tokens: int = HfArg(
        default=0, help="tokens that the Sharer writes after its prompt, for the bridge to read, too. 0: none"
    )
    num_attention_heads: int | None = HfArg(
        default=None, help="heads per cross-attention block; more heads, finer attention"
    )
    ffn_multiplier: int | None = HfArg(
        default=None, help="width of each block's FFN, in widths of the cache; wider learns more"
    )
    dropout: float | None = HfArg(
        default=None, help="share of activations dropped in training; 0 for one pass over much data"
    )
    gate_init: float | None = HfArg(
        default=None, help="logit of the gates before training; 1.0 passes sigmoid(1.0) = 0.73 of the update"
    )
    layer_alignment: str | None = HfArg(
        default=None, help="which Sharer layer a Receiver layer reads: 'top_down', as published, or 'last'"
    )
    recency_bias: bool | None = HfArg(default=None, help="let heads prefer near positions, as ALiBi does")
    start_shut: bool | None = HfArg(
        default=None, help="begin with updates of zero: the first step starts from the Receiver alone"
    )
    update_scale: float | None = HfArg(
        default=None, help="factor of every update of the cache; larger learns faster and less stably"
    )
    sharer_rank: int | None = HfArg(
        default=None,
        help="width of a Sharer projection that both blocks of a layer share; 0: each has its own",
    )

    @property
    def loads_sharer(self) -> bool:
        """Whether the run needs the Sharer's weights."""
        return True
