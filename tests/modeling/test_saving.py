import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from pairs import join, random_inputs, tiny_model, tiny_processor
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from h2c_hf.modeling import H2CBridgeModel, H2CForCausalLM, H2CTextGenerationPipeline


REMOTE_CODE = {
    "configuration_h2c.py", "base_models_h2c.py", "inputs_h2c.py", "loss_h2c.py", "modeling_h2c_bridge.py",
    "bridges_h2c.py", "conversation_h2c.py", "drafts_h2c.py", "families_h2c.py", "folders_h2c.py",
    "generation_h2c.py", "loading_h2c.py", "messages_h2c.py", "passes_h2c.py", "prefixes_h2c.py",
    "layers_h2c.py", "message_h2c.py", "reading_h2c.py", "stock_h2c.py", "weights_h2c.py",
    "modeling_h2c.py", "processing_h2c.py", "pipeline_h2c.py",
}  # fmt: skip
OPTIONS = {"max_new_tokens": 5, "do_sample": False}
CONVERSATIONS = [[{"role": "user", "content": "Which river?"}], [{"role": "user", "content": "Where?"}]]

# Run by a fresh interpreter in which this package cannot be imported. Each Auto class reads a repo of its
# own, so that what one of them fetched is not there for the next.
FRESH = """
import json, sys
sys.modules["h2c_hf"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, pipeline

sharer = AutoModelForCausalLM.from_pretrained("by_causal_lm/sharer")
receiver = AutoModelForCausalLM.from_pretrained("by_causal_lm/receiver")
loaded = {
    "config": AutoConfig.from_pretrained("by_config", trust_remote_code=True),
    "bridge": AutoModel.from_pretrained("by_model", trust_remote_code=True),
    "causal_lm": AutoModelForCausalLM.from_pretrained("by_causal_lm", trust_remote_code=True),
    "processor": AutoProcessor.from_pretrained("by_processor", trust_remote_code=True),
    "pipeline": pipeline("text-generation", model="by_pipeline", trust_remote_code=True),
}
for name, thing in loaded.items():
    thing.save_pretrained(f"again/{name}")
    assert type(thing).__module__.startswith("transformers_modules."), type(thing)
conversations = json.loads(sys.argv[1])
inputs, model = loaded["processor"].apply_chat_template(conversations), loaded["causal_lm"]
joined = type(model).from_pair(sharer, receiver, loaded["bridge"])
with torch.no_grad():
    torch.save({
        "inputs": dict(inputs), "logits": model(**inputs).logits, "joined": joined(**inputs).logits,
        "tokens": model.generate(**inputs, **json.loads(sys.argv[2])), "default": model.generate(**inputs),
        "answers": loaded["pipeline"](conversations, batch_size=2, **json.loads(sys.argv[2])),
        "training": [model.training, loaded["bridge"].training],
        "classes": {k: type(v).__name__ for k, v in loaded.items()},
    }, "outputs.pt")
"""


