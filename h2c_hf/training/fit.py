"""Start a bridge of the message form where a regression puts it, before its first training step.

Both models read the same texts. For every Sharer token, the keys and values that the Receiver's own tokens
have at the same characters are known; the bridge's maps are the ridge regression of those on the Sharer's
hidden states. So a new bridge writes, roughly, the cache that the Receiver would have if it had read the text
itself, and training goes on from there (docs/content.md says what it saves).
"""

from collections.abc import Iterable, Iterator

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..modeling.families_h2c import backbone
from ..modeling.inputs_h2c import CACHE, model_inputs
from ..modeling.layers_h2c import StackedLinear, StackedNorm, normalized
from ..modeling.message_h2c import rotated
from ..modeling.processing_h2c import left_pad, padding_id
from .vocabulary import fit_vocabulary


BATCH = 16  # texts
PENALTY = 3e-3  # of the ridge, over the variance of a standardized input
SENTINEL = "\ufffc"  # stands for the text in a rendered chat template


@torch.inference_mode()
def fit_message(model: H2CForCausalLM, processor: H2CProcessor, texts: list[str]) -> dict[str, float]:
    """Set the parameters of `model.bridge` to those of the regression, in place.

    Args:
        model: with a bridge of the message form, and both base models in memory.
        texts: some hundreds, as the Sharer will read them.

    Returns:
        The share of the variance that is explained, over the fitted texts: {"keys", "values"}, means over
        layers; and, with a dictionary, what `fit_vocabulary` returns.

    Raises:
        ValueError: for another form, a tokenizer that gives no character offsets, or texts with too few
            tokens.
    """
    bridge = model.bridge
    if bridge.message is None:
        raise ValueError(
            f"bridge_form is {bridge.config.bridge_form!r}; expected 'message': other forms start from "
            "random weights."
        )
    for role in ("sharer", "receiver"):
        if not getattr(processor, f"{role}_tokenizer").is_fast:
            raise ValueError(
                f"The {role}'s tokenizer gives no character offsets; expected a fast tokenizer, or "
                "fit_examples 0."
            )
    rank = bridge.config.token_rank
    learned = {}
    if bridge.config.token_hidden_size is not None:
        with torch.inference_mode(False):  # it takes gradients
            learned = fit_vocabulary(model, processor, texts)
    elif rank is not None:
        fit_components(model, processor, texts)
    readers = {}  # by hidden state, the Receiver layers that read it: they share one regression
    for layer, index in bridge.alignment:
        readers.setdefault(index, []).append(layer)
    sums = {index: Moments() for index in readers}
    for states, targets in tqdm(
        aligned(model, processor, texts), "Fitting the message", total=-(-len(texts) // BATCH), unit="batch"
    ):
        shared = (
            None
            if rank is None
            else bridge.message.project_tokens(states[0].to(bridge.device, bridge.dtype))[0]
        )
        for index, moments in sums.items():
            inputs = normalized(states[index].float())
            inputs = inputs if shared is None else torch.cat([inputs, shared.to(inputs)], 1)
            moments.add(inputs, torch.cat([targets[layer] for layer in readers[index]], 1))
    for moments in sums.values():
        if moments.count < 2 * len(moments.squares):
            raise ValueError(
                f"The texts have {moments.count} Sharer tokens that align; expected at least "
                f"{2 * len(moments.squares)}: give more of them, or --fit_examples 0 for random weights."
            )
    explained = torch.cat([set_layers(bridge, readers[index], moments) for index, moments in sums.items()])
    return {"keys": explained[:, 0].mean().item(), "values": explained[:, 1].mean().item(), **learned}


class Moments:
    """Sums over tokens, from which a regression of targets on inputs is solved, in float64."""

    def __init__(self):
        self.count, self.squares = 0, None

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """inputs: (tokens, in), targets: (tokens, out)."""
        inputs, targets = inputs.float().cpu(), targets.float().cpu()
        terms = (
            inputs.T @ inputs,
            inputs.T @ targets,
            inputs.sum(0),
            targets.sum(0),
            targets.square().sum(0),
        )
        if self.squares is None:
            self.squares, self.products, self.inputs, self.targets, self.target_squares = (
                term.double() for term in terms
            )
        else:
            for held, term in zip(
                (self.squares, self.products, self.inputs, self.targets, self.target_squares),
                terms,
                strict=True,
            ):
                held += term
        self.count += len(inputs)

    def solve(
        self, standardized: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Solve the ridge regression.

        Args:
            standardized: so many of the inputs, the first, are divided by their deviation, by default all.
                Principal components are not: the penalty then holds down the weights of directions in which
                the texts hardly vary, and in which a token that is in none of them may lie far out.

        Returns:
            Mean and divisor of the inputs (in,), the weight (in, out) on divided inputs, the mean target
            (out,), and the explained share of each target's variance (out,).
        """
        mean, target = self.inputs / self.count, self.targets / self.count
        covariance = self.squares / self.count - torch.outer(mean, mean)
        deviation = covariance.diagonal().clamp(min=1e-8).sqrt()
        if standardized is not None:
            deviation[standardized:] = 1
        correlation = covariance / torch.outer(deviation, deviation)
        products = (self.products / self.count - torch.outer(mean, target)) / deviation[:, None]
        weight = torch.linalg.solve(
            correlation + PENALTY * torch.eye(len(mean), dtype=torch.double), products
        )
        variance = (self.target_squares / self.count - target.square()).clamp(min=1e-12)
        error = variance - 2 * (weight * products).sum(0) + (weight * (correlation @ weight)).sum(0)
        return mean, deviation, weight, target, 1 - error / variance


def set_layers(bridge: H2CBridgeModel, layers: list[int], moments: Moments) -> torch.Tensor:
    """Set the parameters of the message in the Receiver layers that read one hidden state.

    Returns:
        (layers, 2), the explained share of the variance of each layer's keys and values, mean over their
        channels.
    """
    message, width = bridge.message, bridge.config.sharer_hidden_size
    mean, deviation, weight, target, explained = moments.solve(standardized=width)
    for layer, weight_of, target_of in zip(
        layers, weight.chunk(len(layers), 1), target.chunk(len(layers)), strict=True
    ):
        standardize(message.norm, layer, mean[:width], deviation[:width])
        message.kv_proj.weight[layer] = weight_of[:width].T.to(message.kv_proj.weight)
        message.kv_proj.bias[layer] = target_of.to(message.kv_proj.bias)
        if message.token_rank is not None:
            token_weight = weight_of[width:].T
            message.token_kv_proj.weight[layer] = token_weight.to(message.token_kv_proj.weight)
            message.token_kv_proj.bias[layer] = -(token_weight @ mean[width:]).to(message.token_kv_proj.bias)
    return explained.view(len(layers), 2, -1).mean(-1)


def standardize(norm: StackedNorm, position: int, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Let a norm give inputs of mean 0 and variance 1: AdamW then takes steps of like effect along each."""
    norm.weight[position] = (1 / deviation).to(norm.weight)
    norm.bias[position] = (-mean / deviation).to(norm.bias)


def fit_components(model: H2CForCausalLM, processor: H2CProcessor, texts: list[str]) -> None:
    """Set the token projection, a linear map, to the principal components of the texts' embeddings."""
    tokenizer, moments = processor.sharer_tokenizer, Moments()
    rows = tokenizer(texts, add_special_tokens=True)["input_ids"]
    for start in range(0, len(rows), BATCH):
        ids, mask = left_pad(rows[start : start + BATCH], padding_id(tokenizer))
        states = normalized(model.read(ids, mask, [0])[0].float())[mask.bool().to(model.sharer.device)]
        moments.add(states, states[:, :1])
    mean = moments.inputs / moments.count
    covariance = moments.squares / moments.count - torch.outer(mean, mean)
    deviation = covariance.diagonal().clamp(min=1e-8).sqrt()
    _, vectors = torch.linalg.eigh(covariance / torch.outer(deviation, deviation))
    message, rank = model.bridge.message, model.bridge.config.token_rank
    standardize(message.token_norm, 0, mean, deviation)
    linear: StackedLinear = message.token_proj
    linear.weight[0] = vectors[:, -rank:].T.to(linear.weight)
    linear.bias.zero_()


def aligned(
    model: H2CForCausalLM, processor: H2CProcessor, texts: list[str]
) -> Iterator[tuple[dict[int, torch.Tensor], list[torch.Tensor]]]:
    """Yield, a batch of texts at a time, what the Sharer and the Receiver have at the same characters.

    Each time the Sharer's hidden states by index, (tokens, sharer_hidden_size), and for every Receiver layer
    the mean keys (unrotated) and values over the Receiver tokens that share characters with each Sharer
    token, (tokens, 2 * size).
    """
    sharer = processor.sharer_tokenizer
    receiver = processor.receiver_tokenizer
    layers = model.bridge.read_layers
    before = frame_before_text(receiver)
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        read = sharer(
            batch, add_special_tokens=True, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        own = receiver(batch, add_special_tokens=False, return_offsets_mapping=True)
        ids, mask = left_pad(read["input_ids"], padding_id(sharer))
        states = model.read(ids, mask, layers)
        own_ids, own_mask = left_pad([before + row for row in own["input_ids"]], padding_id(receiver))
        cache = receiver_cache(model, own_ids, own_mask)
        kept = {index: [] for index in layers}
        targets = [[] for _ in cache.layers]
        for row in range(len(batch)):
            spans = [
                (0, 0) if special else span
                for span, special in zip(
                    read["offset_mapping"][row], read["special_tokens_mask"][row], strict=True
                )
            ]
            weights = shared_characters(spans, own["offset_mapping"][row])  # (Sharer tokens, Receiver tokens)
            used = weights.sum(1) > 0
            for index in layers:
                kept[index].append(states[index][row, -len(spans) :][used.to(states[index].device)])
            for layer, (keys, values) in enumerate(unrotated(model.bridge, cache, row, own_mask)):
                both = torch.cat([keys, values], 1)[-len(own["input_ids"][row]) :]
                targets[layer].append(weights[used].to(both) @ both)
        yield (
            {index: torch.cat(parts) for index, parts in kept.items()},
            [torch.cat(parts) for parts in targets],
        )


def receiver_cache(model: H2CForCausalLM, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Cache:
    """Return the Receiver's own cache of whole, left-padded texts."""
    cache = DynamicCache(config=model.receiver.config)
    inputs = model_inputs(model.receiver, input_ids, attention_mask)
    backbone(model.receiver)(**inputs, **{CACHE: cache}, use_cache=True)
    return cache


def unrotated(
    bridge: H2CBridgeModel, cache: Cache, row: int, mask: torch.Tensor
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Yield keys, turned back to position 0, and values of one row, (length, size) each, for every layer."""
    position_ids = (mask[row].cumsum(0) - 1).clamp(min=0)[None]
    for index, layer in enumerate(cache.layers):
        keys, values = layer.keys[row : row + 1].float(), layer.values[row : row + 1].float()
        keys = rotated(keys, -position_ids.to(keys.device), bridge.frequencies(index))
        yield tuple(states[0].transpose(0, 1).flatten(1) for states in (keys, values))


def shared_characters(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> torch.Tensor:
    """Return (spans, others): 1 / n for the n others that share characters with a span, 0 for the rest."""
    first, last = (torch.tensor([span[end] for span in spans])[:, None] for end in (0, 1))
    other_first, other_last = (torch.tensor([span[end] for span in others])[None] for end in (0, 1))
    shared = ((other_first < last) & (other_last > first)).float()
    return shared / shared.sum(1, keepdim=True).clamp(min=1)


def frame_before_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the chat template, or else the tokenizer, puts before a user's text."""
    if tokenizer.chat_template is None:
        return tokenizer("")["input_ids"]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": SENTINEL}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(rendered.split(SENTINEL)[0], add_special_tokens=False)["input_ids"]
