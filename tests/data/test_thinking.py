"""Chat templates with a thinking block: `chat_template_kwargs` reach every prompt, or errors say so."""

import json

import pytest
import torch
from datasets import Dataset
from lm_eval.api.instance import Instance
from pairs import LLAMA_TEMPLATE, byte_tokenizer, tiny_model

from h2c_hf.cli import main
from h2c_hf.config_parser import read_template_kwargs
from h2c_hf.data.examples import encode_example
from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.sources import DataSource
from h2c_hf.evaluation.lm_eval_command import with_model
from h2c_hf.evaluation.lm_eval_model import H2CLM
from h2c_hf.evaluation.lm_eval_prompts import encode
from h2c_hf.evaluation.runner import evaluate
from h2c_hf.loading import opened
from h2c_hf.modeling import H2CForCausalLM, H2CProcessor
from h2c_hf.prompts import answer_ids, letter_ids, set_template_kwargs, user_turn
from h2c_hf.training.arguments import parse


# As Qwen3's: the last assistant's turn has a thinking block, and the generation prompt has one if thinking is
# switched off.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# As those that begin to think in the generation prompt, and leave thoughts out of the turns before.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if thinking is not defined or thinking %}<think>\n{% endif %}{% endif %}"
)
OFF = {"enable_thinking": False}
SWITCH = f"--chat_template_kwargs={json.dumps(OFF)}"
QUESTIONS = [
    {
        "question": f"Which is number {n}?",
        "choices": ["one", "two", "three"],
        "answer": n % 3,
        "subject": "numbers",
    }
    for n in range(6)
]


def thinking_tokenizer(template: str = QWEN3):
    return byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template,
    )  # fmt: skip


