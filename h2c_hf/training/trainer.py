"""`H2CTrainer`: the stock Trainer with a bridge's collator, metrics and defaults."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, TrainingArguments
from transformers.integrations import WandbCallback

from ..data.examples import IGNORE_INDEX, H2CCollator
from ..hub.model_card import write_model_card
from ..modeling import H2CForCausalLM, H2CProcessor
from ..muon import Muon
from ..prompts import letter_ids, user_turn
from .callbacks import BridgeStatistics, QuietPrinter, QuietProgress, WandbCheckpoints
from .checkpoints import WholeCheckpoints


METRICS = ("loss", "perplexity", "accuracy", "choice_accuracy")


class H2CTrainer(WholeCheckpoints):
    """Trains the bridge of an `H2CForCausalLM` on examples as `h2c_hf.data.examples` makes them.

    The base models are frozen and left out of `state_dict` on save, so optimizer and checkpoints hold the
    bridge alone. Evaluation adds to the stock `eval_loss`, all over the targets: `eval_perplexity`, by token;
    `eval_accuracy`, the share of examples whose target is right to the last token; and, if every target is a
    letter, `eval_choice_accuracy`: the right letter scores best among the first four.
    """

    def __init__(
        self, model: H2CForCausalLM | None, args: TrainingArguments, processing_class: H2CProcessor, **kwargs
    ):
        """
        Args:
            model: None with `model_init`.
            args, processing_class, kwargs: as those of the stock Trainer. A `compute_metrics` of your own
                gets logits and labels.

        Raises:
            ValueError: for `neftune_noise_alpha`, which would have no effect.
        """
        if args.neftune_noise_alpha is not None:
            raise ValueError(
                f"neftune_noise_alpha is {args.neftune_noise_alpha}; expected None: both models' embeddings "
                "are frozen."
            )
        args.remove_unused_columns = False  # the collator reads other columns than forward takes
        letters = letters_of(processing_class)
        kwargs.setdefault("data_collator", H2CCollator(processing_class))
        if kwargs.get("compute_metrics") is None:
            kwargs.setdefault(
                "preprocess_logits_for_metrics", lambda logits, labels: target_scores(logits, labels, letters)
            )
            kwargs["compute_metrics"] = TargetMetrics()
        if getattr(args, "muon", False):
            _, adamw = self.get_optimizer_cls_and_kwargs(args)
            adamw.pop("fused", None)  # with it a GradScaler would leave unscaling to the optimizer
            kwargs["optimizer_cls_and_kwargs"] = Muon, adamw
        if model is not None:
            leave_to_each_rank(model)
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        self.add_callback(BridgeStatistics(self))
        if self.pop_callback(ProgressCallback):
            self.add_callback(QuietProgress)
        if self.pop_callback(PrinterCallback):
            self.add_callback(QuietPrinter)
        if self.pop_callback(WandbCallback):
            self.add_callback(WandbCheckpoints)

    def call_model_init(self, trial=None) -> H2CForCausalLM:
        """As stock."""
        model = super().call_model_init(trial)
        leave_to_each_rank(model)
        return model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As stock; a training step reads the loss alone.

        With `label_smoothing_factor` or `compute_loss_func`, stock calls the model without labels, which say
        where the prompt ends.
        """
        if self.label_smoother is not None or self.compute_loss_func is not None:
            outputs = model(**inputs)
            labels = inputs["labels"][:, -outputs.logits.shape[1] :].to(outputs.logits.device)
            if self.compute_loss_func is not None:
                loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
            else:
                loss = self.label_smoother(
                    outputs, labels, shift_labels=True, num_items_in_batch=num_items_in_batch
                )
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes
            return (loss, outputs) if return_outputs else loss
        if model.training and not return_outputs:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As stock; labels are cut to the columns of the logits, from the kickstart on, to match them."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if isinstance(logits, torch.Tensor) and isinstance(labels, torch.Tensor):
            labels = labels[:, -logits.shape[1] :]
        return loss, logits, labels

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """As stock; stops at a loss that is not finite, before the optimizer takes a step on it.

        Raises:
            FloatingPointError: naming the step and the prompts of the batch.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} in step {self.state.global_step + 1}; training stopped before it "
                f"changed the bridge. The batch: {'; '.join(self._prompts(inputs))}."
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As stock; gathers tensors that FSDP2 left sharded, for safetensors. (Every rank comes here.)"""
        if state_dict is not None:
            state_dict = {
                name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in state_dict.items()
            }
        super()._save(output_dir, state_dict)

    def _prompts(self, inputs: dict) -> list[str]:
        """The end of each prompt of a batch, as text."""
        kept = (inputs["labels"] == IGNORE_INDEX) & inputs["attention_mask"].bool()
        rows = [ids[keep].tolist() for ids, keep in zip(inputs["input_ids"], kept, strict=True)]
        return [
            repr(text[-100:]) for text in self.processing_class.batch_decode(rows, skip_special_tokens=True)
        ]

    def create_model_card(self, **kwargs) -> None:
        """A card that says how to load the bridge; the stock one is a stub that would overwrite any other."""
        if self.is_world_process_zero():
            write_model_card(
                self.args.output_dir, self.model.config, self.hub_model_id or self.args.output_dir
            )


