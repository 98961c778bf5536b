"""Training examples: a prompt for each model and a target, as token ids; and the collator that batches them."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..modeling import H2CProcessor
from ..modeling.processing_h2c import encode_marked, left_pad, mark_special_tokens, padding_id
from .prompts import FORMS, answer_ids, following_ids, user_turn


IGNORE_INDEX = -100


def encode_example(
    processor: H2CProcessor, conversation: list[dict] | str, answer: str, sharer_conversation: list[dict] | None = None
) -> dict[str, list[int]]:
    """One example: `input_ids` and `sharer_input_ids` end in the generation prompt; `target_ids` is what follows it.

    Args:
        conversation: messages, or plain text: each model reads that as a user turn, or as it stands if it has no chat template.

    Raises:
        ValueError: for an empty conversation, or a template that `answer_ids` cannot use.
    """
    if isinstance(conversation, str):
        tokenizers = processor.receiver_tokenizer, processor.sharer_tokenizer
        if None in [tokenizer.chat_template for tokenizer in tokenizers]:
            return encode_plain(processor, conversation, answer)
        conversation = user_turn(conversation)
    prompts = processor.apply_chat_template(conversation, sharer_conversation)  # one way to a prompt, here and in generation
    return {
        "input_ids": prompts["input_ids"][0].tolist(),
        "sharer_input_ids": prompts["sharer_input_ids"][0].tolist(),
        "target_ids": answer_ids(processor.receiver_tokenizer, conversation, answer),
    }


def encode_plain(processor: H2CProcessor, prompt: str, answer: str) -> dict[str, list[int]]:
    """Encode one example of plain text for a pair of which one or both models have no chat template. Such a model reads the prompt
    as `H2CProcessor.__call__` encodes it; a Receiver without a template ends its answer with its end token."""

    def prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if tokenizer.chat_template is None:
            return tokenizer(prompt, split_special_tokens=True)["input_ids"]
        marked = mark_special_tokens(tokenizer, user_turn(prompt))
        return encode_marked(tokenizer, tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True))

    receiver = processor.receiver_tokenizer
    if receiver.chat_template is None:
        marked_prompt, marked_answer = mark_special_tokens(receiver, [prompt, answer])
        end = [] if receiver.eos_token_id is None else [receiver.eos_token_id]
        target = following_ids(receiver, marked_prompt, marked_answer) + end
    else:
        target = answer_ids(receiver, user_turn(prompt), answer)
    return {"input_ids": prompt_ids(receiver), "sharer_input_ids": prompt_ids(processor.sharer_tokenizer), "target_ids": target}


def encode_questions(processor: H2CProcessor, questions: list[dict], form: str = "choice") -> Dataset:
    """Questions in the columns of `cais/mmlu` as examples, in choice form (a letter) or open form (the choice's text).

    Raises:
        ValueError: for another form, or a question whose answer is none of its choices.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}.")
    prompt, answer = FORMS[form]
    return Dataset.from_list([encode_example(processor, user_turn(prompt(q)), answer(q)) for q in questions])


@dataclass
class H2CCollator:
    """Batches examples: prompts padded on the left, targets on the right, so that a target starts right after its kickstart."""

    processor: H2CProcessor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """The inputs of `H2CForCausalLM.forward` with `labels`, int64; -100 on prompts and padding.

        Raises:
            ValueError: where a prompt or a target has no tokens.
        """
        for name in ("input_ids", "sharer_input_ids", "target_ids"):
            empty = [i for i, example in enumerate(examples) if not len(example[name])]
            if empty:
                raise ValueError(f"{name} of example {empty[0]} of {len(examples)} has no tokens; expected at least one.")
        receiver_pad, sharer_pad = padding_id(self.processor.receiver_tokenizer), padding_id(self.processor.sharer_tokenizer)
        prompts, prompt_mask = left_pad([e["input_ids"] for e in examples], receiver_pad)
        targets = [torch.tensor(e["target_ids"]) for e in examples]
        sharer_ids, sharer_mask = left_pad([e["sharer_input_ids"] for e in examples], sharer_pad)
        target_mask = pad_sequence([torch.ones_like(target) for target in targets], batch_first=True)
        target_labels = pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX)
        return {
            "input_ids": torch.cat([prompts, pad_sequence(targets, batch_first=True, padding_value=receiver_pad)], 1),
            "attention_mask": torch.cat([prompt_mask, target_mask], 1),
            "labels": torch.cat([torch.full_like(prompts, IGNORE_INDEX), target_labels], 1),
            "sharer_input_ids": sharer_ids,
            "sharer_attention_mask": sharer_mask,
        }
