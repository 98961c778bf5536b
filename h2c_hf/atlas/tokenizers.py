"""The two BPE tokenizers of Atlas: different vocabularies, special tokens and templates, as in a real pair.

Both templates write a space before every message, so that a name or a letter is the same token wherever it
stands (the way Llama 2's and Mistral's templates did).
"""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..prompts import choice_prompt, hint_prompt
from .facts import Fact
from .questions import QUESTIONS, STATEMENTS, QuestionWriter, statement


SHARER_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
RECEIVER_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '> ' + message['content'] | trim + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)

VALUE_REPEATS = 100


def build_sharer_tokenizer(facts: list[Fact], vocab_size: int = 5120) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a begin token."""
    special = ["<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
    tokenizer = _train(_texts(facts, seed=1), vocab_size, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>",
        chat_template=SHARER_TEMPLATE, padding_side="left", model_max_length=512,
    )  # fmt: skip


def build_receiver_tokenizer(facts: list[Fact], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a begin token, and a smaller vocabulary: names have other pieces."""
    special = ["<pad>", "</s>", "<system>", "<user>", "<assistant>"]
    tokenizer = _train(_texts(facts, seed=2), vocab_size, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>",
        chat_template=RECEIVER_TEMPLATE, padding_side="left", model_max_length=512,
    )  # fmt: skip


def _train(texts: list[str], vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _texts(facts: list[Fact], seed: int) -> list[str]:
    rng, writer = random.Random(seed), QuestionWriter(facts)
    texts = [
        f" {words}"
        for wordings in (QUESTIONS, STATEMENTS)
        for several in wordings.values()
        for words in several
    ]
    # Often enough that every value becomes one token, " Leo": the tiny models compare values token by token.
    texts += [f" {value}" for value in sorted({fact.value for fact in facts})] * VALUE_REPEATS
    for fact in facts:
        question = writer.write(fact, rng)
        texts += [" " + statement(fact, rng), " " + choice_prompt(question), " " + hint_prompt(question)]
    return texts
