"""The tokenizer of a base model, loaded as it was saved."""

from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file


# Classes that are their tokenizer.json, and nothing else.
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
# `tokenizer.ggml.pre` of vocabularies that split digits before GPT-2's rules apply, as llama.cpp reads them.
# transformers 5.24 leaves the digits together: "  12" and "\n\n12" then are other tokens than the model was
# trained on.
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def load_tokenizer(
    pretrained_model_name_or_path, trust_remote_code: bool = False, **source
) -> PreTrainedTokenizerBase:
    """As `AutoTokenizer`, but for a tokenizer that says that it is its tokenizer.json. For some model types,
    Qwen2 among them, `AutoTokenizer` takes the type's own class whatever is said
    (`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS` of transformers), whose rules of splitting need not be those
    of the file: Atlas' Receiver was taught " 6" as one token, and Qwen2's class makes it two.

    Args:
        source: its location, as any `from_pretrained` takes it (`revision`, `subfolder`, `gguf_file` ...).
    """
    if source.get("gguf_file"):
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **source)
        byte_level = tokenizer.backend_tokenizer.pre_tokenizer
        # Only GPT-2's rules lack the digits; reading the file takes seconds for a large vocabulary.
        if (
            isinstance(byte_level, pre_tokenizers.ByteLevel)
            and gguf_rules(pretrained_model_name_or_path, **source) in SINGLE_DIGITS
        ):
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        return tokenizer
    if get_tokenizer_config(pretrained_model_name_or_path, **source).get("tokenizer_class") in GENERIC:
        return PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **source)
    return AutoTokenizer.from_pretrained(
        pretrained_model_name_or_path, trust_remote_code=trust_remote_code, **source
    )


def gguf_rules(name: str | Path, gguf_file: str, **source) -> str | None:
    """Return the name of a GGUF file's rules of splitting."""
    from gguf import GGUFReader  # an extra

    field = GGUFReader(cached_file(name, gguf_file, **source)).get_field("tokenizer.ggml.pre")
    return field and field.contents()
