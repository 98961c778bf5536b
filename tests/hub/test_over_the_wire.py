"""Bridges over the wire: swapped on a loaded model, asked through the pipeline, held to trained commits."""

import json
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from h2c_hf.atlas import MODELS
from h2c_hf.cli import main
from h2c_hf.modeling import H2CBridgeConfig, H2CForCausalLM, H2CProcessor
from h2c_hf.pair import Pair
from h2c_hf.training.arguments import H2CArguments


ATLAS = Path(__file__).parents[2] / "hub_configs" / "atlas"
CONVERSATIONS = [
    [{"role": "user", "content": f"In which country is the city of {name}?"}]
    for name in ("Bensekrane", "Oslo")
]
OPTIONS = {"max_new_tokens": 8, "do_sample": False}

# The repo u/r has a bridge in main and another in dev; the private u/next has a third.
STRANGER = """
import json, os
from transformers import AutoModelForCausalLM, AutoProcessor, TextIteratorStreamer, pipeline

def refused(load, **kwargs):
    try:
        load(**kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def ask(**kwargs):
    pipe = pipeline("text-generation", model="u/r", trust_remote_code=True, **kwargs)
    answers = pipe(CONVERSATIONS, batch_size=2, return_full_text=False, **OPTIONS)
    return [rows[0]["generated_text"] for rows in answers]

found = {"pipeline": ask(), "pipeline of dev": ask(revision="dev", code_revision="main")}
found["pipeline again"] = ask(local_files_only=True)
found["pipeline in cache_dir"] = [
    ask(model_kwargs={"cache_dir": "second"}), os.path.isdir("second/models--u--r")
]
found["pipeline, wrong revision"] = refused(ask, revision="nowhere")

model = AutoModelForCausalLM.from_pretrained("u/r", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("u/r", trust_remote_code=True)
model.load_bridge("u/r", bridge_name="dev", revision="dev")
load = lambda **kwargs: model.load_bridge("u/next", bridge_name="next", **kwargs)
found["no token"] = refused(load, token=False, cache_dir="third")
found["empty cache"] = refused(load, cache_dir="third", local_files_only=True)
found["wrong revision"] = refused(load, revision="nowhere")
found["names"] = model.bridge_names
load(token="hf_u", cache_dir="third")
caches = ("third", os.environ["HF_HOME"] + "/hub")
found["caches of next"] = [os.path.isdir(f"{cache}/models--u--next") for cache in caches]
model.load_bridge("u/next", bridge_name="again", cache_dir="third", local_files_only=True)
inputs = processor.apply_chat_template(CONVERSATIONS)

def answers():
    new = model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1]:]
    return processor.batch_decode(new, skip_special_tokens=True)

for name in ("dev", "next", "again", "default"):
    model.set_bridge(name)
    found[name] = answers()
    found[f"dropout of {name}"] = model.config.dropout
with model.disable_bridge():
    found["disabled"] = answers()
model.set_bridge("next")
model.save_pretrained("saved")
processor.save_pretrained("saved")
print(json.dumps(found))
"""


def answers(model, processor) -> list[str]:
    inputs = processor.apply_chat_template(CONVERSATIONS)
    return processor.batch_decode(
        model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )


