"""`h2c_hf.loading`: base models from folders and GGUF files, chat templates, and ids in a bridge's config."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from ggufs import SHAPE, write_gguf
from pairs import byte_tokenizer, join, tiny_model, tiny_processor

from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.sources import DataSource
from h2c_hf.loading import FETCHED, ORIGIN, PLAIN, BaseModel, load_pair, set_chat_template
from h2c_hf.modeling import H2CBridgeConfig, H2CForCausalLM, H2CProcessor
from h2c_hf.pair import Pair
from h2c_hf.prompts import answer_ids, letter_ids, user_turn
from h2c_hf.training.arguments import H2CArguments


IDS = torch.arange(3, 11)[None]


@pytest.fixture
def llama():
    return tiny_model("llama", 3, **SHAPE)


@pytest.fixture
def pair_folder(tmp_path, llama) -> Path:
    """A folder with a Sharer as `sharer/tiny.gguf` and a Receiver as `receiver`."""
    (tmp_path / "sharer").mkdir()
    write_gguf(tmp_path / "sharer" / "tiny.gguf", llama)
    processor = tiny_processor()
    tiny_model("qwen2", 4, vocab_size=len(processor.receiver_tokenizer)).save_pretrained(
        tmp_path / "receiver"
    )
    processor.receiver_tokenizer.save_pretrained(tmp_path / "receiver")
    return tmp_path


def test_a_gguf_file_has_the_model_that_was_written(pair_folder, llama):
    base = BaseModel.find(str(pair_folder / "sharer" / "tiny.gguf"), "sharer")
    assert (base.path, base.gguf_file) == (str(pair_folder / "sharer"), "tiny.gguf")
    assert base.config().hidden_size == 32
    torch.testing.assert_close(base.model(dtype="auto")(IDS).logits, llama(IDS).logits)


def test_a_quantized_gguf_file_is_dequantized(tmp_path, llama):
    model = BaseModel.find(str(write_gguf(tmp_path / "tiny.gguf", llama, quantized=True)), "sharer").model(
        dtype=torch.bfloat16
    )
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert type(weight) is torch.nn.Parameter and weight.dtype == torch.bfloat16
    original = llama.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(weight.float(), original.bfloat16().float())  # it was quantized
    torch.testing.assert_close(weight.float(), original, atol=0.01, rtol=0.01)


def test_the_tokenizer_of_a_gguf_file_splits_digits(pair_folder):
    tokenizer = BaseModel.find(str(pair_folder / "sharer"), "sharer", gguf_file="tiny.gguf").tokenizer()
    assert tokenizer("a  1").tokens() == ["a", "ĠĠ", "1"]  # GPT-2's own rule leaves a space with the digit
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"


def test_a_bridge_stores_its_gguf_file_and_loads_it_again(pair_folder):
    arguments = H2CArguments(
        sharer=str(pair_folder / "sharer" / "tiny.gguf"), receiver=str(pair_folder / "receiver")
    )
    model = Pair(arguments).model(torch.device("cpu")).eval()
    with pytest.warns(UserWarning, match="sharer_model_id is the folder"):
        model.save_pretrained(pair_folder / "bridge")
    config = H2CBridgeConfig.from_pretrained(pair_folder / "bridge")
    assert (config.sharer_model_id, config.sharer_gguf_file) == (str(pair_folder / "sharer"), "tiny.gguf")
    assert config.receiver_gguf_file is None
    loaded = H2CForCausalLM.from_pretrained(pair_folder / "bridge")
    inputs = {"input_ids": IDS, "sharer_input_ids": IDS}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_a_file_of_that_name_in_the_working_directory_is_not_loaded(
    pair_folder, llama, monkeypatch, tmp_path_factory
):
    other = tmp_path_factory.mktemp("other")
    write_gguf(other / "tiny.gguf", tiny_model("llama", 9, **SHAPE))
    monkeypatch.chdir(other)
    model = BaseModel.find(str(pair_folder / "sharer"), "sharer", gguf_file="tiny.gguf").model(dtype="auto")
    torch.testing.assert_close(model(IDS).logits, llama(IDS).logits)


@pytest.mark.parametrize("name", ["../tiny.gguf", "/etc/tiny.gguf", "a/../../tiny.gguf", "C:\\tiny.gguf"])
def test_a_config_cannot_name_a_gguf_file_elsewhere(name):
    config = H2CBridgeConfig(sharer_model_id="u/sharer", sharer_gguf_file=name)
    with pytest.raises(ValueError, match="sharer_gguf_file is .*; expected the name of a file in u/sharer"):
        config.locate("sharer", "u/bridge", {}, {})


def test_gguf_files_that_cannot_be_are_refused(pair_folder):
    with pytest.raises(ValueError, match="expected a file in .*sharer, which holds none of this name"):
        BaseModel.find(str(pair_folder / "sharer"), "sharer", gguf_file="other.gguf")
    with pytest.raises(
        ValueError, match=r"quantization is 'nf4' and the weights are in tiny.gguf; expected 'none'"
    ):
        BaseModel.find(str(pair_folder / "sharer" / "tiny.gguf"), "sharer").model("nf4")
    with pytest.raises(
        ValueError, match=r"sharer is the file .*config.json'; expected a Hub id, a folder, or one .gguf file"
    ):
        BaseModel.find(str(pair_folder / "receiver" / "config.json"), "sharer")
    with pytest.raises(ValueError, match=r"sharer is '\./nowhere', and there is no such folder"):
        BaseModel.find("./nowhere", "sharer")


# Where a bridge's config says its base models are


def test_a_relative_folder_is_stored_as_an_absolute_path(pair_folder, monkeypatch):
    monkeypatch.chdir(pair_folder)
    tiny_model("llama").save_pretrained("llama")
    expected = str(pair_folder / "llama"), str(pair_folder / "receiver")
    config = Pair(H2CArguments(sharer="llama", receiver="receiver")).bridge_config()
    assert (config.sharer_model_id, config.receiver_model_id) == expected
    config = H2CForCausalLM.from_pair("llama", "receiver").config
    assert (config.sharer_model_id, config.receiver_model_id) == expected


def test_saving_warns_of_base_models_that_a_copy_will_lack(tmp_path):
    with pytest.warns(UserWarning, match="names no receiver_model_id: loading it needs receiver=MODEL_OR_ID"):
        H2CBridgeConfig(sharer_model_id="u/sharer").save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        H2CBridgeConfig(sharer_model_id="u/sharer", receiver_model_id="receiver").save_pretrained(tmp_path)


@pytest.fixture
def fetched(tmp_path, monkeypatch) -> Path:
    """The cache of `h2c models fetch`, with a tiny model as its gemma-3-270m, from commit `aaaa`."""
    monkeypatch.setenv("H2C_MODELS_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "gemma-3-270m"
    tiny_model("llama", 5).save_pretrained(folder)
    (folder / ORIGIN).write_text(
        json.dumps({"model_id": "google/gemma-3-270m", "revision": "aaaa", "source": "hub"})
    )
    return folder


def test_a_fetched_model_is_stored_under_its_hub_id(fetched, monkeypatch):
    monkeypatch.chdir(fetched.parent)
    for name in ("gemma-3-270m", "google/gemma-3-270m", str(fetched)):
        base = BaseModel.find(name, "sharer")
        assert (base.path, base.model_id) == (str(fetched), "google/gemma-3-270m")
        config = H2CBridgeConfig.from_pair(base.config(), base.config(), **base.fields("sharer"))
        assert (config.sharer_model_id, config.sharer_revision) == ("google/gemma-3-270m", "aaaa")


def test_a_fetched_model_does_not_stand_for_another_revision(fetched):
    assert BaseModel.find("google/gemma-3-270m", "sharer", "aaaa").path == str(fetched)
    assert BaseModel.find("google/gemma-3-270m", "sharer", "bbbb").path == "google/gemma-3-270m"


def test_a_known_model_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("H2C_MODELS_DIR", str(tmp_path))
    for name in FETCHED:
        with pytest.raises(ValueError, match=f"fetch it with: h2c models fetch {name}"):
            BaseModel.find(name, "receiver")


def test_a_bridge_that_names_a_hub_id_loads_the_fetched_model(fetched, tmp_path):
    sharer, receiver = tiny_model("llama", 5), tiny_model("qwen2", 6)
    receiver.save_pretrained(tmp_path / "receiver")
    model = join(
        sharer, receiver, sharer_model_id="google/gemma-3-270m", receiver_model_id=str(tmp_path / "receiver")
    )
    model.save_pretrained(tmp_path / "bridge")
    tiny_processor().save_pretrained(tmp_path / "bridge")
    loaded, _ = load_pair(str(tmp_path / "bridge"))
    inputs = {"input_ids": IDS, "sharer_input_ids": IDS}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert (
        loaded.sharer.config._commit_hash == "aaaa" and loaded.config.sharer_model_id == "google/gemma-3-270m"
    )


# Base models without a chat template


def base_tokenizer(bos: str | None = "<bos>"):
    """A tokenizer without a chat template and without a pad token; `bos` is put in front of every text."""
    return byte_tokenizer(["<bos>", "<eos>"], bos=bos, eos_token="<eos>")


def test_the_plain_template_writes_a_question_and_its_answer():
    tokenizer = set_chat_template(base_tokenizer(), "plain")
    chat = [*user_turn("Who?"), {"role": "assistant", "content": "Ann"}, *user_turn("Why?")]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<bos>Who?\nAnswer: Ann\n\nWhy?\nAnswer:"
    assert tokenizer.decode(answer_ids(tokenizer, user_turn("Who?"), "Ann")) == " Ann<eos>"
    assert tokenizer.decode(answer_ids(tokenizer, user_turn("Who?"), "Ann", ended=False)) == " Ann"
    assert (
        set_chat_template(base_tokenizer(bos=None), "plain").apply_chat_template(chat[:1], tokenize=False)
        == "Who?"
    )


def test_letters_after_the_plain_template_are_single_tokens():
    tokenizer = set_chat_template(base_tokenizer(), "plain")
    tokenizer.add_tokens([" A", " B", " C", " D"])
    assert tokenizer.convert_ids_to_tokens(letter_ids(tokenizer, user_turn("Who?"))) == [
        " A",
        " B",
        " C",
        " D",
    ]


def test_saved_plain_templates_are_known_by_their_words():
    """`sharer_text` cuts a base model's text after its first line where the template holds `PLAIN`."""
    shipped = Path(__file__).parents[1] / "hub_configs" / "gemma-3-270m_to_smollm2-135m" / "sharer_tokenizer"
    assert PLAIN in (shipped / "chat_template.jinja").read_text()


