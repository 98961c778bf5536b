"""Who answers: the methods and controls of an evaluation, all through one small interface.

A method gets a `Batch` of questions and returns the logits of the first answer token, or text. What several methods need,
the Sharer's pass and the Receiver's prefill, the batch computes once. To add one: subclass `Method`, name it, decorate it
with `@register`.
"""

import copy
from functools import cached_property

import torch
from transformers import BatchFeature
from transformers.cache_utils import Cache

from ..data.prompts import choice_prompt, hint_prompt, open_prompt, user_turn
from ..modeling import H2CForCausalLM, H2CProcessor


PROMPTS = {"choice": choice_prompt, "open": open_prompt}
MAX_HINT_TOKENS = 48


class Batch:
    """Questions as prompts of one ``form``, and what the methods share of them. Shapes as in `H2CForCausalLM.forward`."""

    def __init__(
        self,
        model: H2CForCausalLM,
        processor: H2CProcessor,
        questions: list[dict],
        form: str = "choice",
        donor: "Batch | None" = None,
    ):
        """``donor``: the questions whose states the shuffled control gives, by default the batch's own, moved by one."""
        self.model, self.processor, self.questions, self.form, self.donor = model, processor, questions, form, donor

    @cached_property
    def inputs(self) -> BatchFeature:
        return self.encode([PROMPTS[self.form](question) for question in self.questions])

    def encode(self, texts: list[str]) -> BatchFeature:
        return self.processor.apply_chat_template([user_turn(text) for text in texts]).to(self.model.receiver.device)

    @cached_property
    def sharer_hidden_states(self) -> tuple[torch.Tensor, ...]:
        # Those that the bridge reads, and the last: the Sharer's own answer.
        layers = [*self.model.bridge.read_layers, self.model.config.sharer_num_hidden_layers]
        return self.model.read(self.inputs["sharer_input_ids"], self.inputs["sharer_attention_mask"], layers)

    @cached_property
    def _prefilled(self) -> Cache:
        return self.model.prefill(self.inputs["input_ids"], self.inputs["attention_mask"])

    @property
    def receiver_cache(self) -> Cache:
        """The Receiver's own prefill. A fresh object each time, since going on from a cache extends it; same tensors."""
        cache = copy.copy(self._prefilled)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        return cache


class Method:
    """Answers the questions of a batch."""

    name: str
    reader = "receiver"  # whose vocabulary the logits are over: "receiver" or "sharer"

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits of the first answer token, (batch, vocabulary)."""
        inputs = batch.inputs
        outputs = batch.model(inputs["input_ids"], inputs["attention_mask"], past_key_values=self.cache(batch))
        return outputs.logits[:, -1]

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        """The whole answers; ``kwargs`` as for transformers' ``generate``."""
        inputs = batch.inputs
        ids = batch.model.generate(inputs["input_ids"], inputs["attention_mask"], past_key_values=self.cache(batch), **kwargs)
        return batch.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def cache(self, batch: Batch) -> Cache:
        """The cache, of all but the last token of the prompt, from which the Receiver answers."""
        raise NotImplementedError


METHODS: dict[str, Method] = {}


def register(method: type[Method]) -> type[Method]:
    METHODS[method.name] = method()
    return method


@register
class Receiver(Method):
    """The small model alone."""

    name = "receiver"

    def cache(self, batch: Batch) -> Cache:
        return batch.receiver_cache


@register
class TextToText(Method):
    """The Sharer answers in its own words; the Receiver reads them before the question."""

    name = "text_to_text"

    def logits(self, batch: Batch) -> torch.Tensor:
        return METHODS["receiver"].logits(self._hinted(batch))

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        return METHODS["receiver"].generate(self._hinted(batch), **kwargs)

    def _hinted(self, batch: Batch) -> Batch:
        asked = batch.encode([hint_prompt(question) for question in batch.questions])
        hints = sharer_text(batch, asked, max_new_tokens=MAX_HINT_TOKENS, do_sample=False)
        hinted = Batch(batch.model, batch.processor, batch.questions, batch.form)
        texts = [PROMPTS[batch.form](question, hint) for question, hint in zip(batch.questions, hints, strict=True)]
        hinted.inputs = hinted.encode(texts)
        return hinted


@register
class H2C(Method):
    """The Receiver, from the cache that the bridge wrote."""

    name = "h2c"

    def cache(self, batch: Batch) -> Cache:
        states, mask = self.states(batch)
        return batch.model.bridged_cache(
            batch.inputs["input_ids"], batch.inputs["attention_mask"], sharer_attention_mask=mask,
            sharer_hidden_states=states, receiver_cache=batch.receiver_cache,
        )  # fmt: skip

    def states(self, batch: Batch) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """What the bridge reads: the Sharer's hidden states and their mask. The controls override this."""
        return batch.sharer_hidden_states, batch.inputs["sharer_attention_mask"]


@register
class Sharer(Method):
    """The large model alone."""

    name = "sharer"
    reader = "sharer"

    def logits(self, batch: Batch) -> torch.Tensor:
        return batch.model.sharer.get_output_embeddings()(batch.sharer_hidden_states[-1][:, -1])

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        return sharer_text(batch, batch.inputs, **kwargs)


@register
class Shuffled(H2C):
    """Control: each question gets another question's states."""

    name = "shuffled"

    def states(self, batch: Batch):
        if batch.donor is not None:
            return super().states(batch.donor)
        if len(batch.questions) < 2:
            raise ValueError("The shuffled control needs another question's states: got a batch of 1, expected at least 2.")
        states, mask = super().states(batch)
        return tuple(None if state is None else state.roll(1, 0) for state in states), mask.roll(1, 0)


@register
class Zeros(H2C):
    """Control: states that are all zero."""

    name = "zeros"

    def states(self, batch: Batch):
        states, mask = super().states(batch)
        return tuple(None if state is None else torch.zeros_like(state) for state in states), mask


@register
class Noise(H2C):
    """Control: Gaussian noise with the mean and variance that each layer's states have at real tokens."""

    name = "noise"

    def states(self, batch: Batch):
        states, mask = super().states(batch)
        generator = torch.Generator(mask.device).manual_seed(0)
        noise = []
        for state in states:
            if state is None:
                noise.append(None)
                continue
            real = state[mask.bool()].float()
            drawn = torch.randn(state.shape, generator=generator, device=state.device)
            noise.append((drawn * real.std(0) + real.mean(0)).to(state.dtype))
        return tuple(noise), mask


def sharer_text(batch: Batch, inputs: BatchFeature, **kwargs) -> list[str]:
    """What the Sharer writes after its prompts in ``inputs``."""
    sharer = batch.model.sharer
    ids, mask = (inputs[name].to(sharer.device) for name in ("sharer_input_ids", "sharer_attention_mask"))
    new = sharer.generate(input_ids=ids, attention_mask=mask, **kwargs)[:, ids.shape[1] :]
    return batch.processor.sharer_tokenizer.batch_decode(new, skip_special_tokens=True)
