"""The words around a question and the token ids around an answer, for training, evaluation and generation.

A question is a dict in the columns of ``cais/mmlu``: ``question``, ``choices`` (list of str), ``answer``
(index), ``subject``.
"""

import re

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .modeling import H2CProcessor
from .modeling.processing_h2c import encode_marked, mark_special_tokens, special_pattern
from .wording import LETTERS, PROMPTS, Prompts


# Variables of chat templates: of Qwen3 and GLM; of Granite and DeepSeek.
THINKING_SWITCHES = ("enable_thinking", "thinking")


def choice_prompt(question: dict, hint: str | None = None, prompts: Prompts = PROMPTS) -> str:
    """Return the question with its lettered choices; ``hint`` is another model's text about it."""
    return "\n".join([_with_choices(question), *_hint_line(hint, prompts), prompts.choice])


def hint_prompt(
    question: dict, variant: str = "hint", prompts: Prompts = PROMPTS, choices: bool = True
) -> str:
    """Return the Sharer's prompt of text-to-text: it sees the same question and may answer and explain."""
    return "\n".join(
        [_with_choices(question) if choices else question["question"], getattr(prompts, variant)]
    )


def open_prompt(question: dict, hint: str | None = None, prompts: Prompts = PROMPTS) -> str:
    """The question alone: the answer is the text of the right choice."""
    return "\n".join([question["question"], *_hint_line(hint, prompts)])


def with_passage(passage: str, text: str) -> str:
    """A prompt after a passage that it is about (context hand-off)."""
    return f"{passage}\n\n{text}"


def choice_answer(question: dict) -> str:
    """The letter of the right choice."""
    return LETTERS[_answer_index(question)]


def open_answer(question: dict) -> str:
    """The text of the right choice."""
    return question["choices"][_answer_index(question)]


# form of a multiple-choice question: (its prompt, its answer)
FORMS = {"choice": (choice_prompt, choice_answer), "open": (open_prompt, open_answer)}


def user_turn(text: str) -> list[dict]:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]


def set_template_kwargs(processor: H2CProcessor, given: dict | None) -> None:
    """Set variables of the chat templates, over those that the processor has.

    Raises:
        ValueError: for a variable that neither template reads.
    """
    templates = [
        str(getattr(processor, f"{role}_tokenizer").chat_template) for role in ("sharer", "receiver")
    ]
    for name in given or {}:
        if not any(re.search(rf"\b{re.escape(name)}\b", template) for template in templates):
            raise ValueError(
                f"chat_template_kwargs has {name!r}, a variable that neither chat template reads; expected "
                "one of theirs."
            )
    processor.chat_template_kwargs = {**processor.chat_template_kwargs, **(given or {})}


