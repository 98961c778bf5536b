"""Log lines about the bridge beside the loss: gates, gradients, a few answers; and checkpoints for wandb."""

import json
import os
from collections import defaultdict
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import WandbCallback


# The parameters of a block by what they do. All are logged under grad_norm/<part>; those of other bridges
# under their own names.
PARTS = {
    "attention": ("norm_receiver", "norm_sharer", "q_proj", "sharer_proj", "kv_proj", "o_proj"),
    "ffn": ("norm_ffn", "ffn_in", "ffn_out"),
    "gate": ("gate",),
    "message": ("message",),
}


class BridgeStatistics(TrainerCallback):
    """Logs, at every logging step, `gate/key/<layer>` and `gate/value/<layer>` (sigmoid, by Receiver layer)
    and `grad_norm/<part>` (attention, ffn, gate; of the clipped gradients that the optimizer got)."""

    def __init__(self, trainer):
        self.trainer, self.norms = trainer, {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if (state.global_step + 1) % state.logging_steps == 0:  # the gradients are gone by `on_log`
            parts = defaultdict(list)
            for name, parameter in self.trainer.accelerator.unwrap_model(model).bridge.named_parameters():
                if parameter.grad is None:  # a message's dictionary
                    continue
                module = name.split(".")[0]
                part = next((part for part, modules in PARTS.items() if module in modules), module)
                parts[part].append(parameter.grad)
            norms = {
                f"grad_norm/{part}": torch.nn.utils.get_total_norm(grads) for part, grads in parts.items()
            }
            # Under FSDP2 each rank has a part of it.
            self.norms = {
                name: norm.full_tensor() if hasattr(norm, "full_tensor") else norm
                for name, norm in norms.items()
            }

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        if "loss" in logs:
            gates = self.trainer.accelerator.unwrap_model(model).gate_values()
            opened = {
                f"gate/{kind}/{i}": v
                for kind, values in gates.items()
                for i, v in enumerate(values)
                if v is not None
            }
            self.trainer.log({**opened, **{name: float(norm) for name, norm in self.norms.items()}})


class QuietProgress(ProgressCallback):
    """The stock progress bar, which would print every gate of every layer."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {name: value for name, value in logs.items() if "/" not in name}
        if any(name != "epoch" for name in shown):
            super().on_log(args, state, control, logs=shown, **kwargs)


class QuietPrinter(PrinterCallback):
    """The stock lines of a run without a progress bar, with the step, and without the gate of every layer."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {
            name: value for name, value in (logs or {}).items() if "/" not in name and name != "total_flos"
        }
        if any(name != "epoch" for name in shown) and state.is_local_process_zero:
            values = ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in shown.items()
            )
            print(f"step {state.global_step}/{state.max_steps}: {values}", flush=True)


class WrittenAnswers(TrainerCallback):
    """After each evaluation lets the model answer a few examples and appends prompt, target and answer to
    `generations.jsonl` in the output folder, a line each."""

    def __init__(self, trainer, examples: list[dict], max_new_tokens: int = 64):
        """examples: as `h2c_hf.data.examples.encode_example` makes them."""
        self.trainer, self.examples, self.max_new_tokens = trainer, list(examples), max_new_tokens

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero or state.global_step == getattr(self, "last", None):
            return
        self.last = state.global_step
        model, processor = self.trainer.accelerator.unwrap_model(model), self.trainer.processing_class
        batch = self.trainer.data_collator(self.examples)
        start = int((batch.pop("labels") != -100).int().argmax(1)[0])
        batch |= {
            "input_ids": batch["input_ids"][:, :start],
            "attention_mask": batch["attention_mask"][:, :start],
        }
        was_training = model.training
        model.eval()
        ids = model.generate(
            **self.trainer._prepare_inputs(batch), max_new_tokens=self.max_new_tokens, do_sample=False
        )
        model.train(was_training)
        answers = processor.batch_decode(ids[:, start:], skip_special_tokens=True)
        with open(Path(args.output_dir) / "generations.jsonl", "a", encoding="utf-8") as file:
            for example, answer in zip(self.examples, answers, strict=True):
                prompt, target = (
                    processor.decode(example[name], skip_special_tokens=True)
                    for name in ("input_ids", "target_ids")
                )
                line = {"step": state.global_step, "prompt": prompt, "target": target, "answer": answer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


class WandbCheckpoints(WandbCallback):
    """The stock callback, with artifacts named by step and epoch; the best is called `best` as well."""

    def on_save(self, args, state, control, **kwargs):
        super().on_save(args, state, control, **kwargs)
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if (
            self._log_model == "checkpoint"
            and state.is_world_process_zero
            and state.best_model_checkpoint == folder
        ):
            run = self._wandb.run
            # The same content under the same name is the same version: this adds an alias.
            artifact = self._wandb.Artifact(
                f"model-{run.id if args.run_name in (None, args.output_dir) else run.name}", type="model"
            )
            artifact.add_dir(folder)
            run.log_artifact(artifact, aliases=["best"])
