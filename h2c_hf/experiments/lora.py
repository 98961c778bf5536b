"""`h2c lora CONFIG.yaml`: the Receiver, fine-tuned with LoRA on a run's data without a Sharer.

It is the single model that a bridge is to be compared with. It sees the Receiver's prompts and the targets of
the same mixture, in the same batches, without the Sharer's texts. Every learning rate in
`lora_learning_rates` is trained, and the adapter with the lowest validation loss is kept, so that the
baseline is not set too low. `h2c evaluate --lora DIR` measures it.
"""

import copy
import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.examples import H2CCollator
from ..hints import install
from ..pair import Pair
from ..training.arguments import H2CArguments, H2CTrainingArguments, parse
from ..training.data import load_data
from ..training.fields import LoraArguments


class ReceiverCollator(H2CCollator):
    """Collate a bridge's batches without the Sharer's inputs. `position_ids` count from a prompt's start."""

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = {
            name: tensor
            for name, tensor in super().__call__(examples).items()
            if not name.startswith("sharer_")
        }
        return {**batch, "position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def main(arguments: list[str] | None = None) -> int:
    """Parse, train at each rate, keep the best. Returns the exit status."""
    h2c, training, lora = parse(arguments, "h2c lora", LoraArguments)
    check(h2c, lora)
    pair = Pair(h2c)
    processor = pair.processor()
    data = load_data(h2c, training, processor)
    set_seed(training.seed)
    receiver = pair.base("receiver").model(dtype=h2c.base_dtype)
    output = Path(training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    losses, best = {}, None
    for rate in lora.lora_learning_rates:
        adapted, losses[rate] = fine_tune(
            receiver, lora, rate, training, data.train, data.validation, ReceiverCollator(processor)
        )
        if best is None or losses[rate] < losses[best]:
            best = rate
            adapted.save_pretrained(output)
            parameters = sum(
                parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
            )
        receiver = adapted.unload()
        print(
            f"learning rate {rate:g}: validation loss {losses[rate]:.4f}"
            if data.validation
            else f"learning rate {rate:g}: trained"
        )
    told = {
        "learning_rate": best,
        "validation_losses": {f"{rate:g}": loss for rate, loss in losses.items()},
        "parameters": parameters,
    }
    (output / "lora.json").write_text(json.dumps({**told, "rank": lora.lora_rank}, indent=1) + "\n")
    print(f"Wrote the adapter of learning rate {best:g} to {output}")
    return 0


def check(h2c: H2CArguments, lora: LoraArguments) -> None:
    """
    Raises:
        ValueError: for several rates without validation data, or data that this cannot read.
    """
    if not lora.lora_learning_rates or any(rate <= 0 for rate in lora.lora_learning_rates):
        raise ValueError(
            f"lora_learning_rates is {lora.lora_learning_rates}; expected one or more numbers above 0."
        )
    if lora.lora_rank < 1:
        raise ValueError(f"lora_rank is {lora.lora_rank}; expected at least 1.")
    if len(lora.lora_learning_rates) > 1 and not (h2c.validation_data or h2c.validation_fraction):
        raise ValueError(
            f"{len(lora.lora_learning_rates)} lora_learning_rates and no validation data; expected "
            "validation_data, a validation_fraction, or one rate."
        )
    if h2c.guard_data:
        raise ValueError("guard_data is for bridges: it exchanges messages; expected none.")
    if h2c.streaming:
        raise ValueError("streaming is for bridges; expected data that fits on the disk.")


def fine_tune(
    receiver: PreTrainedModel,
    lora: LoraArguments,
    rate: float,
    training: H2CTrainingArguments,
    train: Dataset,
    validation: dict[str, Dataset],
    collator: ReceiverCollator,
) -> tuple[PreTrainedModel, float]:
    """Train an adapter around the Receiver, by the stock Trainer. Returns the adapted model, and its mean
    validation loss (nan without validation data).

    Raises:
        ValueError: without peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError(
            f"h2c lora needs peft, which is not installed; install it with: {install('lora')}"
        ) from None
    set_seed(training.seed)
    config = LoraConfig(
        r=lora.lora_rank, lora_alpha=2 * lora.lora_rank, lora_dropout=lora.lora_dropout,
        target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(receiver, config)
    arguments = copy.copy(training)
    # The weights at the end of the schedule are judged, once; nothing else is kept.
    arguments.learning_rate = rate
    arguments.eval_strategy, arguments.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    arguments.load_best_model_at_end = arguments.push_to_hub = False
    trainer = Trainer(model, arguments, train_dataset=train, data_collator=collator)
    trainer.train()
    losses = [trainer.evaluate(dataset)["eval_loss"] for dataset in validation.values()]
    return model, sum(losses) / len(losses) if losses else float("nan")
