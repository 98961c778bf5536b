"""Who answers: the methods and controls of an evaluation, all through one small interface.

A method gets a `Batch` of questions and returns the logits of the first answer token, or text. Passes that
several methods need, the Sharer's pass and the Receiver's prefill, the batch computes once. To add one:
subclass `Method`, name it, decorate it with `@register`.
"""

import torch
from transformers import BatchFeature, PreTrainedModel
from transformers.cache_utils import Cache

from ..loading import PLAIN
from ..modeling.inputs_h2c import execution_device
from ..modeling.loss_h2c import head_of
from ..prompts import end_tokens, hint_prompt, user_turn
from .batch import Batch, conversation, for_sharer


MAX_HINT_TOKENS, MAX_REASONING_TOKENS = 48, 96


class Method:
    """Answers the questions of a batch."""

    name: str
    reader = "receiver"  # whose vocabulary the logits are over: "receiver" or "sharer"

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits of the first answer token, (batch, vocabulary)."""
        inputs = batch.inputs
        cache = self.cache(batch)
        with batch.part("decode"):
            return batch.model(inputs["input_ids"], inputs["attention_mask"], past_key_values=cache).logits[
                :, -1
            ]

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        """The whole answers; ``kwargs`` as for transformers' ``generate``."""
        inputs, cache = batch.inputs, self.cache(batch)
        kwargs = {
            "sharer_max_new_tokens": 0,
            **end_tokens(batch.model, batch.processor.receiver_tokenizer),
            **kwargs,
        }
        with batch.part("decode"):
            ids = batch.model.generate(
                inputs["input_ids"], inputs["attention_mask"], past_key_values=cache, **kwargs
            )
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
    """The Sharer answers a variant's prompt in its own words; the Receiver reads these and the question."""

    name = "text_to_text"
    variant, max_tokens = "hint", MAX_HINT_TOKENS

    def logits(self, batch: Batch) -> torch.Tensor:
        return METHODS["receiver"].logits(self.hinted(batch))

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        return METHODS["receiver"].generate(self.hinted(batch), **kwargs)

    def cache(self, batch: Batch) -> Cache:
        raise TypeError("text_to_text answers another prompt, so it has no cache for this one; see `hinted`.")

    def hinted(self, batch: Batch, **kwargs) -> Batch:
        """The Receiver's batch, with the Sharer's words. ``kwargs`` as for the Sharer's ``generate``."""
        pairs = zip(batch.questions, self.hints(batch, **kwargs), strict=True)
        return batch.with_inputs(
            batch.encode(
                [conversation(question, batch.form, hint, batch.prompts) for question, hint in pairs]
            )
        )

    def hints(self, batch: Batch, **kwargs) -> list[str]:
        """The Sharer's words on each question."""
        asked = [
            for_sharer(
                user_turn(hint_prompt(question, self.variant, batch.prompts, choices=batch.form == "choice")),
                question,
            )
            for question in batch.questions
        ]
        inputs = batch.encode(asked)
        with batch.part("sharer_writes"):
            return sharer_text(batch, inputs, max_new_tokens=self.max_tokens, do_sample=False, **kwargs)


@register
class TextToTextAnswer(TextToText):
    """As text-to-text; the Sharer is asked for its answer."""

    name, variant = "text_to_text_answer", "answer"


@register
class TextToTextReasoning(TextToText):
    """As text-to-text; the Sharer is asked to reason."""

    name, variant, max_tokens = "text_to_text_reasoning", "reasoning", MAX_REASONING_TOKENS


@register
class TextToTextDraft(TextToText):
    """The Receiver reads the text of the draft that the bridge reads: a fair rival of bridges with drafts."""

    name = "text_to_text_draft"
    max_tokens = 0  # beyond the draft's own

    def hints(self, batch: Batch, **kwargs) -> list[str]:
        if not batch.draft_tokens:
            raise ValueError("text_to_text_draft needs a draft: got draft_tokens 0, expected at least 1.")
        draft = batch.draft
        new = [
            ids[len(ids) - length :]
            for ids, length in zip(draft.sharer_input_ids, draft.lengths.tolist(), strict=True)
        ]
        return batch.processor.sharer_tokenizer.batch_decode(new, skip_special_tokens=True)


