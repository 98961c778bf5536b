"""Teach a message's token projection the Receiver's embedding of each word that the Sharer has a token for.

`fit` starts the message from texts, in which a rare word stands once or never. Here the projection P learns
the dictionary itself: for each Sharer token, the Receiver's embeddings of the same characters. A linear map
finds the Receiver's own token for 4 of 5 words (Gemma 3 to SmolLM2, nearest embedding), and takes a neighbour
in meaning for the fifth; a perceptron finds 49 of 50 (docs/content.md).
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..modeling import H2CForCausalLM, H2CProcessor
from ..modeling.layers_h2c import normalized
from ..modeling.message_h2c import MessageProjection
from ..precision import emulates_bfloat16


STEPS = 1000
WORDS = 2048  # a step
LEARNING_RATE = 2e-3
TRIED = 2000  # words, for the shares that are reported
READ = 4096  # tokens of the Sharer at once


def fit_vocabulary(model: H2CForCausalLM, processor: H2CProcessor, texts: list[str]) -> dict[str, float]:
    """Set the parameters of the token projection of `model.bridge.message`, in place.

    The target of a Sharer token is the Receiver's embedding of the same characters, divided by its root mean
    square; where that is several tokens, the mean, in which each weighs half as much as the one before. Of
    it, the first `token_rank` principal components, scaled to variance 1 on average. Half of a step's words
    are drawn from the texts.

    Args:
        texts: as the Sharer will read them; their tokens are learned, and all that are one token of the
            Receiver's as well.

    Returns:
        {"words": how many tokens were learned, "own": of those that are one token of the Receiver, the share
        to which its embedding of the same characters is nearest, "own_linear": the same of the linear map
        alone}.
    """
    message, device = model.bridge.message, model.bridge.device
    pairs = same_characters(processor.sharer_tokenizer, processor.receiver_tokenizer)
    in_texts = {token for row in processor.sharer_tokenizer(texts)["input_ids"] for token in row}
    pairs = {token: pieces for token, pieces in pairs.items() if len(pieces) == 1 or token in in_texts}
    frequent = torch.tensor([row for row, token in enumerate(pairs) if token in in_texts], device=device)
    # A tensor of inference mode cannot be saved for the backward pass.
    inputs = read_tokens(model, list(pairs)).clone().to(device)
    targets = principal(received(model, list(pairs.values())), model.bridge.config.token_rank)
    set_linear_map(message, inputs, targets)
    single = [row for row, pieces in enumerate(pairs.values()) if len(pieces) == 1]
    linear = own_share(message, inputs[single], targets[single])
    learned = [
        p.requires_grad_()
        for part in (message.token_proj, message.token_in, message.token_out)
        for p in part.parameters()
    ]
    optimizer = torch.optim.AdamW(learned, LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in tqdm(range(STEPS), "Learning the vocabulary", unit="step"):
        rows = torch.randint(len(pairs), (WORDS // 2,), device=device)
        rows = torch.cat([rows, frequent[torch.randint(len(frequent), (WORDS // 2,), device=device)]])
        with torch.autocast(device.type, torch.bfloat16, enabled=not emulates_bfloat16(device)):
            projected = message.project_tokens(inputs[rows])[0]
        F.mse_loss(projected.float(), targets[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    message.freeze_dictionary()
    return {
        "words": len(pairs),
        "own": own_share(message, inputs[single], targets[single]),
        "own_linear": linear,
    }


@torch.no_grad()
def own_share(message: MessageProjection, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the share of rows, spread over all, whose projection is nearest by angle to their target."""
    rows = torch.arange(0, len(inputs), -(-len(inputs) // TRIED))
    directions = F.normalize(targets, dim=1)
    nearest = (message.project_tokens(inputs[rows])[0] @ directions.T).argmax(1)
    # Several Sharer tokens may have one target.
    return (targets[nearest] == targets[rows]).all(1).float().mean().item()


@torch.no_grad()
def set_linear_map(message: MessageProjection, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Set the projection to the linear regression of targets on inputs; the perceptron adds nothing yet."""
    inputs = normalized(inputs)
    mean, deviation = inputs.mean(0), inputs.std(0).clamp(min=1e-4)
    message.token_norm.weight[0] = 1 / deviation
    message.token_norm.bias[0] = -mean / deviation
    message.token_proj.weight[0] = torch.linalg.lstsq((inputs - mean) / deviation, targets).solution.T
    message.token_proj.bias.zero_()
    message.token_out.weight.zero_()
    message.token_out.bias.zero_()


def same_characters(
    sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase
) -> dict[int, list[int]]:
    """Return, for each Sharer token that is text, the Receiver's tokens of the same characters."""
    before = sharer("a", add_special_tokens=False)["input_ids"][-1]  # a token alone may lose its space
    first = sharer.decode([before])
    special = set(sharer.all_special_ids)
    ids = [token for token in range(len(sharer)) if token not in special]
    written = sharer.batch_decode([[before, token] for token in ids], clean_up_tokenization_spaces=False)
    kept = [
        (token, text[len(first) :])
        for token, text in zip(ids, written, strict=True)
        if text.startswith(first)
    ]
    kept = [(token, text) for token, text in kept if text and "\ufffd" not in text]
    pieces = receiver([text for _, text in kept], add_special_tokens=False)["input_ids"]
    return {token: row for (token, _), row in zip(kept, pieces, strict=True) if row}


@torch.no_grad()
def read_tokens(model: H2CForCausalLM, tokens: list[int]) -> torch.Tensor:
    """Return the Sharer's hidden state 0 of single tokens, (tokens, sharer_hidden_size), float32."""
    parts = torch.tensor(tokens)[:, None].split(READ)
    return torch.cat([model.read(part, torch.ones_like(part), [0])[0][:, 0].float().cpu() for part in parts])


def received(model: H2CForCausalLM, pieces: list[list[int]]) -> torch.Tensor:
    """Return the weighted mean of each row's Receiver embeddings, of root mean square 1: (rows, size)."""
    weight = model.receiver.get_input_embeddings().weight.detach().float()
    weight = weight / weight.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
    flat = torch.tensor([token for row in pieces for token in row], device=weight.device)
    offsets = torch.tensor([0, *(len(row) for row in pieces)], device=weight.device).cumsum(0)[:-1]
    weights = [0.5 ** torch.arange(len(row)) for row in pieces]
    shares = torch.cat([row / row.sum() for row in weights]).to(weight.device)
    return F.embedding_bag(flat, weight, offsets, mode="sum", per_sample_weights=shares).to(
        model.bridge.device
    )


def principal(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the first `rank` principal components, (rows, rank), scaled by one number to mean variance 1."""
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    components = rows @ vectors[:, -rank:]
    return components / components.var(0).mean().sqrt()
