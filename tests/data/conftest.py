import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from h2c_hf.modeling import H2CProcessor


CHATML = (
    "{% for m in messages %}{{ '<start>' + m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start>' + m['role'] + '<head>\n\n' + m['content'] | trim + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>assistant<head>\n\n' }}{% endif %}"
)


def byte_tokenizer(
    template: str, merges=(), reverse: bool = False, **special_tokens
) -> PreTrainedTokenizerFast:
    """One token a byte, merges aside; `<start>`, `<head>`, `<end>` and the given special tokens are whole.
    `reverse` numbers the bytes from behind: another vocabulary."""
    merges = list(merges)
    alphabet = [
        *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse),
        *(left + right for left, right in merges),
    ]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<start>", "<head>", "<end>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, **{"eos_token": "<end>", **special_tokens}
    )


@pytest.fixture
def make_tokenizer():
    return byte_tokenizer


@pytest.fixture
def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """As Qwen 2.5: a line end before the answer and after its end token, a pad token, no begin token."""
    return byte_tokenizer(CHATML, [("Ċ", "Ċ")], pad_token="<pad>")


@pytest.fixture
def headers_tokenizer() -> PreTrainedTokenizerFast:
    """In the manner of Llama 3: a begin token, two line ends (one token) before the answer, no pad token."""
    return byte_tokenizer(HEADERS, [("Ċ", "Ċ")], reverse=True, bos_token="<begin>")


@pytest.fixture
def processor(headers_tokenizer, chatml_tokenizer) -> H2CProcessor:
    return H2CProcessor(sharer_tokenizer=headers_tokenizer, receiver_tokenizer=chatml_tokenizer)