def spaced_tokenizer(content: str = "message['content']"):
    """A tokenizer of which the own template writes `content` for each turn, with "spaced" asked for."""
    tokenizer = base_tokenizer(bos=None)
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}]{{ " + content + " }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return set_chat_template(tokenizer, "spaced")


def test_the_spaced_template_is_the_own_one_with_a_space_before_every_answer():
    tokenizer = spaced_tokenizer()
    chat = [*user_turn("Who?"), {"role": "assistant", "content": "Ann"}, *user_turn("Why?")]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "[user]Who?[assistant] Ann[user]Why?[assistant]"
    assert chat[1]["content"] == "Ann"
    generated = [chat[0], {**chat[1], "content": " Ann"}, chat[2]]
    assert tokenizer.apply_chat_template(generated, tokenize=False, add_generation_prompt=True) == text
    for ended in (True, False):
        assert tokenizer.decode(answer_ids(tokenizer, chat, "So", ended)) == " So"
    before = tokenizer.chat_template
    assert set_chat_template(tokenizer, "spaced").chat_template == before  # not twice


@pytest.mark.parametrize(
    ("tokenizer", "told"),
    [
        (lambda: set_chat_template(base_tokenizer(), "spaced"), "has none"),
        (lambda: spaced_tokenizer("message['content'] | trim"), "has one that takes it away"),
    ],
)
def test_a_template_that_cannot_be_spaced_is_refused(tokenizer, told):
    with pytest.raises(ValueError, match=f"{told}; expected a Jinja file"):
        tokenizer()


def test_a_chat_template_is_a_file_or_a_known_name(tmp_path):
    (tmp_path / "template.jinja").write_text("{{ messages[0]['content'] }}!")
    tokenizer = set_chat_template(base_tokenizer(), str(tmp_path / "template.jinja"))
    assert tokenizer.apply_chat_template(user_turn("Who?"), tokenize=False) == "Who?!"
    with pytest.raises(
        ValueError, match="There is no chat template 'plian'; expected a Jinja file, or one of plain"
    ):
        set_chat_template(base_tokenizer(), "plian")


def test_a_given_template_is_saved_with_the_processor(pair_folder):
    base_tokenizer().save_pretrained(pair_folder / "base")
    tiny_model("llama", vocab_size=len(base_tokenizer())).save_pretrained(pair_folder / "base")
    arguments = H2CArguments(
        sharer=str(pair_folder / "base"), receiver=str(pair_folder / "receiver"), sharer_chat_template="plain"
    )
    Pair(arguments).processor().save_pretrained(pair_folder / "bridge")
    processor = H2CProcessor.from_pretrained(pair_folder / "bridge")
    assert (
        processor.apply_chat_template(user_turn("Who?"), tokenize=False)["sharer_text"]
        == "<bos>Who?\nAnswer:"
    )


def test_plain_rows_need_no_template(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "The capital of France is", "completion": " Paris"}) + "\n")
    chatting, plain = tiny_processor().receiver_tokenizer, base_tokenizer()
    for receiver, prompt, target in (
        (base_tokenizer(bos=None), "The capital of France is", " Paris<eos>"),
        (
            chatting,
            "<|im_start|>user\nThe capital of France is<|im_end|>\n<|im_start|>assistant\n",
            " Paris<|im_end|>",
        ),
    ):
        processor = H2CProcessor(plain, receiver)
        data, _, _ = build_dataset([DataSource(str(rows))], processor)
        assert plain.decode(data[0]["sharer_input_ids"]) == "<bos>The capital of France is"
        assert receiver.decode(data[0]["input_ids"]) == prompt
        assert receiver.decode(data[0]["target_ids"]) == target
    # Generation reads the same.
    generated = H2CProcessor(plain, base_tokenizer(bos=None))("The capital of France is")
    data, _, _ = build_dataset([DataSource(str(rows))], H2CProcessor(plain, base_tokenizer(bos=None)))
    assert generated["input_ids"][0].tolist() == data[0]["input_ids"]
    assert generated["sharer_input_ids"][0].tolist() == data[0]["sharer_input_ids"]


