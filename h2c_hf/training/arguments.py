"""What a run can be told: `H2CArguments` (pair, bridge, data) and `H2CTrainingArguments` (all of `TrainingArguments`)."""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from ..arguments import ConfigParser
from ..data.sources import DataSource
from ..modeling.configuration_h2c import PUBLISHED


@dataclass
class H2CTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of a bridge: cosine with 10 % warm-up, and columns left to the collator."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    remove_unused_columns: bool = False  # the columns are the collator's, not those of `forward`
    logging_nan_inf_filter: bool = False  # it would hide a loss that is not finite, at which `H2CTrainer` stops
    ddp_find_unused_parameters: bool = False  # every parameter of a bridge is used in every step
    restore_callback_states_from_checkpoint: bool = True  # early stopping goes on counting where it stopped

    def __post_init__(self):
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("perplexity"):
            self.greater_is_better = False  # the stock rule knows losses alone
        super().__post_init__()


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

    init_from: str | None = HfArg(default=None, help="a bridge to go on from, instead of a new one")
    bridge_form: str | None = HfArg(default=None, help="of a new bridge: 'message' gives the Sharer's tokens cache positions; 'rewrite'")
    token_rank: int | None = HfArg(default=None, help="of a new bridge's message: width of the shared projection of embeddings. 0: none")
    fit_examples: int = HfArg(default=1000, help="training examples whose texts a new bridge's message is fitted to first. 0: none")
    num_attention_heads: int | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    ffn_multiplier: int | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    dropout: float | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    gate_init: float | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    layer_alignment: str | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    recency_bias: bool | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    start_shut: bool | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    update_scale: float | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig")
    sharer_rank: int | None = HfArg(default=None, help="of a new bridge; see H2CBridgeConfig. 0: no shared projection")

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


BRIDGE_FIELDS = tuple(PUBLISHED)


def parse(arguments: list[str] | None, prog: str, *more: type) -> tuple:
    """The two groups of arguments, and those of further dataclasses, from `CONFIG.yaml --field value`.

    Raises:
        ValueError: for a field that there is not, or fields that contradict each other.
    """
    parser = ConfigParser((H2CArguments, H2CTrainingArguments, *more), prog=prog, allow_abbrev=False)
    parser.set_defaults(enable_jit_checkpoint=True)  # a command owns its process, and may answer SIGTERM; a library may not
    # Without an accelerator a run is on the CPU anyway; said here, since the stock arguments refuse bf16 otherwise.
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    h2c, training, *others = parser.parse_config(arguments)
    h2c.train_data, h2c.validation_data = (
        [DataSource.parse(source) for source in sources] for sources in (h2c.train_data, h2c.validation_data)
    )
    check(h2c, training)
    return h2c, training, *others


def check(h2c: H2CArguments, training: H2CTrainingArguments) -> None:
    """Refuse what is missing or contradictory, before anything is loaded.

    Raises:
        ValueError: in one sentence.
    """
    for name in ("sharer", "receiver", "train_data"):
        if not getattr(h2c, name):
            raise ValueError(f"{name} is missing; expected it in the yaml file or as --{name} VALUE.")
    validated = bool(h2c.validation_data) or h2c.validation_fraction > 0
    evaluates = training.eval_strategy != "no"
    contradictions = {
        "validation_data and validation_fraction are both given; expected either": h2c.validation_data and h2c.validation_fraction,
        f"validation_fraction is {h2c.validation_fraction}; expected at least 0 and less than 1": not 0 <= h2c.validation_fraction < 1,
        "eval_strategy asks for evaluation, but there is no validation_data and no validation_fraction": evaluates and not validated,
        "early_stopping_patience needs eval_strategy 'steps' or 'epoch'": h2c.early_stopping_patience and not evaluates,
        "early_stopping_patience needs load_best_model_at_end": h2c.early_stopping_patience and not training.load_best_model_at_end,
        "blank_sharer and sharer_states are both given; expected either": h2c.blank_sharer and h2c.sharer_states,
        "streaming needs max_steps: the length of a stream is not known": h2c.streaming and training.max_steps <= 0,
        "streaming cannot hold out a validation_fraction; give validation_data": h2c.streaming and h2c.validation_fraction,
        "streaming counts in the main process what it reads; expected dataloader_num_workers 0": (
            h2c.streaming and training.dataloader_num_workers
        ),
        "a source is in train_data and in validation_data; expected validation on what is not trained on": any(
            source.overlaps(other) for source in h2c.train_data for other in h2c.validation_data
        ),
        "streaming and sharer_states are both given: a stream cannot be computed ahead; expected either": (
            h2c.streaming and h2c.sharer_states
        ),
    }
    for message, holds in contradictions.items():
        if holds:
            raise ValueError(f"{message}.")
