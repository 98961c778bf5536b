"""Teach one tiny model from nothing: documents packed into sequences, Muon for matrices, AdamW for the rest.

A plain loop in the manner of nanochat rather than `Trainer`: it makes a base model, once; bridges are trained
by `h2c_hf.training`.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..muon import Muon
from ..precision import emulates_bfloat16
from .documents import DocumentWriter, Turns


IGNORE = -100


@dataclass
class PretrainingArguments:
    """One pass of teaching. ``stages``: lists of (steps, {form: share of the *documents*}); one learning-rate
    cycle over all. ``taught``: parts of the names of the parameters that may change; by default all."""

    stages: list = field(default_factory=list)
    taught: list[str] = field(default_factory=lambda: [""])
    sequences: int = 32
    sequence_length: int = 128
    matrix_lr: float = 3e-3
    embedding_lr: float = 1e-2
    other_lr: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 50
    decay: float = 0.4  # the last part of the steps over which the learning rate falls to zero
    eval_steps: int = 250
    eval_documents: int = 100
    seed: int = 0


class Packer:
    """Packs documents into sequences of token ids and labels; only the assistant's text is a target."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, teacher: DocumentWriter):
        self.tokenizer, self.teacher = tokenizer, teacher
        # The same few thousand questions and answers come again and again.
        self.encode_text = lru_cache(2**17)(self._encode_text)
        frame = tokenizer.apply_chat_template(
            [{"role": "user", "content": "X"}, {"role": "assistant", "content": "X"}], tokenize=True
        )["input_ids"]
        cut = [
            i for i, token in enumerate(frame) if token in tokenizer.encode(" X", add_special_tokens=False)
        ]
        self.before = frame[: cut[0]]
        self.between = frame[cut[0] + 1 : cut[1]]
        self.after = frame[cut[1] + 1 :]

    def encode(self, turns: Turns) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
        """(token ids, labels, thoughts, gathers, finds) of one chat: the same tokens as the chat template
        gives. A thought stands where its answer begins. Gathers and finds stand at tokens that are to look so
        many tokens back: the answer's kickstart and the value that it is to find both gather the name that
        stands before them."""
        ids, labels, thoughts, looks = [], [], [], []
        for user, assistant, thought, source in turns:
            start = [token for token in self.before if not ids or token != self.tokenizer.bos_token_id]
            given = [*start, *self.encode_text(user), *self.between]
            ids = ids + given
            labels = labels + [IGNORE] * len(given)
            thoughts = thoughts + [IGNORE] * len(given)
            if source is not None:
                looks.append((len(ids) - 1, source))
            pieces = ["", assistant] if isinstance(assistant, str) else assistant
            for number, piece in enumerate(pieces):
                new = self.encode_text(piece)
                ids, labels = ids + new, labels + (new if number % 2 else [IGNORE] * len(new))
            ids, labels = ids + self.after, labels + self.after
            thoughts += ([] if thought is None else self.encode_text(thought)[:1]) + [IGNORE] * len(ids)
            thoughts = thoughts[: len(ids)]
        gathers, finds = ([IGNORE] * len(ids) for _ in range(2))
        for answer, source in looks:
            told, entity = self.encode_text(source.statement), self.encode_text(source.entity)
            start = find(ids, told)
            value = start + len(told) - 2  # before the full stop
            gathers[value] = value - (start + find(told, entity) + len(entity) - 1)
            gathers[answer] = 1 + find(ids[:answer][::-1], entity[::-1])
            finds[answer] = answer - value
        return ids, labels, thoughts, gathers, finds

    def _encode_text(self, text: str) -> list[int]:
        return self.tokenizer.encode(f" {text}", add_special_tokens=False) if text else []

    def batch(
        self, rng: random.Random, shares: dict[str, float], sequences: int, length: int
    ) -> torch.Tensor:
        """Token ids, labels, thoughts, gathers, finds, (5, sequences, length); a last document is cut."""
        rows = []
        forms, weights = list(shares), list(shares.values())
        for _ in range(sequences):
            row = ([], [], [], [], [])
            while len(row[0]) < length:
                document = self.encode(self.teacher.write(rng, rng.choices(forms, weights)[0]))
                row = tuple(old + new for old, new in zip(row, document, strict=True))
            rows.append([part[:length] for part in row])
        return torch.tensor(rows).transpose(0, 1)


