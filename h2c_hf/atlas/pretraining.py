"""Teaches one tiny model from nothing: documents packed into sequences, Muon for matrices, AdamW for the rest.

A plain loop in the manner of nanochat rather than `Trainer`: it makes a base model, once; bridges are trained by
`h2c_hf.training`.
"""

import json
import logging
import math
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .documents import DocumentWriter, Turns


logger = logging.getLogger(__name__)
IGNORE = -100


@dataclass
class PretrainingArguments:
    """``stages``: lists of (steps, {form: share of the *documents*}); each stage has a learning-rate cycle of its own."""

    stages: list = field(default_factory=list)
    sequences: int = 16
    sequence_length: int = 256
    matrix_lr: float = 3e-3
    embedding_lr: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 50
    decay: float = 0.4  # the last part of each stage over which the learning rate falls to zero
    eval_steps: int = 200
    eval_documents: int = 200
    seed: int = 0


class Packer:
    """Packs documents into sequences of token ids and labels; only what the assistant says is a target."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, teacher: DocumentWriter):
        self.tokenizer, self.teacher = tokenizer, teacher
        self._segments: dict[str, list[int]] = {}
        frame = tokenizer.apply_chat_template(
            [{"role": "user", "content": "X"}, {"role": "assistant", "content": "X"}], tokenize=True
        )["input_ids"]
        cut = [i for i, token in enumerate(frame) if token in tokenizer.encode(" X", add_special_tokens=False)]
        self.before, self.between, self.after = frame[: cut[0]], frame[cut[0] + 1 : cut[1]], frame[cut[1] + 1 :]

    def encode(self, turns: Turns) -> tuple[list[int], list[int]]:
        """(token ids, labels) of one chat: the same tokens as the chat template gives."""
        ids, labels = [], []
        texts = [f" {text}" for turn in turns for text in turn]
        encoded = iter(e.ids for e in self.tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False))
        for user, assistant in zip(encoded, encoded, strict=True):
            start = self.before if not ids else [t for t in self.before if t != self.tokenizer.bos_token_id]
            prompt = [*start, *user, *self.between]
            ids += [*prompt, *assistant, *self.after]
            labels += [IGNORE] * len(prompt) + [*assistant, *self.after]
        return ids, labels

    def batch(self, rng: random.Random, shares: dict[str, float], sequences: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels, (sequences, length) each; the last document of a row is cut."""
        rows = []
        forms, weights = list(shares), list(shares.values())
        for _ in range(sequences):
            ids, labels = [], []
            while len(ids) < length:
                new_ids, new_labels = self.encode(self.teacher.write(rng, rng.choices(forms, weights)[0]))
                ids, labels = ids + new_ids, labels + new_labels
            rows.append((ids[:length], labels[:length]))
        return torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])


def answer_loss(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens; the LM head runs on their positions alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    return F.cross_entropy(model.lm_head(hidden[wanted]).float(), targets[wanted])


@torch.no_grad()
def accuracy(model: PreTrainedModel, packer: Packer, documents: list[Turns]) -> float:
    """Share of documents whose *last* answer is right to the last token, each read alone, argmax at every step."""
    right = 0
    encoded = sorted((packer.encode(turns[-1:] if len(turns) == 1 else turns) for turns in documents), key=lambda e: len(e[0]))
    for start in range(0, len(encoded), 64):
        chunk = encoded[start : start + 64]
        length = max(len(ids) for ids, _ in chunk)
        ids = torch.tensor([ids + [packer.tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in chunk]).to(model.device)
        predicted = model(input_ids=ids, use_cache=False).logits.argmax(-1).cpu()
        for row, (_, labels) in zip(predicted, chunk, strict=True):
            last = max(i for i in range(len(labels)) if labels[i] == IGNORE) + 1
            right += row[last - 1 : len(labels) - 1].tolist() == labels[last:]
    return right / len(documents)


def pretrain(model: PreTrainedModel, packer: Packer, arguments: PretrainingArguments, log_file: Path | None = None) -> list[dict]:
    """Teach ``model`` in place; returns (and writes to ``log_file``, a JSON object a line) the learning curve per form."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    rng = random.Random(arguments.seed)
    forms = packer.teacher.FORMS
    exam = {form: [packer.teacher.write(random.Random(f"{form}{i}"), form) for i in range(arguments.eval_documents)] for form in forms}

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n or "lm_head" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=arguments.matrix_lr, weight_decay=arguments.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=arguments.embedding_lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    history, total = [], sum(steps for steps, _ in arguments.stages)
    log = open(log_file, "w") if log_file else None

    with tqdm(total=total, desc=type(model).__name__, unit="step") as bar:
        done = 0
        for steps, shares in arguments.stages:
            for step in range(steps):
                for optimizer, peak in zip(optimizers, peaks, strict=True):
                    optimizer.param_groups[0]["lr"] = peak * _schedule(step, steps, arguments)
                ids, labels = packer.batch(rng, shares, arguments.sequences, arguments.sequence_length)
                with torch.autocast(device, torch.bfloat16):
                    loss = answer_loss(model, ids.to(device), labels.to(device))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                done += 1
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
                if done % arguments.eval_steps == 0 or done == total:
                    model.eval()
                    entry = {"step": done, "loss": round(loss.item(), 4), **{f: round(accuracy(model, packer, exam[f]), 3) for f in forms}}
                    model.train()
                    history.append(entry)
                    tqdm.write("  ".join(f"{key} {value}" for key, value in entry.items()))
                    if log:
                        print(json.dumps(entry), file=log, flush=True)
    model.eval()
    return history


def _schedule(step: int, steps: int, arguments: PretrainingArguments) -> float:
    """Linear warm-up, constant, linear decay (a trapezoid), as a factor of the peak."""
    tail = max(1, int(steps * arguments.decay))
    return min(1.0, (step + 1) / arguments.warmup_steps, (steps - step) / tail)


@torch.no_grad()
def mimetic_init_(model: PreTrainedModel) -> None:
    """Start every attention head as "look at tokens like me": the keys' projection equals the queries'.

    Finding an equal token elsewhere is what the questions need and what a random start takes thousands of steps to
    discover. Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023.
    """
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight.unflatten(0, (kv_heads, heads // kv_heads, -1))[:, 0].flatten(0, 1))
        for out in (attention.o_proj, layer.mlp.down_proj):
            out.weight.mul_((2 * model.config.num_hidden_layers) ** -0.5)
