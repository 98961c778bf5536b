"""The tokenizer of a base model, loaded as it was saved."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config


# Classes that are their tokenizer.json, and nothing else.
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_tokenizer(pretrained_model_name_or_path, trust_remote_code: bool = False, **source) -> PreTrainedTokenizerBase:
    """As `AutoTokenizer`, but for a tokenizer that says that it is its tokenizer.json. For some model types, Qwen2 among them,
    `AutoTokenizer` takes the type's own class whatever is said (`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS` of transformers), whose rules
    of splitting need not be those of the file: Atlas' Receiver was taught " 6" as one token, and Qwen2's class makes it two.

    Args:
        source: where it is, as any `from_pretrained` takes it (`revision`, `subfolder` ...).
    """
    if get_tokenizer_config(pretrained_model_name_or_path, **source).get("tokenizer_class") in GENERIC:
        return PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **source)
    return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, trust_remote_code=trust_remote_code, **source)