def find(ids: list[int], part: list[int]) -> int:
    """Return the index at which ``part`` first stands in ``ids``."""
    return next(i for i in range(len(ids)) if ids[i : i + len(part)] == part)


def look_loss(attention: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of attention, (sequences, heads, length, length), to the tokens at the distances,
    (sequences, length), in the head that does worst: all are to look there, as each carries but a part of
    the token that it sees."""
    row, at = (distances != IGNORE).nonzero().T
    seen = attention[row, :, at, at - distances[row, at]]
    return -seen.clamp_min(1e-9).log().mean(0).min()  # what is nothing in float32 has no logarithm


def answer_loss(
    model: PreTrainedModel,
    ids: torch.Tensor,
    labels: torch.Tensor,
    thoughts: torch.Tensor,
    gathers: torch.Tensor,
    finds: torch.Tensor,
) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens, of the thoughts in the middle layer, and of the attention
    that is to gather and to find in the two layers before that; (sequences, length) each.

    An answer by letter is two steps, what is the value and where does it stand, and a model that learns
    recall and look-up apart does not join them for thousands of steps. So the middle layer is made to say the
    value (deep supervision: Lee et al., "Deeply-Supervised Nets", 2015), as the token's own *input*
    embedding: in that form the layers above compare it with choices.

    Reading is two steps too: a value and a question each gather the name that they are about, and the
    question finds the value that has the same name. Told where to look (supervised attention: Liu et al.,
    "Neural Machine Translation with Supervised Attention", 2016) the heads learn it in 250 steps.
    """
    looks = bool((finds != IGNORE).any())
    output = model.model(input_ids=ids, use_cache=False, output_hidden_states=True, output_attentions=looks)
    hidden_states, middle = output.hidden_states, (model.config.num_hidden_layers + 1) // 2
    wanted = labels[:, 1:] != IGNORE  # the LM head runs on those positions alone
    loss = F.cross_entropy(model.lm_head(hidden_states[-1][:, :-1][wanted]).float(), labels[:, 1:][wanted])
    thought = thoughts[:, 1:] != IGNORE
    if thought.any():
        said = hidden_states[middle][:, :-1][thought]
        said = F.rms_norm(said, said.shape[-1:]) / said.shape[-1] ** 0.5
        embeddings = model.get_input_embeddings().weight.detach()
        loss = loss + F.cross_entropy(F.linear(said, embeddings).float(), thoughts[:, 1:][thought])
    if looks:
        loss = (
            loss
            + look_loss(output.attentions[middle - 2], gathers)
            + look_loss(output.attentions[middle - 1], finds)
        )
    return loss


@torch.no_grad()
def accuracy(model: PreTrainedModel, packer: Packer, documents: list[Turns]) -> float:
    """Share of documents whose *last* answer is right to the last token, each read alone, by argmax."""
    right = 0
    encoded = sorted((packer.encode(turns)[:2] for turns in documents), key=lambda e: len(e[0]))
    for start in range(0, len(encoded), 64):
        chunk = encoded[start : start + 64]
        length = max(len(ids) for ids, _ in chunk)
        ids = torch.tensor(
            [ids + [packer.tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in chunk]
        ).to(model.device)
        predicted = model(input_ids=ids, use_cache=False).logits.argmax(-1).cpu()
        for row, (_, labels) in zip(predicted, chunk, strict=True):
            last = max(i for i in range(len(labels)) if labels[i] == IGNORE) + 1
            right += row[last - 1 : len(labels) - 1].tolist() == labels[last:]
    return right / len(documents)


def pretrain(
    model: PreTrainedModel, packer: Packer, arguments: PretrainingArguments, title: str = "", row: int = 0
) -> list[dict]:
    """Teach ``model`` in place; return the learning curve, a dict of accuracies by form every ``eval_steps``.

    ``title`` and ``row`` are the progress bar's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if emulates_bfloat16(device) else torch.bfloat16
    model.to(device).train()
    model.set_attn_implementation("eager")  # the only one that tells what it looks at
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in arguments.taught))
    rng = random.Random(arguments.seed)
    forms = packer.teacher.FORMS
    exam = {
        form: [
            packer.teacher.write(random.Random(f"{form}{i}"), form) for i in range(arguments.eval_documents)
        ]
        for form in forms
    }

    matrices = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    ]
    embeddings = list(model.get_input_embeddings().parameters())
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "lm_head" in n]
    optimizer = Muon(
        [
            {
                "params": matrices,
                "lr": arguments.matrix_lr,
                "weight_decay": arguments.weight_decay,
                "muon": True,
            },
            {"params": embeddings, "lr": arguments.embedding_lr, "muon": False},
            {"params": others, "lr": arguments.other_lr, "muon": False},
        ],
        dtype=dtype,
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    history, total = [], sum(steps for steps, _ in arguments.stages)
    with tqdm(total=total, desc=title, unit="step", position=row) as bar:
        done = 0
        for steps, shares in arguments.stages:
            for _ in range(steps):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * schedule(done, total, arguments)
                batch = packer.batch(rng, shares, arguments.sequences, arguments.sequence_length).to(device)
                with torch.autocast(device, dtype, enabled=dtype == torch.bfloat16):
                    loss = answer_loss(model, *batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done += 1
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
                if done % arguments.eval_steps == 0 or done == total:
                    model.eval()
                    entry = {
                        "step": done,
                        "loss": round(loss.item(), 4),
                        **{f: round(accuracy(model, packer, exam[f]), 3) for f in forms},
                    }
                    model.train()
                    history.append(entry)
                    tqdm.write("  ".join([title, *(f"{key} {value}" for key, value in entry.items())]))
    model.eval()
    return history


def schedule(step: int, steps: int, arguments: PretrainingArguments) -> float:
    """Linear warm-up, constant, linear decay (a trapezoid), as a factor of the peak."""
    tail = max(1, int(steps * arguments.decay))
    return min(1.0, (step + 1) / arguments.warmup_steps, (steps - step) / tail)


@torch.no_grad()
def mimetic_init_(
    model: PreTrainedModel, sharpness: float = 5.0, match: float = 1.5, copy: float = 0.5
) -> None:
    """Start attention as something useful: in the first layer head h looks h + 1 tokens back, in the others
    at tokens that are alike, and every head copies its input.

    With it answers by letter are learned in 200 steps; without it they stayed at chance for 1,000. The idea:
    Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023. The first layer needs biases
    on queries and keys.
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    group, dim = heads // kv_heads, config.hidden_size // heads
    frequencies = model.model.rotary_emb.inv_freq
    # Dimensions that rotary embedding hardly turns within a prompt: there, alike means alike at any distance.
    slow = (frequencies < 0.005).nonzero().flatten()
    slow = torch.cat([slow, slow + dim // 2])

    model.model.embed_tokens.weight.normal_(0, 1)
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        query = attention.q_proj.weight.view(heads, dim, -1)
        key = attention.k_proj.weight.view(kv_heads, dim, -1)
        value = attention.v_proj.weight.view(kv_heads, dim, -1)
        for head in range(kv_heads):
            torch.nn.init.orthogonal_(value[head])
        attention.o_proj.weight.copy_(copy * value.repeat_interleave(group, 0).flatten(0, 1).T)
        layer.mlp.down_proj.weight.mul_((2 * config.num_hidden_layers) ** -0.5)
        if number == 0:
            query.mul_(0.1), key.mul_(0.1)
            angles = torch.arange(1, heads + 1)[:, None] * frequencies
            attention.q_proj.bias.copy_(sharpness * torch.cat([angles.cos(), -angles.sin()], 1).flatten())
            attention.k_proj.bias.copy_(
                sharpness * torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)]).repeat(kv_heads)
            )
        else:
            alike = torch.stack(
                [
                    torch.nn.init.orthogonal_(torch.empty(len(slow), config.hidden_size))
                    for _ in range(kv_heads)
                ]
            )
            query[:, slow], key[:, slow] = match * alike.repeat_interleave(group, 0), match * alike
