"""`H2CArguments`: pair, bridge and data of a run. Without torch: `h2c train --help` lists them."""

from dataclasses import dataclass
from typing import Literal

from ..command_line import HfArg
from ..pair_fields import PairFields


@dataclass
class H2CArguments(PairFields):
    """The pair, the bridge and the data of a run; the fields of a yaml file under `hub_configs/`."""

    train_data: list[str] = HfArg(
        default_factory=list, help="what to train on: paths, or fields of DataSource ('path=...,weight=...')"
    )
    stages: list[dict] = HfArg(
        default_factory=list,
        help="of a yaml file: fields of each stage; each goes on from the bridge of the one before",
    )
    guard_data: list[str] = HfArg(
        default_factory=list,
        help="questions that are trained on with another question's message, and the Receiver's own answer",
    )
    validation_data: list[str] = HfArg(
        default_factory=list, help="what to validate on, each source apart; never a test split"
    )
    validation_fraction: float = HfArg(
        default=0.0, help="hold out this share of the training data, where there is no validation_data"
    )
    max_length: int = HfArg(
        default=2048, help="longest example, in tokens of either model; longer ones are dropped and counted"
    )
    num_proc: int | None = HfArg(default=None, help="processes that encode the data")
    streaming: bool = HfArg(
        default=False,
        help="read the data as it is needed, for what does not fit on the disk; needs max_steps",
    )
    sharer_states: str | None = HfArg(
        default=None, help="folder of Sharer states that 'h2c precompute' wrote; no Sharer is loaded then"
    )
    sharer_states_dtype: Literal["float32", "bfloat16", "float8_e4m3fn"] = HfArg(
        default="bfloat16", help="how sharer_states are stored"
    )

    blank_sharer: bool = HfArg(
        default=False,
        help="train the adapter control: zeros instead of the Sharer's states; no Sharer is loaded",
    )

    early_stopping_patience: int | None = HfArg(
        default=None, help="stop after so many evaluations without a better metric_for_best_model"
    )
    generations: int = HfArg(
        default=4, help="so many validation examples are answered in words after each evaluation"
    )
    dry_run: bool = HfArg(
        default=False, help="print what the run would do and need, and stop; loads no weights"
    )

    @property
    def loads_sharer(self) -> bool:
        return not (self.sharer_states or self.blank_sharer)


@dataclass
class LoraArguments:
    """The adapter of the Receiver in `h2c lora`."""

    lora_rank: int = HfArg(default=16, help="rank of the adapter; more learns more, and is larger")
    lora_dropout: float = HfArg(default=0.0, help="dropout of the adapter's input")
    lora_learning_rates: list[float] = HfArg(
        default_factory=lambda: [2e-4, 1e-3],
        help="learning rates that are tried; the best by validation loss is kept",
    )