def test_conversations_without_a_template_name_the_way_out(tmp_path):
    processor = H2CProcessor(base_tokenizer(), tiny_processor().receiver_tokenizer)
    with pytest.raises(ValueError, match="Commands take --sharer_chat_template: a Jinja file, or 'plain'"):
        processor.apply_chat_template(user_turn("Who?"))


def test_no_pad_token_is_needed_to_batch_and_generate():
    processor = H2CProcessor(*(set_chat_template(base_tokenizer(), "plain") for _ in range(2)))
    size = len(processor.receiver_tokenizer)
    model = join(
        tiny_model("llama", 1, vocab_size=size, pad_token_id=None),
        tiny_model("qwen2", 2, vocab_size=size, pad_token_id=None),
    )
    questions = [user_turn("Who?"), user_turn("Where does she live?")]
    both = model.generate(**processor.apply_chat_template(questions), max_new_tokens=5, do_sample=False)
    for row, question in zip(both, questions, strict=True):
        single = processor.apply_chat_template(question)
        alone = model.generate(**single, max_new_tokens=5, do_sample=False)
        assert row[-5:].tolist() == alone[0, -5:].tolist()


def test_a_device_map_puts_the_models_and_the_bridge_there():
    model, _ = load_pair("atlas", device_map={"": torch.device("cpu")})
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
