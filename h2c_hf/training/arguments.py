"""The arguments of a run: `H2CArguments` (pair, bridge, data) and `H2CTrainingArguments` (the Trainer's)."""

import sys
from dataclasses import dataclass
from typing import cast

import torch
from transformers import TrainingArguments

from ..command_line import HfArg
from ..config_parser import ConfigParser, read_template_kwargs
from ..data.sources import DataSource
from ..precision import emulates_bfloat16, tell
from .fields import H2CArguments


@dataclass
class H2CTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a bridge's defaults: cosine with 10 % warm-up, columns for the collator."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    logging_steps: float = 10
    remove_unused_columns: bool = False  # the columns are the collator's, not those of `forward`
    # It would hide a loss that is not finite, at which `H2CTrainer` stops.
    logging_nan_inf_filter: bool = False
    ddp_find_unused_parameters: bool = False  # every parameter of a bridge is used in every step
    restore_callback_states_from_checkpoint: bool = True  # early stopping goes on counting where it stopped
    muon: bool = HfArg(
        default=False, help="Muon instead of AdamW for the bridge's matrices: rare words in fewer steps"
    )

    def __post_init__(self):
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("perplexity"):
            self.greater_is_better = False  # the stock rule knows losses alone
        super().__post_init__()


def parse(arguments: list[str] | None, prog: str, *more: type, over: dict | None = None) -> tuple:
    """The two groups of arguments, and those of further dataclasses, from `CONFIG.yaml --field value`.

    Args:
        over: fields that stand over those of the file.

    Raises:
        ValueError: for a field that there is not, or fields that contradict each other.
    """
    parser = ConfigParser(
        (H2CArguments, H2CTrainingArguments, *more), "training.yaml", prog=prog, allow_abbrev=False
    )
    # A command owns its process, and may answer SIGTERM; a library may not.
    parser.set_defaults(enable_jit_checkpoint=True)
    # Without an accelerator a run is on the CPU anyway; else the stock arguments would refuse bf16.
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    # A bar would fill a log file; lines of losses are printed instead.
    parser.set_defaults(disable_tqdm=not sys.stderr.isatty())
    if "--help_all" in (arguments or []):
        parser.print_help()
        sys.exit(0)
    h2c, training, *others = parser.parse_config(arguments, over)
    h2c.chat_template_kwargs = read_template_kwargs(h2c.chat_template_kwargs)
    h2c.train_data, h2c.guard_data, h2c.validation_data = (
        [DataSource.parse(source) for source in sources]
        for sources in (h2c.train_data, h2c.guard_data, h2c.validation_data)
    )
    if h2c.stages and prog != "h2c train":
        raise ValueError(f"{prog} reads no stages; expected a yaml file of one stage.")
    if not h2c.stages or over is not None:  # a file of stages need not be a run itself; each stage is checked
        check(h2c, training)
    avoid_emulation(h2c, training)
    return h2c, training, *others


def avoid_emulation(h2c: H2CArguments, training: H2CTrainingArguments) -> None:
    """Compute in float32 instead of an emulated bfloat16; stored states keep the dtype of their recipe."""
    asked = training.bf16 or h2c.base_dtype == "bfloat16"
    if not asked or h2c.sharer_states or not emulates_bfloat16(training.device):
        return
    training.bf16, training.mixed_precision = False, "no"
    if h2c.base_dtype == "bfloat16":
        h2c.base_dtype = "float32"
    if training.process_index == 0:
        tell("the run computes in float32")


def check(h2c: H2CArguments, training: H2CTrainingArguments) -> None:
    """Refuse missing or contradictory fields, before anything is loaded.

    Raises:
        ValueError: in one sentence.
    """
    for name in ("sharer", "receiver", "train_data"):
        if not getattr(h2c, name):
            raise ValueError(f"{name} is missing; expected it in the yaml file or as --{name} VALUE.")
    train_data, validation_data = (
        cast("list[DataSource]", sources)
        for sources in ([*h2c.train_data, *h2c.guard_data], h2c.validation_data)
    )
    validated = bool(h2c.validation_data) or h2c.validation_fraction > 0
    evaluates = training.eval_strategy != "no"
    contradictions = {
        "validation_data and validation_fraction are both given; expected either": h2c.validation_data
        and h2c.validation_fraction,
        f"validation_fraction is {h2c.validation_fraction}; expected at least 0 and less than 1": not 0
        <= h2c.validation_fraction
        < 1,
        "eval_strategy asks for evaluation, but there is no validation_data and no "
        "validation_fraction": evaluates and not validated,
        "early_stopping_patience needs eval_strategy 'steps' or 'epoch'": h2c.early_stopping_patience
        and not evaluates,
        "early_stopping_patience needs load_best_model_at_end": h2c.early_stopping_patience
        and not training.load_best_model_at_end,
        "blank_sharer and sharer_states are both given; expected either": h2c.blank_sharer
        and h2c.sharer_states,
        f"draft_tokens is {h2c.draft_tokens}; expected at least 0": h2c.draft_tokens < 0,
        "draft_tokens needs the Sharer in memory and data that is read once; expected no streaming, "
        "sharer_states or blank_sharer": (
            h2c.draft_tokens and (h2c.streaming or h2c.sharer_states or h2c.blank_sharer)
        ),
        "guard_data needs the Sharer in memory and data that is read once; expected no streaming, "
        "sharer_states or blank_sharer": (
            h2c.guard_data and (h2c.streaming or h2c.sharer_states or h2c.blank_sharer)
        ),
        "token_hidden_size asks for a dictionary, which is learned from the Sharer; expected fit_examples "
        "above 0, no sharer_states": (
            h2c.token_hidden_size and not h2c.init_from and (not h2c.fit_examples or h2c.sharer_states)
        ),
        "muon stands in for AdamW; expected optim adamw_torch or adamw_torch_fused, got "
        f"{training.optim.value}": (
            training.muon and training.optim not in ("adamw_torch", "adamw_torch_fused")
        ),
        "muon works on whole matrices; expected no fsdp and no deepspeed": (
            training.muon and (training.fsdp or training.deepspeed)
        ),
        "streaming needs max_steps: the length of a stream is not known": h2c.streaming
        and training.max_steps <= 0,
        "streaming cannot hold out a validation_fraction; give validation_data": h2c.streaming
        and h2c.validation_fraction,
        "streaming counts in the main process what it reads; expected dataloader_num_workers 0": (
            h2c.streaming and training.dataloader_num_workers
        ),
        "a source is in train_data or guard_data, and in validation_data; expected validation on what is "
        "not trained on": any(source.overlaps(other) for source in train_data for other in validation_data),
        "streaming and sharer_states are both given: a stream cannot be computed ahead; expected either": (
            h2c.streaming and h2c.sharer_states
        ),
    }
    for message, holds in contradictions.items():
        if holds:
            raise ValueError(f"{message}.")
