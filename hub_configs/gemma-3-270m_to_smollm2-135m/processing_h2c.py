"""One conversation in, both models' inputs out."""

import copy
import re
import weakref

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .messages_h2c import check_fixed, check_messages, plain_messages


# Around special tokens that stand in a message as text: two code points that are no characters, so that no
# text has them.
MARKED = re.compile("\ufdd0([^\ufdd0\ufdd1]*)\ufdd1")


class H2CProcessor(ProcessorMixin):
    """Both tokenizers of a pair. `apply_chat_template` and `__call__` give the four inputs of
    `H2CForCausalLM`, padded on the left: `input_ids`, `attention_mask` (for the Receiver),
    `sharer_input_ids`, `sharer_attention_mask`.

    `chat_template_kwargs` are variables of the two chat templates, for instance `{"enable_thinking": False}`.
    They are saved in `processor_config.json`, and are the defaults of every `apply_chat_template`.
    """

    # Saving writes this file and its entry in processor_config.json, where AutoProcessor looks.
    _auto_class = "AutoProcessor"

    def __init__(
        self, sharer_tokenizer: PreTrainedTokenizerBase, receiver_tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict | None = None, **kwargs,
    ):  # fmt: skip
        if receiver_tokenizer is sharer_tokenizer:  # saving expects an object for each
            receiver_tokenizer = copy.deepcopy(receiver_tokenizer)
        # Each tokenizer keeps its own chat template; `ProcessorMixin.__init__` would ask for a common one.
        chat_template = kwargs.pop("chat_template", None)
        super().__init__(sharer_tokenizer, receiver_tokenizer, **kwargs)
        self.chat_template = chat_template
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

    @property
    def chat_template(self) -> str | dict | None:
        """The Receiver's tokenizer's. `sharer_tokenizer.chat_template` is the Sharer's."""
        return self.receiver_tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, value: str | dict | None) -> None:
        if value is not None:  # None: `ProcessorMixin.__init__`, before there are tokenizers
            self.receiver_tokenizer.chat_template = value

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, plus the Receiver's tokenizer, for `AutoTokenizer` to decode answers."""
        written = super().save_pretrained(save_directory, **kwargs)
        self.receiver_tokenizer.save_pretrained(save_directory)
        return written

    def to_dict(self) -> dict:
        """As stock; without empty chat_template_kwargs, so that older code reads the file without warning."""
        output = super().to_dict()
        if not output.get("chat_template_kwargs"):
            output.pop("chat_template_kwargs", None)
        return output

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The Receiver's: it decodes answers; `decode` and the Trainer look for it here."""
        return self.receiver_tokenizer

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "sharer_input_ids", "sharer_attention_mask"]

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        sharer_conversation: list[dict] | list[list[dict]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        **kwargs,
    ) -> BatchFeature | dict:
        """Render one conversation (or a list of them) with each model's own chat template.

        Messages are text: a special token that is written in one, such as `<|im_end|>`, is encoded by its
        letters and cannot end the turn.

        Args:
            conversation: messages as transformers has them: `{"role": ..., "content": ...}`, dataclasses or
                pydantic models. Content may be a list of parts of type text, which are joined.
            sharer_conversation: the Sharer's conversation, if it is another; as many.
            add_generation_prompt: end in the frame of the assistant's turn, whose last token is the
                kickstart.
            tokenize: False returns the texts, `{"text": ..., "sharer_text": ...}`, as `__call__` takes them
                with `add_special_tokens=False` (the templates wrote the special tokens already; those in
                messages are not told apart then).
            kwargs: passed to both tokenizers' `apply_chat_template` (`tools`, `continue_final_message`, a
                template's own variables ...), over the processor's `chat_template_kwargs`.

        Returns:
            The four inputs, (batch, length) each, int64, padded on the left.

        Raises:
            ValueError: for an empty conversation, another number of Sharer conversations, a tokenizer without
                a template, a part that is not text, or an option that would cut or pad otherwise.
        """
        kwargs.pop("return_dict", None)
        kwargs |= {
            **(kwargs.pop("tokenizer_kwargs", None) or {}),
            **(kwargs.pop("processor_kwargs", None) or {}),
        }
        check_fixed(kwargs)
        conversation, sharer_conversation = plain_messages(conversation), plain_messages(sharer_conversation)
        return_tensors = kwargs.pop("return_tensors", "pt")
        sharer_conversation = conversation if sharer_conversation is None else sharer_conversation
        texts, rows = {}, {}
        for role, given in (("receiver", conversation), ("sharer", sharer_conversation)):
            tokenizer = getattr(self, f"{role}_tokenizer")
            rendered = self.render(role, given, add_generation_prompt=add_generation_prompt, **kwargs)
            prompts = [rendered] if isinstance(rendered, str) else rendered
            rows[role] = encode_marked(tokenizer, prompts) if tokenize else []
            plain = [MARKED.sub(r"\1", text) for text in prompts]
            texts[role] = plain[0] if isinstance(rendered, str) else plain
        if not tokenize:
            return {"text": texts["receiver"], "sharer_text": texts["sharer"]}
        return self._inputs(rows["receiver"], rows["sharer"], return_tensors)

    def render(self, role: str, conversation: list[dict] | list[list[dict]], **kwargs) -> str | list[str]:
        """Render conversations as text for `encode_marked`: special tokens in messages are marked.

        Args:
            role: "receiver" or "sharer", whose chat template is used.
            kwargs: passed to the tokenizer's `apply_chat_template`, over the processor's
                `chat_template_kwargs`.

        Raises:
            ValueError: for an empty conversation, or a tokenizer without a template.
        """
        if not conversation or any(not messages for messages in conversation):
            raise ValueError(f"The {role}'s conversation is empty; expected at least one message.")
        check_messages(conversation)
        tokenizer = getattr(self, f"{role}_tokenizer")
        if tokenizer.chat_template is None:
            raise ValueError(
                f"The {role}'s tokenizer has no chat template; set {role}_tokenizer.chat_template, or pass "
                f"text. Commands take --{role}_chat_template: a Jinja file, or 'plain'."
            )
        kwargs = {**self.chat_template_kwargs, **kwargs}
        for name in ("tools", "documents"):  # what they say is text too
            if kwargs.get(name) is not None:
                kwargs[name] = mark_special_tokens(tokenizer, kwargs[name])
        return tokenizer.apply_chat_template(
            mark_special_tokens(tokenizer, conversation), tokenize=False, **kwargs
        )

    def __call__(
        self,
        text: str | list[str],
        sharer_text: str | list[str] | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Encode plain text (or a list of texts) for both models; nothing is truncated.

        Args:
            text: the Receiver's text. Special tokens that are written in it are text, unless
                `add_special_tokens` is False.
            sharer_text: the Sharer's text, if it is another; as many.
            add_special_tokens: False for text that already went through a chat template.
            kwargs: `padding`, `truncation` and their like, with the values that are fixed here.

        Returns:
            The four inputs, (batch, length) each, int64, padded on the left.

        Raises:
            ValueError: for an empty prompt, another number of Sharer texts, or an option that would cut or
                pad otherwise.
        """
        check_fixed(kwargs)
        # Stock names images=None and their like.
        if unknown := [name for name, value in kwargs.items() if value is not None]:
            raise TypeError(f"H2CProcessor got an unexpected keyword argument {unknown[0]!r}.")
        texts = [text] if isinstance(text, str) else list(text)
        sharer_text = texts if sharer_text is None else sharer_text
        sharer_texts = [sharer_text] if isinstance(sharer_text, str) else list(sharer_text)
        receiver_rows, sharer_rows = (
            tokenizer(batch, add_special_tokens=add_special_tokens, split_special_tokens=add_special_tokens)[
                "input_ids"
            ]
            if batch
            else []
            for tokenizer, batch in ((self.receiver_tokenizer, texts), (self.sharer_tokenizer, sharer_texts))
        )
        return self._inputs(receiver_rows, sharer_rows, return_tensors)

    def _inputs(
        self, receiver_rows: list[list[int]], sharer_rows: list[list[int]], return_tensors: str | None
    ) -> BatchFeature:
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is {return_tensors!r}; expected 'pt'.")
        if len(receiver_rows) != len(sharer_rows):
            raise ValueError(
                f"Got {len(receiver_rows)} prompts for the Receiver and {len(sharer_rows)} for the Sharer; "
                "expected as many."
            )
        inputs = {}
        for prefix, tokenizer, rows in (
            ("", self.receiver_tokenizer, receiver_rows),
            ("sharer_", self.sharer_tokenizer, sharer_rows),
        ):
            if not rows or not all(rows):
                raise ValueError(
                    f"A prompt is empty: its text has no tokens for {prefix}input_ids; expected at least one."
                )
            inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"] = left_pad(
                rows, padding_id(tokenizer)
            )
        return BatchFeature(inputs)

    def decode(self, *args, **kwargs) -> str:
        """The Receiver's tokenizer's `decode`."""
        return self.receiver_tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """The Receiver's tokenizer's `batch_decode`."""
        return self.receiver_tokenizer.batch_decode(*args, **kwargs)


# Tokenizer -> (state of its special tokens, pattern of them): building the pattern takes longer than to
# render a conversation.
_PATTERNS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern | None:
    """The pattern of a tokenizer's special tokens, longest first, or None; rebuilt if tokens were added."""
    state = len(tokenizer), tuple(tokenizer.all_special_tokens)
    known = _PATTERNS.get(tokenizer)
    if known is None or known[0] != state:
        special = sorted(
            (token.content for token in tokenizer.added_tokens_decoder.values() if token.special),
            key=len,
            reverse=True,
        )
        known = _PATTERNS[tokenizer] = (
            state,
            re.compile("|".join(map(re.escape, special))) if special else None,
        )
    return known[1]


def mark_special_tokens(tokenizer: PreTrainedTokenizerBase, messages):
    """Messages (nested lists, dicts, texts) with their special tokens marked, for `encode_marked`."""
    pattern = special_pattern(tokenizer)
    if pattern is None:
        return messages

    def mark(value):
        if isinstance(value, str):
            return pattern.sub("\ufdd0\\g<0>\ufdd1", value)
        if isinstance(value, dict):
            return {key: mark(item) for key, item in value.items()}
        return [mark(item) for item in value] if isinstance(value, list | tuple) else value

    return mark(messages)


def encode_marked(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered conversations; marked special tokens are encoded as text. One call of the
    tokenizer for all texts, and one more if anything is marked."""
    split = [MARKED.split(text) for text in texts]  # pieces by turns not marked and marked
    pieces = [[piece for parts in split for piece in parts[first::2]] for first in (0, 1)]
    rows = [
        iter(
            tokenizer(
                own, add_special_tokens=False, split_special_tokens=marked, return_attention_mask=False
            )["input_ids"]
            if own
            else []
        )
        for marked, own in ((False, pieces[0]), (True, pieces[1]))
    ]
    return [[token for number in range(len(parts)) for token in next(rows[number % 2])] for parts in split]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the pad token, else the end token (Llama 3): padding is masked everywhere, so any id serves."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return 0 if pad is None else pad


def left_pad(rows: list[list[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their attention mask, (rows, longest) each."""
    ids = pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value, padding_side="left"
    )
    mask = pad_sequence(
        [torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True, padding_side="left"
    )
    return ids, mask


__all__ = ["H2CProcessor"]