@register
class H2C(Method):
    """The Receiver, from the cache that the bridge wrote."""

    name = "h2c"

    def cache(self, batch: Batch) -> Cache:
        (states, mask), cache = self.states(batch), batch.receiver_cache
        with batch.part("bridge"):
            return batch.model.bridged_cache(
                batch.inputs["input_ids"], batch.inputs["attention_mask"], sharer_attention_mask=mask,
                sharer_hidden_states=states, receiver_cache=cache,
            )  # fmt: skip

    def states(self, batch: Batch) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the hidden states that the bridge reads, and their mask. The controls override this."""
        return batch.read


@register
class Skyline(Receiver):
    """The Receiver, with the passage in its own prompt: all a message could tell. Private regime only."""

    name = "skyline"

    def logits(self, batch: Batch) -> torch.Tensor:
        return super().logits(self.told(batch))

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        return super().generate(self.told(batch), **kwargs)

    def told(self, batch: Batch) -> Batch:
        """Return the batch with the Sharer's prompts as the Receiver's.

        Raises:
            ValueError: if a question has no passage.
        """
        if any("passage" not in question for question in batch.questions):
            raise ValueError(
                "The skyline needs passages, which the Receiver reads itself: got a question without one."
            )
        asked = [
            for_sharer(conversation(question, batch.form, prompts=batch.prompts), question)
            for question in batch.questions
        ]
        return batch.with_inputs(batch.encode(asked))


@register
class LoRA(Method):
    """The Receiver, fine-tuned on the bridge's training data without a Sharer: the rival single model."""

    name = "lora"

    def logits(self, batch: Batch) -> torch.Tensor:
        receiver, inputs = self._receiver(batch), batch.inputs
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with batch.part("decode"):
            return receiver(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                position_ids=positions,
                logits_to_keep=1,
            ).logits[:, -1]

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        receiver, inputs = self._receiver(batch), batch.inputs
        kwargs = {**end_tokens(batch.model, batch.processor.receiver_tokenizer), **kwargs}
        with batch.part("decode"):
            ids = receiver.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **kwargs
            )
        return batch.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def cache(self, batch: Batch) -> Cache:
        raise TypeError("lora answers with weights of its own, so it has no cache for the Receiver.")

    def _receiver(self, batch: Batch) -> PreTrainedModel:
        if batch.lora is None:
            raise ValueError(
                "The method 'lora' needs an adapter from 'h2c lora': got none, expected lora: DIR."
            )
        return batch.lora


@register
class Sharer(Method):
    """The large model alone."""

    name = "sharer"
    reader = "sharer"

    def logits(self, batch: Batch) -> torch.Tensor:
        last = batch.sharer_hidden_states[-1][:, -1:]
        with batch.part("decode"):
            return head_of(batch.model.sharer)(last)[:, -1]

    def generate(self, batch: Batch, **kwargs) -> list[str]:
        with batch.part("decode"):
            return sharer_text(batch, batch.inputs, **kwargs)


@register
class Shuffled(H2C):
    """Control: each question gets another question's states."""

    name = "shuffled"

    def states(self, batch: Batch):
        if batch.donor is not None:
            return super().states(batch.donor)
        if len(batch.questions) < 2:
            raise ValueError(
                "The shuffled control needs another question's states: got a batch of 1, expected at least 2."
            )
        states, mask = super().states(batch)
        rows = [row - 1 for row in range(len(mask))] if batch.donor_rows is None else batch.donor_rows
        rows = torch.tensor(rows).to(mask.device)
        return tuple(None if state is None else state[rows.to(state.device)] for state in states), mask[rows]


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


@register
class Adapter(Zeros):
    """Control: a bridge of the same size, trained on the same data, but never with the Sharer's states."""

    name = "adapter"

    def cache(self, batch: Batch) -> Cache:
        if batch.adapter is None:
            raise ValueError(
                "The adapter control needs a bridge trained with --blank_sharer true: got none, expected "
                "adapter: DIR."
            )
        (states, mask), cache = self.states(batch), batch.receiver_cache
        with batch.part("bridge"):
            return batch.adapter(states, cache, mask, batch.inputs["attention_mask"][:, :-1])


def sharer_text(batch: Batch, inputs: BatchFeature, **kwargs) -> list[str]:
    """The Sharer's text after its prompts in ``inputs``. Texts that ran on to their limit of tokens are
    counted in the batch. A base model with the plain template goes on with more questions: its text is the
    first line."""
    sharer, tokenizer = batch.model.sharer, batch.processor.sharer_tokenizer
    ids, mask = (
        inputs[name].to(execution_device(sharer)) for name in ("sharer_input_ids", "sharer_attention_mask")
    )
    kwargs = {**end_tokens(sharer, tokenizer), **kwargs}
    new = sharer.generate(input_ids=ids, attention_mask=mask, **kwargs)[:, ids.shape[1] :]
    ends = torch.tensor(kwargs.get("eos_token_id", []), device=new.device)
    batch.cut_texts += int((~torch.isin(new, ends).any(1)).sum())
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return (
        [text.strip().partition("\n")[0] for text in texts]
        if PLAIN in (tokenizer.chat_template or "")
        else texts
    )