def run_fresh(folder, *arguments):
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder / "modules"),
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", FRESH, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(folder / "outputs.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a pair's repo, both base models inside, as four copies; the pair, its processor, and what
    a fresh process got out of the copies."""
    folder, processor = tmp_path_factory.mktemp("saved"), tiny_processor()
    sizes = [len(tokenizer) for tokenizer in (processor.sharer_tokenizer, processor.receiver_tokenizer)]
    model = join(tiny_model("llama", 1, vocab_size=sizes[0]), tiny_model("qwen2", 2, vocab_size=sizes[1]))
    model.config.sharer_model_id, model.config.receiver_model_id = "./sharer", "./receiver"
    model.generation_config.max_new_tokens = 3
    repo = folder / "repo"
    model.save_pretrained(repo)
    processor.save_pretrained(repo)
    files = {str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_file()}
    model.sharer.save_pretrained(repo / "sharer")
    model.receiver.save_pretrained(repo / "receiver")
    for name in ("by_config", "by_model", "by_causal_lm", "by_processor", "by_pipeline"):
        shutil.copytree(repo, folder / name)
    return folder, model, processor, files, run_fresh(folder, json.dumps(CONVERSATIONS), json.dumps(OPTIONS))


def test_what_is_written_is_the_bridge_its_config_its_code_and_the_processor(saved):
    folder, model, _, files, _ = saved
    assert files >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        *REMOTE_CODE,
    }
    rest = (
        files
        - REMOTE_CODE
        - {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"}
    )
    # What AutoTokenizer reads.
    of_receiver = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {name.split("/")[0] for name in rest} == {"sharer_tokenizer", "receiver_tokenizer", *of_receiver}
    weights = load_file(folder / "repo" / "model.safetensors")
    assert weights.keys() == {f"bridge.{name}" for name in model.bridge.state_dict()}
    assert set(json.loads((folder / "repo" / "config.json").read_text())["auto_map"]) == {
        "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor"
    }  # fmt: skip


def test_a_fresh_process_without_the_package_gives_the_same_to_the_bit(saved):
    _, model, processor, _, fresh = saved
    inputs = processor.apply_chat_template(CONVERSATIONS)
    assert all(torch.equal(inputs[name], fresh["inputs"][name]) for name in inputs)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.equal(fresh["logits"], logits) and torch.equal(fresh["joined"], logits)
    assert torch.equal(fresh["tokens"], model.generate(**inputs, **OPTIONS))
    assert fresh["default"].shape[1] == inputs["input_ids"].shape[1] + 3, (
        "the generation config is saved and read"
    )
    pipe = H2CTextGenerationPipeline(model=model, processor=processor)
    assert fresh["answers"] == pipe(CONVERSATIONS, **OPTIONS)
    assert fresh["training"] == [False, False]
    assert fresh["classes"] == {
        "config": "H2CBridgeConfig", "bridge": "H2CBridgeModel", "causal_lm": "H2CForCausalLM",
        "processor": "H2CProcessor", "pipeline": "H2CTextGenerationPipeline",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["config", "bridge", "causal_lm", "pipeline"])
def test_saving_again_from_there_writes_the_code_again(saved, name):
    folder, _, _, _, _ = saved
    again = folder / "again" / name
    for file in REMOTE_CODE:
        assert (again / file).read_text() == (folder / "repo" / file).read_text()
    config, expected = (json.loads((path / "config.json").read_text()) for path in (again, folder / "repo"))
    assert (
        config["auto_map"] == expected["auto_map"]
        and config["custom_pipelines"] == expected["custom_pipelines"]
    )


@pytest.mark.parametrize("name", ["bridge", "causal_lm", "pipeline"])
def test_what_was_saved_again_loads_with_the_same_weights(saved, name):
    folder, model, _, _, _ = saved
    bridge = H2CBridgeModel.from_pretrained(folder / "again" / name)
    assert all(
        torch.equal(tensor, model.bridge.state_dict()[key]) for key, tensor in bridge.state_dict().items()
    )
    assert len(load_file(folder / "again" / name / "model.safetensors")) == len(model.bridge.state_dict())


@pytest.mark.parametrize("name", ["processor", "pipeline"])
def test_the_processor_is_saved_again_with_its_code(saved, name):
    again = saved[0] / "again" / name
    assert (again / "processing_h2c.py").exists() and (again / "processor_config.json").exists()
    assert (again / "sharer_tokenizer" / "tokenizer.json").exists()


def small(**config):
    return join(tiny_model("llama", 1), tiny_model("qwen2", 2), **config)


def test_the_bridge_alone_and_the_composite_load_from_either_file(tmp_path):
    model, inputs = small(), random_inputs(0)
    model.save_pretrained(tmp_path / "composite")
    model.bridge.save_pretrained(tmp_path / "bridge")
    with torch.no_grad():
        expected = model(**inputs).logits
        for name in ("composite", "bridge"):
            bridge = H2CBridgeModel.from_pretrained(tmp_path / name)
            assert torch.equal(
                H2CForCausalLM.from_pair(model.sharer, model.receiver, bridge)(**inputs).logits, expected
            )
            loaded = H2CForCausalLM.from_pretrained(
                tmp_path / name, sharer=model.sharer, receiver=model.receiver
            )
            assert torch.equal(loaded(**inputs).logits, expected)
            assert not loaded.training


def test_loading_info(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    models = {"sharer": model.sharer, "receiver": model.receiver}
    loaded, info = H2CForCausalLM.from_pretrained(tmp_path, **models, output_loading_info=True)
    assert isinstance(loaded, H2CForCausalLM) and not info["missing_keys"] and not info["unexpected_keys"]


def test_base_models_by_id_and_the_arguments_for_them(tmp_path):
    model, inputs = small(), random_inputs(0)
    for role in ("sharer", "receiver"):
        getattr(model, role).save_pretrained(tmp_path / role)
    pair = H2CForCausalLM.from_pair(str(tmp_path / "sharer"), str(tmp_path / "receiver"), model.bridge)
    fresh = H2CForCausalLM.from_pair(
        str(tmp_path / "sharer"), str(tmp_path / "receiver"), bridge_form="rewrite"
    )
    assert fresh.config.sharer_model_id == str(tmp_path / "sharer") and fresh.config.receiver_model_id == str(
        tmp_path / "receiver"
    )
    fresh.save_pretrained(tmp_path / "bridge")
    with torch.no_grad():
        assert torch.equal(pair(**inputs).logits, model(**inputs).logits)

    loaded = H2CForCausalLM.from_pretrained(
        tmp_path / "bridge",
        attn_implementation="eager",
        sharer_kwargs={"dtype": torch.bfloat16, "attn_implementation": "sdpa"},
    )
    assert (loaded.sharer.dtype, loaded.bridge.dtype, loaded.receiver.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert (
        loaded.sharer.config._attn_implementation == "sdpa"
        and loaded.receiver.config._attn_implementation == "eager"
    )
    halved = H2CForCausalLM.from_pretrained(tmp_path / "bridge", dtype=torch.bfloat16)
    assert halved.sharer.dtype == halved.bridge.dtype == halved.receiver.dtype == torch.bfloat16
    assert halved.bridge.gate.dtype == torch.float32


def test_a_given_folder_is_relative_to_here_and_not_to_the_bridge(tmp_path, monkeypatch):
    model = small()
    model.config.sharer_revision = "aaaa"  # of another model than the one given below
    model.save_pretrained(tmp_path / "bridge")
    model.sharer.save_pretrained(tmp_path / "own_sharer")
    monkeypatch.chdir(tmp_path)
    loaded = H2CForCausalLM.from_pretrained("bridge", sharer="./own_sharer", receiver=model.receiver)
    assert torch.equal(loaded.sharer.lm_head.weight, model.sharer.lm_head.weight)


def test_a_bridge_in_a_subfolder_finds_its_base_models_beside_its_config(tmp_path):
    model = small()
    model.config.sharer_model_id, model.config.receiver_model_id = "./sharer", "./receiver"
    model.generation_config.max_new_tokens = 9
    model.save_pretrained(tmp_path / "best")
    model.sharer.save_pretrained(tmp_path / "best" / "sharer")
    model.receiver.save_pretrained(tmp_path / "best" / "receiver")
    loaded = H2CForCausalLM.from_pretrained(tmp_path, subfolder="best")
    assert torch.equal(loaded.receiver.lm_head.weight, model.receiver.lm_head.weight)
    assert loaded.generation_config.max_new_tokens == 9


def test_the_recorded_revision_is_what_is_asked_for():
    config = small().config
    config.sharer_model_id, config.sharer_revision = "someone/model", "aaaa"
    repo = {"revision": "main", "subfolder": "", "token": None}
    assert config.locate("sharer", "bridge", repo, {"dtype": "auto"}) == (
        "someone/model",
        {"revision": "aaaa", "dtype": "auto"},
    )
    assert config.locate("sharer", "bridge", repo, {"revision": "b"})[1] == {"revision": "b"}
    config.sharer_model_id = "./sharer"
    assert config.locate("sharer", "bridge", repo, {}) == (
        "bridge",
        {"revision": "main", "subfolder": "sharer"},
    )


def test_the_base_models_are_no_part_of_a_state_that_is_passed_in(tmp_path):
    model = small()
    model.save_pretrained(tmp_path, state_dict=model.state_dict())  # as the Trainer does
    assert {name.split(".")[0] for name in load_file(tmp_path / "model.safetensors")} == {"bridge"}


def test_tied_base_models_leave_no_trace(tmp_path):
    sharer = tiny_model("llama", 1, tie_word_embeddings=True)
    receiver = tiny_model("gemma2", 2, tie_word_embeddings=True, head_dim=8)
    join(sharer, receiver).save_pretrained(tmp_path)
    assert {name.split(".")[0] for name in load_file(tmp_path / "model.safetensors")} == {"bridge"}
    model = H2CForCausalLM.from_pretrained(tmp_path, sharer=sharer, receiver=receiver)
    assert model.receiver.lm_head.weight is model.receiver.model.embed_tokens.weight


def test_a_base_model_in_place_of_a_bridge_is_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError):
        H2CBridgeModel.from_pretrained(tmp_path)


@pytest.fixture
def by_id(tmp_path):
    """The folder of a bridge whose config names both base models, and the pair."""
    model = small()
    for role in ("sharer", "receiver"):
        getattr(model, role).save_pretrained(tmp_path / role)
        setattr(model.config, f"{role}_model_id", str(tmp_path / role))
    model.save_pretrained(tmp_path / "bridge")
    return tmp_path / "bridge", model


def test_the_older_name_of_dtype_is_for_all_three(by_id):
    loaded = H2CForCausalLM.from_pretrained(by_id[0], torch_dtype=torch.bfloat16)
    assert loaded.sharer.dtype == loaded.bridge.dtype == loaded.receiver.dtype == torch.bfloat16
    with pytest.raises(
        ValueError, match=r"Got dtype=torch.float32 and torch_dtype=torch.bfloat16; expected one"
    ):
        H2CForCausalLM.from_pretrained(by_id[0], dtype=torch.float32, torch_dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match="dtype is {.*}; expected one for all three models, or sharer_kwargs="
    ):
        H2CForCausalLM.from_pretrained(by_id[0], dtype={"sharer": torch.bfloat16})


@pytest.mark.parametrize(
    "asked, found",
    [("eager", ("eager", "eager")), ({"sharer": "eager"}, ("eager", "sdpa")), (None, ("sdpa", "sdpa"))],
)
def test_an_auto_class_hands_the_attention_on(by_id, asked, found):
    loaded = AutoModelForCausalLM.from_pretrained(by_id[0], attn_implementation=asked, trust_remote_code=True)
    assert (
        tuple(getattr(loaded, role).config._attn_implementation for role in ("sharer", "receiver")) == found
    )
    loaded.config.to_json_string()


@pytest.mark.parametrize(
    "argument", [{"load_in_4bit": True}, {"tp_plan": "auto"}, {"gguf_file": "x.gguf"}, {"adapter_name": "x"}]
)
def test_arguments_for_one_model_are_refused(by_id, argument):
    with pytest.raises(
        ValueError,
        match=f"{next(iter(argument))} is for a whole model, and these are three; use sharer_kwargs=",
    ):
        H2CForCausalLM.from_pretrained(by_id[0], **argument)


def test_a_given_generation_config_is_the_models(by_id):
    loaded = H2CForCausalLM.from_pretrained(by_id[0], generation_config=GenerationConfig(max_new_tokens=3))
    assert loaded.generation_config.max_new_tokens == 3
    inputs = random_inputs(0)
    assert loaded.generate(**inputs).shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.filterwarnings("ignore")
def test_models_on_disk_answer_as_in_memory(by_id, tmp_path):
    folder, model = by_id
    inputs = random_inputs(0)
    loaded = H2CForCausalLM.from_pretrained(
        folder, device_map={"": "disk"}, offload_folder=str(tmp_path / "offloaded")
    )
    assert (
        loaded.receiver.device.type == loaded.sharer.device.type == "meta"
        and loaded.bridge.device.type == "cpu"
    )
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))
    assert loaded.hf_device_map["sharer"] == "disk" and not hasattr(model, "hf_device_map")
    assert sorted(path.name for path in (tmp_path / "offloaded").iterdir()) == ["receiver", "sharer"]
    # Bytes.
    room = {"device_map": "auto", "max_memory": {"cpu": 40_000}, "offload_folder": str(tmp_path / "more")}
    assert {
        str(place) for place in H2CForCausalLM.from_pretrained(folder, **room).hf_device_map.values()
    } == {"cpu", "disk"}


def test_a_bridge_is_never_split(by_id, tmp_path):
    # Less than its weights take.
    room = {"max_memory": {"cpu": 20_000}, "offload_folder": str(tmp_path / "offloaded")}
    bridge = H2CBridgeModel.from_pretrained(by_id[0], device_map="auto", **room)
    model = by_id[1]
    with torch.no_grad():
        again = H2CForCausalLM.from_pair(model.sharer, model.receiver, bridge)
        assert torch.equal(again(**random_inputs(0)).logits, model(**random_inputs(0)).logits)


def test_models_in_the_bridges_own_repo_are_copied_along(tmp_path):
    model, inputs = small(), random_inputs(0)
    for role in ("sharer", "receiver"):
        getattr(model, role).save_pretrained(tmp_path / role)
    model.config.sharer_model_id, model.config.receiver_model_id = "./sharer", "./receiver"
    model.save_pretrained(tmp_path)
    expected = model.generate(**inputs, max_new_tokens=8)
    H2CForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "composite")
    H2CBridgeModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "bridge")
    for name in ("composite", "bridge"):
        assert torch.equal(
            H2CForCausalLM.from_pretrained(tmp_path / name).generate(**inputs, max_new_tokens=8), expected
        )


def test_saving_says_which_models_are_not_there(tmp_path):
    model = small()
    model.config.sharer_model_id = "./sharer"
    with pytest.warns(
        UserWarning, match="sharer_model_id is './sharer', and there is no folder sharer to copy into"
    ):
        model.save_pretrained(tmp_path)
