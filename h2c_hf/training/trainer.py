"""`H2CTrainer`: the stock Trainer with a bridge's collator, metric and defaults."""

from dataclasses import dataclass

import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from ..data.examples import IGNORE_INDEX, H2CCollator
from ..modeling import H2CForCausalLM, H2CProcessor


@dataclass
class H2CTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of a bridge: cosine with 10 % warm-up, and columns left to the collator."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    remove_unused_columns: bool = False  # the columns are the collator's, not those of `forward`


class H2CTrainer(Trainer):
    """Trains the bridge of an `H2CForCausalLM` on examples as `h2c_hf.data.examples` makes them.

    The base models are frozen and left out of `state_dict` on save, so optimizer and checkpoints hold the bridge alone.
    Evaluation adds `eval_accuracy`: the share of examples whose target is right to the last token.
    """

    def __init__(self, model: H2CForCausalLM, args: TrainingArguments, processing_class: H2CProcessor, **kwargs):
        kwargs.setdefault("data_collator", H2CCollator(processing_class))
        kwargs.setdefault("preprocess_logits_for_metrics", right_answers)
        kwargs.setdefault("compute_metrics", mean_accuracy)
        super().__init__(model, args, processing_class=processing_class, **kwargs)


def right_answers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each example's target would be decoded greedily: bool (batch,).

    Args:
        logits: (batch, T + 1, vocabulary), from the kickstart on.
        labels: (batch, N + T), -100 on prompts and padding.
    """
    predicted = logits[:, :-1].argmax(-1)
    targets = labels[:, labels.shape[1] - predicted.shape[1] :]
    return ((predicted == targets) | (targets == IGNORE_INDEX)).all(1)


def mean_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(prediction.predictions.mean())}