def scale(folder: Path, factor: float, **fields) -> None:
    """Make the bridge in a folder another one: what its blocks add is that of the Atlas bridge times
    `factor`; `fields` of its config."""
    config = json.loads((ATLAS / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    weights = load_file(ATLAS / "model.safetensors")
    weights["bridge.ffn_out.weight"] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_stranger_asks_through_the_pipeline_and_swaps_bridges(hub, online, bridge, fresh, atlas, tmp_path):
    assert main(["push", str(bridge), "u/r"]) == 0
    scale(bridge, -1, dropout=0.25)
    assert main(["push", str(bridge), "u/r", "--revision", "dev"]) == 0
    dev = H2CForCausalLM.from_pretrained(bridge)
    scale(bridge, 0.3)
    assert main(["push", str(bridge), "u/next", "--private"]) == 0
    following = H2CForCausalLM.from_pretrained(bridge)

    found = json.loads(
        fresh(f"CONVERSATIONS, OPTIONS = {CONVERSATIONS}, {OPTIONS}\n{STRANGER}").splitlines()[-1]
    )
    model, processor = H2CForCausalLM.from_pretrained(ATLAS), atlas[1]
    by_main, by_dev, by_next = (answers(each, processor) for each in (model, dev, following))
    with model.disable_bridge():
        alone = answers(model, processor)
    assert (
        by_main[0].strip() == "Algeria"
        and len({str(each) for each in (by_main, by_dev, by_next, alone)}) == 4
    )
    assert found["pipeline"] == found["pipeline again"] == found["default"] == by_main
    assert found["pipeline of dev"] == found["dev"] == by_dev
    assert found["pipeline in cache_dir"] == [by_main, True]
    assert found["next"] == found["again"] == by_next
    assert found["disabled"] == alone
    assert found["names"] == ["default", "dev"] and found["caches of next"] == [True, False]
    assert [found[f"dropout of {name}"] for name in ("default", "dev", "next")] == [0.0, 0.25, 0.0]
    assert "OSError" in found["no token"] and "OSError" in found["empty cache"]
    assert "nowhere" in found["wrong revision"] and "nowhere" in found["pipeline, wrong revision"]

    offline = f"""
import json
from transformers import pipeline
pipe = pipeline("text-generation", model="u/r", trust_remote_code=True)
pipe.model.load_bridge("u/r", bridge_name="dev", revision="dev")
pipe.model.set_bridge("dev")
answers = pipe({CONVERSATIONS}, return_full_text=False, **{OPTIONS})
print(json.dumps([rows[0]["generated_text"] for rows in answers]))
"""
    asked = len(hub.requests)
    assert json.loads(fresh(offline, HF_HUB_OFFLINE="1").splitlines()[-1]) == by_dev
    assert len(hub.requests) == asked

    saved = tmp_path / "elsewhere" / "saved"
    again = H2CForCausalLM.from_pretrained(saved, sharer=model.sharer, receiver=model.receiver)
    assert answers(again, H2CProcessor.from_pretrained(saved)) == by_next
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (saved, ATLAS))
    assert (
        config["auto_map"] == expected["auto_map"]
        and config["custom_pipelines"] == expected["custom_pipelines"]
    )


# The base models' commits


@pytest.fixture
def bases(online) -> dict[str, str]:
    """The commits of u/sharer and u/receiver."""
    for role in ("sharer", "receiver"):
        online.create_repo(f"u/{role}")
        online.upload_folder(repo_id=f"u/{role}", folder_path=MODELS / role)
    return {role: online.model_info(f"u/{role}").sha for role in ("sharer", "receiver")}


def test_a_bridge_is_pinned_to_the_commits_that_it_was_trained_on(online, bases, tmp_path, atlas):
    model = H2CForCausalLM.from_pair("u/sharer", "u/receiver")
    to_train = Pair(H2CArguments(sharer="u/sharer", receiver="u/receiver")).bridge_config()
    for config in (model.config, to_train):
        assert (config.sharer_model_id, config.receiver_model_id) == ("u/sharer", "u/receiver")
        assert {"sharer": config.sharer_revision, "receiver": config.receiver_revision} == bases
    model.save_pretrained(tmp_path / "pinned")
    atlas[1].save_pretrained(tmp_path / "pinned")
    assert main(["push", str(tmp_path / "pinned"), "u/pinned"]) == 0
    assert H2CBridgeConfig.from_pretrained("u/pinned").sharer_revision == bases["sharer"]

    online.upload_file(path_or_fileobj=b"later", path_in_repo="NEWS.txt", repo_id="u/sharer")
    later = online.model_info("u/sharer").sha
    assert later != bases["sharer"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pinned = H2CForCausalLM.from_pretrained("u/pinned", strict_revisions=True)
    assert {role: getattr(pinned, role).config._commit_hash for role in bases} == bases
    message = f"The sharer is at revision {later}; this bridge was trained on {bases['sharer']}"
    with pytest.warns(UserWarning, match=message):
        moved = H2CForCausalLM.from_pretrained("u/pinned", sharer_kwargs={"revision": "main"})
    assert moved.sharer.config._commit_hash == later
    with pytest.raises(ValueError, match=message):
        H2CForCausalLM.from_pretrained("u/pinned", sharer_kwargs={"revision": "main"}, strict_revisions=True)
    with pytest.warns(UserWarning, match=message):
        moved.load_bridge("u/pinned", "pinned")
    with pytest.raises(ValueError, match=message):
        moved.load_bridge("u/pinned", "strict", strict_revisions=True)
