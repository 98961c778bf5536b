"""A batch of questions: their prompts for both models, and the passes over them that methods share."""

import contextlib
import copy
from functools import cached_property

import torch
from transformers import BatchFeature, PreTrainedModel
from transformers.cache_utils import Cache

from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..modeling.drafts_h2c import Draft
from ..modeling.inputs_h2c import forked
from ..prompts import FORMS, PROMPTS, Prompts, end_tokens, user_turn, with_passage


class Batch:
    """Questions as prompts of one ``form``, and the passes over them that methods share. Shapes as in
    `H2CForCausalLM.forward`.

    A question may have ``shots`` (questions with their answers, as turns before it) and a ``passage`` (which
    the Sharer reads before it, and the Receiver does not), a ``hint`` (a line that stands in the prompts of
    both) or one that the Receiver alone is ``told``.
    """

    def __init__(
        self,
        model: H2CForCausalLM,
        processor: H2CProcessor,
        questions: list[dict],
        form: str = "choice",
        donor: "Batch | None" = None,
        adapter: H2CBridgeModel | None = None,
        prompts: Prompts = PROMPTS,
        lora: PreTrainedModel | None = None,
        donor_rows: list[int] | None = None,
        draft_tokens: int | None = None,
    ):
        """
        Args:
            donor: other questions, as many, whose states the shuffled control gives; by default those of the
                batch itself.
            adapter: the bridge of the adapter control, trained with `h2c train --blank_sharer true`.
            prompts: the words around the questions.
            lora: the fine-tuned Receiver of the method "lora", from `h2c lora`.
            donor_rows: of the batch itself, the row that gives its states to each row; by default the one
                before it.
            draft_tokens: so many tokens the Sharer writes first, which the bridge reads after its prompt; by
                default as many as the model's generation config says.
        """
        self.model = model
        self.processor = processor
        self.questions = questions
        self.form = form
        self.donor = donor
        self.adapter, self.prompts, self.lora, self.donor_rows = adapter, prompts, lora, donor_rows
        self.draft_tokens = own_draft_tokens(model) if draft_tokens is None else draft_tokens
        self.cut_texts = 0  # of the Sharer's texts, those that ran on to their limit of tokens

    @cached_property
    def inputs(self) -> BatchFeature:
        conversations, for_sharers = [], []
        for question in self.questions:
            conversations.append(conversation(question, self.form, question.get("told"), self.prompts))
            for_sharers.append(for_sharer(conversation(question, self.form, prompts=self.prompts), question))
        return self.encode(conversations, for_sharers)

    def encode(
        self, conversations: list[list[dict]], sharer_conversations: list[list[dict]] | None = None
    ) -> BatchFeature:
        return self.processor.apply_chat_template(conversations, sharer_conversations).to(self.model.device)

    @cached_property
    def sharer_hidden_states(self) -> tuple[torch.Tensor, ...]:
        # Those that the bridge reads, and the last: the Sharer's own answer.
        layers = [*self.model.bridge.read_layers, self.model.config.sharer_num_hidden_layers]
        with self.part("sharer_prefill"):
            return self.model.read(
                self.inputs["sharer_input_ids"], self.inputs["sharer_attention_mask"], layers
            )

    @cached_property
    def draft(self) -> Draft:
        """The Sharer's prompts with its drafts."""
        ids, mask = self.inputs["sharer_input_ids"], self.inputs["sharer_attention_mask"]
        ends = end_tokens(self.model.sharer, self.processor.sharer_tokenizer)
        with self.part("sharer_writes"):
            return self.model.draft(ids, mask, self.draft_tokens, **ends)

    @cached_property
    def read(self) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """The Sharer's hidden states of its prompt and its draft, which the bridge reads, and their mask."""
        if self.draft_tokens:
            return self.draft.sharer_hidden_states, self.draft.sharer_attention_mask
        return self.sharer_hidden_states, self.inputs["sharer_attention_mask"]

    @cached_property
    def _prefilled(self) -> Cache:
        with self.part("receiver_prefill"):
            return self.model.prefill(self.inputs["input_ids"], self.inputs["attention_mask"])

    @property
    def receiver_cache(self) -> Cache:
        """The Receiver's own prefill, to go on from."""
        return forked(self._prefilled)

    def part(self, name: str) -> contextlib.AbstractContextManager:
        """Around each step of a method; `h2c_hf.evaluation.latency` has a clock here."""
        return contextlib.nullcontext()

    def with_inputs(self, inputs: BatchFeature) -> "Batch":
        """The same questions in other words, nothing computed yet."""
        batch = copy.copy(self)
        for computed in ("sharer_hidden_states", "draft", "read", "_prefilled"):
            batch.__dict__.pop(computed, None)
        batch.inputs = inputs
        return batch


def own_draft_tokens(model: H2CForCausalLM) -> int:
    """Return how many tokens of a draft the bridge's generation config asks for."""
    return getattr(model.generation_config, "sharer_max_new_tokens", None) or 0


def conversation(
    question: dict, form: str, hint: str | None = None, prompts: Prompts = PROMPTS
) -> list[dict]:
    """Return the Receiver's conversation: the question after its few-shot turns."""
    prompt, answer = FORMS[form]
    turns = []
    for shot in question.get("shots", []):
        turns += [*user_turn(prompt(shot, prompts=prompts)), {"role": "assistant", "content": answer(shot)}]
    return [*turns, *user_turn(prompt(question, hint or question.get("hint"), prompts))]


def for_sharer(messages: list[dict], question: dict) -> list[dict]:
    """The same conversation with the question's passage, if it has one, before the last turn."""
    if "passage" not in question:
        return messages
    return [*messages[:-1], *user_turn(with_passage(question["passage"], messages[-1]["content"]))]
