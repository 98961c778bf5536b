from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer

from h2c_hf.atlas import MODELS
from h2c_hf.atlas.facts import load_facts
from h2c_hf.atlas.questions import atlas_questions, statement
from h2c_hf.data.tokenizers import load_tokenizer
from h2c_hf.prompts import choice_prompt


SHIPPED = Path(__file__).parents[2] / "hub_configs" / "atlas"
TEXTS = [statement(fact) for fact in load_facts()] + [
    choice_prompt(question) for question in atlas_questions("test")
]


@pytest.fixture(scope="module", params=["sharer", "receiver"])
def role(request):
    return request.param


def test_atlas_texts_are_split_as_the_file_has_it(role):
    """The package's tokenizers, and those of the repo, against the file alone: as the models were taught."""
    raw = Tokenizer.from_file(str(MODELS / role / "tokenizer.json"))
    processor = AutoProcessor.from_pretrained(SHIPPED, trust_remote_code=True)
    expected = [encoding.ids for encoding in raw.encode_batch(TEXTS, add_special_tokens=False)]
    for tokenizer in (load_tokenizer(MODELS / role), getattr(processor, f"{role}_tokenizer")):
        assert tokenizer(TEXTS, add_special_tokens=False)["input_ids"] == expected
        assert len(tokenizer) == raw.get_vocab_size()


def test_every_value_is_one_token_of_the_shipped_models(role):
    values = [f" {value}" for value in sorted({fact.value for fact in load_facts()})]
    assert all(
        len(ids) == 1 for ids in load_tokenizer(MODELS / role)(values, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize("name", ["llama-3.1", "qwen2.5"])
def test_others_are_as_auto_tokenizer_has_them(real_data, name):
    folder = real_data / "tokenizers" / name
    ours, stock = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert (
        ours(TEXTS[:200])["input_ids"] == stock(TEXTS[:200])["input_ids"]
        and ours.chat_template == stock.chat_template
    )
