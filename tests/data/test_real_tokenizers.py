"""Ten real MMLU questions through real tokenizers and random models of both families, both ways."""

import os
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from h2c_hf.data.examples import H2CCollator, encode_questions
from h2c_hf.modeling import H2CForCausalLM, H2CProcessor
from h2c_hf.prompts import answer_ids, choice_prompt, letter_ids, user_turn


REAL = os.environ.get("H2C_REAL_DATA")
pytestmark = pytest.mark.skipif(
    not REAL, reason="H2C_REAL_DATA is not set; it names the folder with the real tokenizers and MMLU."
)

OPENING = {
    "llama-3.1": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
    "qwen2.5": "<|im_start|>system\n",
}
GENERATION_PROMPT = {
    "llama-3.1": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen2.5": "<|im_start|>assistant\n",
}
END = {"llama-3.1": "<|eot_id|>", "qwen2.5": "<|im_end|>"}
DIRECTIONS = (("llama-3.1", "qwen2.5"), ("qwen2.5", "llama-3.1"))


@pytest.fixture(scope="module")
def tokenizers():
    return {name: AutoTokenizer.from_pretrained(Path(REAL) / "tokenizers" / name) for name in OPENING}


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    """Ten test questions of ten subjects."""
    path = str(Path(REAL) / "mmlu" / "all" / "test-00000-of-00001.parquet")
    rows = load_dataset("parquet", data_files=path, split="train", cache_dir=None, keep_in_memory=True)
    first = {}
    for row in rows:
        first.setdefault(row["subject"], row)
    return list(first.values())[::2][:10]


@pytest.fixture(scope="module")
def models():
    """Real vocabularies, everything else tiny; weights so large that no two logits are nearly the same."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.2,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return {
        "llama-3.1": LlamaForCausalLM(LlamaConfig(vocab_size=128256, **shape)).eval(),
        "qwen2.5": Qwen2ForCausalLM(
            Qwen2Config(vocab_size=151936, **{**shape, "num_hidden_layers": 3, "head_dim": 16})
        ).eval(),
    }


@pytest.fixture(scope="module", params=DIRECTIONS, ids=" to ".join)
def pair(request, tokenizers, models):
    sharer, receiver = request.param
    torch.manual_seed(1)
    model = H2CForCausalLM.from_pair(models[sharer], models[receiver]).eval()
    return (
        sharer,
        receiver,
        model,
        H2CProcessor(sharer_tokenizer=tokenizers[sharer], receiver_tokenizer=tokenizers[receiver]),
    )


@pytest.fixture(scope="module")
def inputs(pair, questions):
    return pair[3].apply_chat_template([user_turn(choice_prompt(question)) for question in questions])


def one(inputs: dict, index: int) -> dict:
    """One example of a left-padded batch, without its padding."""
    lengths = {prefix: int(inputs[f"{prefix}attention_mask"][index].sum()) for prefix in ("", "sharer_")}
    return {
        name: tensor[index : index + 1, -lengths["sharer_" if name.startswith("sharer_") else ""] :]
        for name, tensor in inputs.items()
    }


def test_ten_questions_of_ten_subjects(questions):
    assert len({question["subject"] for question in questions}) == 10


def test_prompt_frames_are_whole(pair, questions, inputs):
    sharer, receiver, _, processor = pair
    for name, prefix, tokenizer in (
        (receiver, "", processor.receiver_tokenizer),
        (sharer, "sharer_", processor.sharer_tokenizer),
    ):
        for i, question in enumerate(questions):
            ids = one(inputs, i)[f"{prefix}input_ids"][0].tolist()
            text = tokenizer.decode(ids)
            assert text.startswith(OPENING[name])
            assert text.endswith(
                f"{choice_prompt(question)}{END[name]}"
                + ("\n" if name == "qwen2.5" else "")
                + GENERATION_PROMPT[name]
            )
            assert (
                ids
                == tokenizer.apply_chat_template(
                    user_turn(choice_prompt(question)), add_generation_prompt=True
                )["input_ids"]
            )
            if name == "llama-3.1":
                assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", OPENING)
def test_answers_are_single_tokens_without_a_space(tokenizers, questions, name):
    tokenizer = tokenizers[name]
    for question in questions:
        conversation = user_turn(choice_prompt(question))
        ids = letter_ids(tokenizer, conversation)
        assert (
            ids
            == [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
            == [32, 33, 34, 35]
        )
        assert not set(ids) & {
            tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][0] for letter in "ABCD"
        }
        for letter, token in zip("ABCD", ids, strict=True):
            assert answer_ids(tokenizer, conversation, letter) == [
                token,
                tokenizer.convert_tokens_to_ids(END[name]),
            ]

        # the whole turn, encoded at once: the token after the generation prompt
        prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
        turn = tokenizer.apply_chat_template([*conversation, {"role": "assistant", "content": "C"}])[
            "input_ids"
        ]
        assert turn[: len(prompt) + 1] == [*prompt, ids[2]]


@pytest.mark.parametrize("name", OPENING)
def test_answers_of_real_instructions_follow_the_prompt(tokenizers, name):
    """Code answers and answers that begin with a line end among them."""
    path = str(Path(REAL) / "instructions" / "train.jsonl")
    rows = load_dataset("json", data_files=path, split="train", keep_in_memory=True)
    pairs = [
        (row["conversations"][0]["value"], row["conversations"][1]["value"])
        for row in rows.select(range(0, len(rows), 150))
    ]
    pairs += [(asked, f"\n\n{answer}") for asked, answer in pairs[:10]]
    tokenizer = tokenizers[name]
    for asked, answer in pairs:
        conversation = user_turn(asked)
        ids = answer_ids(tokenizer, conversation, answer)
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert text == (answer.strip() if name == "llama-3.1" else answer) + END[name]


def test_forward_with_labels(pair, questions):
    """The loss is that of the letter and the end token, read from the kickstart on."""
    _, _, model, processor = pair
    examples = list(encode_questions(processor, questions))
    with torch.no_grad():
        outputs = model(**H2CCollator(processor)(examples))
    assert outputs.logits.shape[:2] == (10, 3)
    targets = torch.tensor([example["target_ids"] for example in examples])
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :2].flatten(0, 1), targets.flatten())
    torch.testing.assert_close(outputs.loss, expected)


def test_a_left_padded_batch_answers_as_each_question_alone(pair, inputs):
    _, _, model, _ = pair
    assert (inputs["attention_mask"][:, 0] == 0).any()
    assert (inputs["sharer_attention_mask"][:, 0] == 0).any()
    with torch.no_grad():
        logits = model(**inputs).logits
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert generated.shape == (10, inputs["input_ids"].shape[1] + 4)
        for i in range(10):
            alone = one(inputs, i)
            torch.testing.assert_close(model(**alone).logits[0], logits[i], atol=1e-4, rtol=0)
            alone_generated = model.generate(**alone, max_new_tokens=4, do_sample=False, pad_token_id=0)
            assert alone_generated[0, -4:].tolist() == generated[i, -4:].tolist()
            assert alone_generated[0, :-4].tolist() == alone["input_ids"][0].tolist()
            assert generated[i, -4].item() == logits[i, -1].argmax().item()


def test_the_sharer_is_read(pair, inputs):
    """Another question before the Sharer changes the logits: the bridge compared above does something."""
    _, _, model, _ = pair
    with torch.no_grad():
        right = model(**inputs).logits
        rolled = {
            name: tensor.roll(1, 0) if name.startswith("sharer_") else tensor
            for name, tensor in inputs.items()
        }
        assert (model(**rolled).logits - right).abs().amax(-1).min() > 1e-2
