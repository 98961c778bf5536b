"""Training examples: a prompt for each model and a target, as token ids; the collator that batches them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..modeling import H2CProcessor
from ..modeling.processing_h2c import encode_marked, left_pad, mark_special_tokens, padding_id
from ..prompts import FORMS, answer_ids, answer_text, ended_ids, following_ids, last_special, user_turn


IGNORE_INDEX = -100


def encode_example(
    processor: H2CProcessor,
    conversation: list[dict] | str,
    answer: str,
    sharer_conversation: list[dict] | None = None,
) -> dict[str, list[int]]:
    """Encode an example. Both prompts end in the generation prompt; `target_ids` is the answer after it.

    Args:
        conversation: messages, or plain text: each model reads that as a user turn, or as it stands if it has
            no chat template.

    Raises:
        ValueError: for an empty conversation, or a template that `answer_ids` cannot use.
    """
    return encode_rendered(processor, [render_example(processor, conversation, answer, sharer_conversation)])[
        0
    ]


class Rendered(NamedTuple):
    """An example as texts for `encode_marked`: both prompts, and the text after the Receiver's prompt."""

    sharer_prompt: str
    prompt: str
    target: str
    answer: str


def render_example(
    processor: H2CProcessor,
    conversation: list[dict] | str,
    answer: str,
    sharer_conversation: list[dict] | None = None,
) -> Rendered | dict[str, list[int]]:
    """Render both prompts, by the way that generation takes, and the target. Plain text for a model without a
    chat template has no frame to render: its token ids are returned.

    Raises:
        ValueError: see `encode_example`.
        jinja2.TemplateError: if a chat template refuses the conversation.
    """
    if isinstance(conversation, str):
        tokenizers = processor.receiver_tokenizer, processor.sharer_tokenizer
        if None in [tokenizer.chat_template for tokenizer in tokenizers]:
            return encode_plain(processor, conversation, answer)
        conversation = user_turn(conversation)
    sharer = processor.render(
        "sharer",
        conversation if sharer_conversation is None else sharer_conversation,
        add_generation_prompt=True,
    )
    variables = processor.chat_template_kwargs
    return Rendered(
        sharer,
        *answer_text(processor.receiver_tokenizer, conversation, answer, template_kwargs=variables),
        answer,
    )


def encode_rendered(
    processor: H2CProcessor, rendered: list[Rendered | dict[str, list[int]]]
) -> list[dict[str, list[int]]]:
    """Encode examples together: each tokenizer is called once. Those that are token ids already stay.

    Raises:
        ValueError: for an answer without tokens.
    """
    texts = [one for one in rendered if isinstance(one, Rendered)]
    tokenizer, count = processor.receiver_tokenizer, len(texts)
    tails = [one.prompt[last_special(tokenizer, one.prompt) :] for one in texts]
    together = [tail + one.target for tail, one in zip(tails, texts, strict=True)]
    rows = encode_marked(tokenizer, [*(one.prompt for one in texts), *tails, *together])
    prompts, tails, together = rows[:count], rows[count : 2 * count], rows[2 * count :]
    sharer = encode_marked(processor.sharer_tokenizer, [one.sharer_prompt for one in texts])
    encoded = iter(zip(texts, sharer, prompts, tails, together, strict=True))
    examples = []
    for one in rendered:
        if not isinstance(one, Rendered):
            examples.append(one)
            continue
        _, sharer_ids, prompt_ids, tail_ids, whole_ids = next(encoded)
        merged = whole_ids[: len(tail_ids)] != tail_ids
        target = encode_marked(tokenizer, [one.target])[0] if merged else whole_ids[len(tail_ids) :]
        target = ended_ids(tokenizer, target, one.answer)
        examples.append({"input_ids": prompt_ids, "sharer_input_ids": sharer_ids, "target_ids": target})
    return examples


def encode_plain(processor: H2CProcessor, prompt: str, answer: str) -> dict[str, list[int]]:
    """Encode one example of plain text for a pair of which one or both models have no chat template. Such a
    model reads the prompt as `H2CProcessor.__call__` encodes it; a Receiver without a template ends its
    answer with its end token."""

    variables = processor.chat_template_kwargs

    def prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if tokenizer.chat_template is None:
            return tokenizer(prompt, split_special_tokens=True)["input_ids"]
        marked = mark_special_tokens(tokenizer, user_turn(prompt))
        return encode_marked(
            tokenizer,
            [tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True, **variables)],
        )[0]

    receiver = processor.receiver_tokenizer
    if receiver.chat_template is None:
        marked_prompt, marked_answer = mark_special_tokens(receiver, [prompt, answer])
        end = [] if receiver.eos_token_id is None else [receiver.eos_token_id]
        target = following_ids(receiver, marked_prompt, marked_answer) + end
    else:
        target = answer_ids(receiver, user_turn(prompt), answer, template_kwargs=variables)
    return {
        "input_ids": prompt_ids(receiver),
        "sharer_input_ids": prompt_ids(processor.sharer_tokenizer),
        "target_ids": target,
    }


def encode_questions(processor: H2CProcessor, questions: list[dict], form: str = "choice") -> Dataset:
    """Questions in the columns of `cais/mmlu` as examples, in choice form (a letter) or open form (its text).

    Raises:
        ValueError: for another form, or a question whose answer is none of its choices.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}.")
    prompt, answer = FORMS[form]
    return Dataset.from_list(
        encode_rendered(
            processor, [render_example(processor, user_turn(prompt(q)), answer(q)) for q in questions]
        )
    )


@dataclass
class H2CCollator:
    """Batches examples: prompts padded on the left, targets on the right, each right after its kickstart."""

    processor: H2CProcessor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """The inputs of `H2CForCausalLM.forward` with `labels`, int64; -100 on prompts and padding.

        Raises:
            ValueError: if a prompt or a target has no tokens.
        """
        for name in ("input_ids", "sharer_input_ids", "target_ids"):
            empty = [i for i, example in enumerate(examples) if not len(example[name])]
            if empty:
                raise ValueError(
                    f"{name} of example {empty[0]} of {len(examples)} has no tokens; expected at least one."
                )
        receiver_pad = padding_id(self.processor.receiver_tokenizer)
        sharer_pad = padding_id(self.processor.sharer_tokenizer)
        prompts, prompt_mask = left_pad([e["input_ids"] for e in examples], receiver_pad)
        targets = [torch.tensor(e["target_ids"]) for e in examples]
        sharer_ids, sharer_mask = left_pad([e["sharer_input_ids"] for e in examples], sharer_pad)
        target_mask = pad_sequence([torch.ones_like(target) for target in targets], batch_first=True)
        target_labels = pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX)
        return {
            "input_ids": torch.cat(
                [prompts, pad_sequence(targets, batch_first=True, padding_value=receiver_pad)], 1
            ),
            "attention_mask": torch.cat([prompt_mask, target_mask], 1),
            "labels": torch.cat([torch.full_like(prompts, IGNORE_INDEX), target_labels], 1),
            "sharer_input_ids": sharer_ids,
            "sharer_attention_mask": sharer_mask,
        }