def letters_of(processor: H2CProcessor) -> list[int]:
    """The Receiver's tokens for A to D; none if it has no chat template, or writes them in several tokens."""
    try:
        return letter_ids(
            processor.receiver_tokenizer, user_turn("?"), template_kwargs=processor.chat_template_kwargs
        )
    except ValueError:
        return []


def target_scores(logits: torch.Tensor, labels: torch.Tensor, letters: list[int]) -> torch.Tensor:
    """Of each example (batch, 4), float: whether its target would be decoded greedily; the target's negative
    log-likelihood in nats; its tokens; whether its letter scores best of `letters` (nan if it does not begin
    with one).

    Args:
        logits: (batch, T + 1, vocabulary), from the kickstart on.
        labels: (batch, N + T) or their last columns, -100 on prompts and padding.
    """
    logits = logits[:, :-1].float()
    targets = labels[:, labels.shape[1] - logits.shape[1] :]
    kept = targets != IGNORE_INDEX
    right = ((logits.argmax(-1) == targets) | ~kept).all(1)
    nll = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none").sum(1)
    letter = torch.full_like(nll, torch.nan)
    if letters:
        candidates = torch.tensor(letters, device=logits.device)
        best = candidates[logits[:, 0, candidates].argmax(-1)]
        letter = torch.where(torch.isin(targets[:, 0], candidates), (best == targets[:, 0]).float(), letter)
    return torch.stack([right.float(), nll, kept.sum(1).float(), letter], 1)


def leave_to_each_rank(model: H2CForCausalLM) -> None:
    """Tell DDP to neither broadcast nor watch the base models: all ranks have the same, and none changes."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model,
        [
            name
            for name in [*dict(model.named_parameters()), *dict(model.named_buffers())]
            if not name.startswith("bridge.")
        ],
    )


class TargetMetrics:
    """`target_metrics` over all batches, given at once, as a list (`eval_do_concat_batches=False`) or one by
    one (`batch_eval_metrics`)."""

    def __init__(self):
        self.rows: list[np.ndarray] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float] | None:
        """
        Args:
            prediction: `target_scores`' rows, (examples, 4), of some batches.
            compute_result: whether these are the last.
        """
        batches = (
            prediction.predictions if isinstance(prediction.predictions, list) else [prediction.predictions]
        )
        self.rows += [
            batch.cpu().numpy() if isinstance(batch, torch.Tensor) else np.asarray(batch) for batch in batches
        ]
        if not compute_result:
            return None
        rows, self.rows = np.concatenate(self.rows), []
        return target_metrics(EvalPrediction(predictions=rows, label_ids=None))


def target_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`accuracy`, `perplexity` and, for targets that begin with a letter, `choice_accuracy`, of the rows."""
    right, nll, tokens, letter = np.asarray(prediction.predictions, dtype=np.float64).T
    metrics = {"accuracy": right.mean(), "perplexity": np.exp(nll.sum() / tokens.sum())}
    if not np.isnan(letter).any():
        metrics["choice_accuracy"] = letter.mean()
    return {name: float(value) for name, value in metrics.items()}