def thinking_processor(**kwargs) -> H2CProcessor:
    specials = ["<|begin|>", "<|start|>", "<|stop|>", "<|eot|>"]
    sharer = byte_tokenizer(specials, bos="<|begin|>", eos_token="<|eot|>", chat_template=LLAMA_TEMPLATE)
    return H2CProcessor(sharer, thinking_tokenizer(), **kwargs)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Sharer and a Receiver with such templates, and questions, as files."""
    root, processor = tmp_path_factory.mktemp("thinking"), thinking_processor()
    for role, family in (("sharer", "llama"), ("receiver", "qwen2")):
        tokenizer = getattr(processor, f"{role}_tokenizer")
        tiny_model(family, vocab_size=len(tokenizer)).save_pretrained(root / role)
        tokenizer.save_pretrained(root / role)
    (root / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return root


@pytest.fixture(scope="module")
def trained(folders):
    """The folder of a bridge that `h2c train` wrote with thinking switched off."""
    assert main(["train", *training(folders), SWITCH]) == 0
    return folders / "bridge"


def training(folders) -> list[str]:
    return [
        f"--sharer={folders / 'sharer'}", f"--receiver={folders / 'receiver'}",
        f"--train_data={folders / 'questions.jsonl'}", f"--output_dir={folders / 'bridge'}", "--max_steps=1",
        "--report_to=none", "--save_strategy=no", "--use_cpu", "--dropout=0",
    ]  # fmt: skip


def test_letters_follow_the_closed_thinking_block():
    tokenizer = thinking_tokenizer()
    with pytest.raises(
        ValueError,
        match=r"'A' begins with token 3, '<think>'.*--chat_template_kwargs '{\"enable_thinking\": false}'",
    ):
        letter_ids(tokenizer, user_turn("?"))
    ids = letter_ids(tokenizer, user_turn("?"), template_kwargs=OFF)
    assert tokenizer.decode(ids) == "ABCD"
    assert (
        tokenizer.decode(answer_ids(tokenizer, user_turn("?"), "It is so.", template_kwargs=OFF))
        == "It is so.<|im_end|>"
    )


def test_a_prompt_that_opens_a_block_says_how_to_leave_it_out():
    tokenizer = thinking_tokenizer(THINKS)
    with pytest.raises(
        ValueError, match=r"with its generation prompt.*--chat_template_kwargs '{\"thinking\": false}'"
    ):
        answer_ids(tokenizer, user_turn("?"), "A")
    assert (
        tokenizer.decode(answer_ids(tokenizer, user_turn("?"), "A", template_kwargs={"thinking": False}))
        == "A<|im_end|>"
    )


def test_the_processors_variables_are_saved_and_default(tmp_path):
    thinking_processor().save_pretrained(tmp_path / "plain")
    assert "chat_template_kwargs" not in json.loads(
        (tmp_path / "plain" / "processor_config.json").read_text()
    )
    thinking_processor(chat_template_kwargs=OFF).save_pretrained(tmp_path / "off")
    processor = H2CProcessor.from_pretrained(tmp_path / "off")
    assert processor.chat_template_kwargs == OFF
    asked = user_turn("Who?")
    prompt = processor.decode(processor.apply_chat_template(asked)["input_ids"][0])
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    prompt = processor.decode(processor.apply_chat_template(asked, enable_thinking=True)["input_ids"][0])
    assert prompt.endswith("<|im_start|>assistant\n")
    example = encode_example(processor, asked, "It is I.")
    whole = processor.receiver_tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": "It is I."}], tokenize=False
    )
    assert processor.decode(example["input_ids"] + example["target_ids"]) == whole.rstrip("\n")


def test_data_encoded_with_other_variables_is_not_taken_from_the_cache(tmp_path):
    Dataset.from_list(QUESTIONS).to_parquet(tmp_path / "questions.parquet")
    source = DataSource(str(tmp_path / "questions.parquet"))
    with_block, without = (
        build_dataset([source], thinking_processor(chat_template_kwargs=given))[0][0]
        for given in ({"enable_thinking": True}, OFF)
    )
    assert len(without["target_ids"]) == 2 < len(with_block["target_ids"])


def test_a_variable_that_no_template_reads_is_refused():
    with pytest.raises(
        ValueError, match="has 'enabel_thinking', a variable that neither chat template reads"
    ):
        set_template_kwargs(thinking_processor(), {"enabel_thinking": False})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{enable", "is not JSON"),
        ("[1]", r"is \[1\]; expected a mapping"),
        ('{"tokenize": 1}', "has 'tokenize'"),
    ],
)
def test_what_are_no_variables_is_refused(given, message):
    with pytest.raises(ValueError, match=f"^chat_template_kwargs .*{message}"):
        read_template_kwargs(given)


def test_a_yaml_file_holds_them_as_a_mapping(folders, tmp_path):
    (tmp_path / "config.yaml").write_text("chat_template_kwargs:\n  enable_thinking: false\n")
    assert (
        parse([str(tmp_path / "config.yaml"), *training(folders)], "h2c train")[0].chat_template_kwargs == OFF
    )


def test_train_stores_the_switch_and_evaluate_reads_it(trained, tmp_path, capsys):
    assert json.loads((trained / "processor_config.json").read_text())["chat_template_kwargs"] == OFF
    ask = [
        "evaluate",
        f"--model={trained}",
        f"--data={trained.parent / 'questions.jsonl'}",
        f"--output_dir={tmp_path}",
    ]
    ask += ["--methods", "receiver", "h2c", "sharer", "zeros", "--timed_questions=0", "--examples=1"]
    assert main(ask) == 0
    assert main([*ask, '--chat_template_kwargs={"enable_thinking": true}']) == 2
    assert "--chat_template_kwargs '{\"enable_thinking\": false}'" in capsys.readouterr().err.splitlines()[-1]


def test_precompute_writes_the_prompts_that_train_reads(folders, tmp_path):
    states = f"--sharer_states={tmp_path / 'states'}"
    assert main(["precompute", *training(folders), SWITCH, states]) == 0
    assert any((tmp_path / "states").glob("*.safetensors"))
    assert main(["train", *training(folders), SWITCH, states, f"--output_dir={tmp_path / 'bridge'}"]) == 0


def test_chat_and_demo_load_with_the_switch(trained):
    assert opened(str(trained))[1].chat_template_kwargs == OFF
    assert opened(str(trained), chat_template_kwargs='{"enable_thinking": true}')[1].chat_template_kwargs == {
        "enable_thinking": True
    }


@torch.no_grad()
def test_lm_eval_renders_with_the_switch(trained):
    model, processor = H2CForCausalLM.from_pretrained(trained), H2CProcessor.from_pretrained(trained)
    processor.chat_template_kwargs = {}
    for given in (
        {"enable_thinking": False},
        {"chat_template_kwargs": json.dumps(OFF)},
        {"chat_template_args": OFF},
    ):
        lm = H2CLM((model, processor), "receiver", **given)
        context = lm.apply_chat_template(user_turn("Who?"))
        ids = encode(lm.tokenizer, context, lm.processor.chat_template_kwargs)
        assert lm.tokenizer.decode(ids).endswith("</think>\n\n") and processor.chat_template_kwargs == {}
        request = Instance(request_type="loglikelihood", doc={}, arguments=(context, "A"), idx=0)
        ((score, _),) = lm.loglikelihood([request], disable_tqdm=True)
        (target,) = lm.tokenizer("A", add_special_tokens=False)["input_ids"]
        assert score == pytest.approx(
            model.receiver(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[target].item(), abs=1e-4
        )
    arguments = with_model(["--tasks", "x", SWITCH])
    assert arguments[:5] == ["run", "--model", "h2c", "--tasks", "x"] and json.loads(arguments[-1]) == {
        "chat_template_kwargs": OFF
    }
    assert with_model(["--chat_template_kwargs", json.dumps(OFF), "--tasks", "x"])[-1] == arguments[-1]


def test_scores_with_the_switch_are_of_the_letters(trained):
    model, processor = H2CForCausalLM.from_pretrained(trained).eval(), H2CProcessor.from_pretrained(trained)
    scores = evaluate(model, processor, QUESTIONS, ["receiver"])["receiver"]["scores"]
    assert [len(row) for row in scores] == [3] * 6