def thinking_advice(tokenizer: PreTrainedTokenizerBase) -> str:
    """A sentence on how to switch off a template's thinking block, for an error; "" without known switch."""
    switch = next(
        (name for name in THINKING_SWITCHES if re.search(rf"\b{name}\b", str(tokenizer.chat_template))), None
    )
    if switch is None:
        return ""
    return (
        " The template may open a thinking block there: switch it off with "
        f"--chat_template_kwargs '{{\"{switch}\": false}}'."
    )


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[dict],
    answer: str,
    ended: bool = True,
    template_kwargs: dict | None = None,
) -> list[int]:
    """The token ids with which the assistant's turn says ``answer``, with its end token if ``ended``.

    Derived from the chat template: they are the text after the generation prompt, whatever stands between
    (Llama 3 writes two line ends and then "A", not " A"). Special tokens that are written in a message are
    text, as in `H2CProcessor`.

    Args:
        template_kwargs: variables of the chat template, as `H2CProcessor.chat_template_kwargs`.

    Raises:
        ValueError: for a template whose generation prompt is not how the assistant's turn begins, or an
            answer without tokens.
    """
    prompt, text = answer_text(tokenizer, conversation, answer, ended, template_kwargs)
    return ended_ids(tokenizer, following_ids(tokenizer, prompt, text), answer)


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[dict],
    answer: str,
    ended: bool = True,
    template_kwargs: dict | None = None,
) -> tuple[str, str]:
    """The rendered prompt and the text that says ``answer`` after it, both marked for `encode_marked`.

    Raises:
        ValueError: for a template whose generation prompt is not how the assistant's turn begins.
    """
    conversation, answer = mark_special_tokens(tokenizer, [conversation, answer])
    variables = template_kwargs or {}
    prompt = tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True, **variables
    )
    turns = [*conversation, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(
        turns, tokenize=False, continue_final_message=not ended, **variables
    )
    if not whole.startswith(prompt):
        raise ValueError(
            f"The chat template of {_name(tokenizer)} does not begin the assistant's turn with its "
            f"generation prompt: expected {prompt[-40:]!r} and the answer, got "
            f"{whole[-40 - len(answer) :]!r}.{thinking_advice(tokenizer)}"
        )
    return prompt, whole[len(prompt) :]


def ended_ids(tokenizer: PreTrainedTokenizerBase, ids: list[int], answer: str) -> list[int]:
    """``ids`` through the first end token.

    Raises:
        ValueError: if there are none.
    """
    if not ids:
        raise ValueError(
            f"The answer {answer!r} has no tokens in the chat template of {_name(tokenizer)}; expected at "
            "least one."
        )
    return ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The argument of `generate` that ends an answer: the model's own end tokens, and the tokenizer's, in
    which targets end. They differ in models whose generation config was lost on the way, and the answer would
    then run on."""
    own = model.generation_config.eos_token_id
    ends = {*([] if own is None else [own] if isinstance(own, int) else own), tokenizer.eos_token_id} - {None}
    return {"eos_token_id": sorted(ends)} if ends else {}


def following_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """The token ids of ``text`` after ``prompt``; both as they stand, without special tokens added."""
    start = last_special(tokenizer, prompt)
    before, together, alone = encode_marked(tokenizer, [prompt[start:], prompt[start:] + text, text])
    return after(before, together, alone)


def after(before: list[int], together: list[int], alone: list[int]) -> list[int]:
    """The token ids of a text after a prompt, given those of the prompt, of both together and of the text."""
    # The prompt's last token may merge with the text (a line end, and an answer that begins with one): in
    # generation the prompt stands as it is, so the text is encoded on its own then.
    return alone if together[: len(before)] != before else together[len(before) :]


def last_special(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """The position of the last special token of a rendered prompt, 0 if it has none: a special token cuts the
    text, so the token ids after it do not depend on the text before it. Marked ones are text, and do not
    count."""
    pattern = special_pattern(tokenizer)
    end = prompt.rfind("\ufdd1") + 1
    return max((match.start() for match in pattern.finditer(prompt, end)), default=0) if pattern else 0


def letter_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversation: list[dict],
    count: int = 4,
    template_kwargs: dict | None = None,
) -> list[int]:
    """The token id of each of the first ``count`` letters, as an answer to ``conversation``;
    ``template_kwargs`` as for `answer_ids`.

    Raises:
        ValueError: if a letter is more than one token, two letters share one, or there are not so many
            letters.
    """
    if not 1 <= count <= len(LETTERS):
        raise ValueError(f"Got {count} choices; expected 1 to {len(LETTERS)}.")
    ids = []
    for letter in LETTERS[:count]:
        token = answer_ids(tokenizer, conversation, letter, template_kwargs=template_kwargs)[0]
        if tokenizer.decode([token]).strip() != letter:
            raise ValueError(
                f"The answers {', '.join(LETTERS[:count])} must be single, distinct tokens; {letter!r} "
                f"begins with token {token}, {tokenizer.decode([token])!r}.{thinking_advice(tokenizer)}"
            )
        ids.append(token)
    return ids


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _answer_index(question: dict) -> int:
    index, count = question["answer"], len(question["choices"])
    if isinstance(index, str) or not 0 <= index < count:
        raise ValueError(
            f"The answer of a question is {index!r}; expected the index of one of its {count} choices, 0 to "
            f"{count - 1}."
        )
    return index


def _with_choices(question: dict) -> str:
    if not 1 <= len(question["choices"]) <= len(LETTERS):
        raise ValueError(f"A question has {len(question['choices'])} choices; expected 1 to {len(LETTERS)}.")
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question["choices"], strict=False)]
    return "\n".join([question["question"], *lines])


def _hint_line(hint: str | None, prompts: Prompts) -> list[str]:
    return [] if hint is None else [f"{prompts.prefix} {hint}"]
