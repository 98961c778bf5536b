"""Forty mistakes: each is told in one sentence that names it, with the next step, and exit status 2."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from h2c_hf.cli import main


ROOT = Path(__file__).parent.parent
ATLAS = ROOT / "hub_configs" / "atlas"
TRAIN = ["train", "atlas", "--output_dir", "out"]
EVALUATE = ["evaluate", "atlas", "--output_dir", "out"]
# (arguments, what the sentence says). {bridge}: a copy of the Atlas bridge; {port}: a port that is in use.
MISTAKES = [
    # commands and options
    (["traim"], "There is no command 'traim'; did you mean `h2c train`?"),
    (["dance"], "There is no command 'dance'; `h2c` lists them."),
    (["help", "evalute"], "did you mean `h2c evaluate`?"),
    (["chat", "--max_tokens", "9"], "did you mean --max_new_tokens. `h2c chat --help`"),
    (["chat", "--max_new_tokens", "0"], "max_new_tokens is 0; expected at least 1"),
    (["chat", "--sharer_quantization", "nf5"], "invalid choice: 'nf5'"),
    (["quickstart", "--seed", "one"], "invalid int value: 'one'"),
    (["atlas", "rebuild"], "invalid choice: 'rebuild'"),
    # configs
    ([*TRAIN[:1], "atlass"],
     "There is no config 'atlass'; expected a yaml file, a folder with training.yaml, or one of atlas"),
    (["train", "none.yaml"], "There is no file 'none.yaml'; expected a yaml file of fields, or one of atlas"),
    (["train", "{folder}"], "There is no config"),
    (["evaluate", "accelerate"], "There is no config 'accelerate'"),
    (["train", "broken.yaml"], "broken.yaml is not yaml"),
    (["train", "list.yaml"], "holds a list; expected a mapping of fields to values"),
    (["configs", "copy", "atlass"], "There is no config 'atlass'; expected one of accelerate, atlas"),
    (["configs", "copy"], "There is no config ''; expected one of accelerate, atlas"),
    (["configs", "copy", "atlas", "{bridge}"], "is already there; expected another folder"),
    # training
    ([*TRAIN, "--learning_rat", "1"],
     "There is no field 'learning_rat' (the command line); did you mean 'learning_rate'?"),
    ([*TRAIN, "--max_steps", "many"], "invalid int value: 'many'. `h2c train --help` lists the fields."),
    (["train", "--output_dir", "out"],
     "sharer is missing; expected it in the yaml file or as --sharer VALUE"),
    ([*TRAIN, "--sharer", "nobody/none"],
     "The Sharer 'nobody/none' was not loaded: it is not in the cache, and HF_HUB_OFFLINE is set"),
    ([*TRAIN, "--receiver", "/no/such/folder"],
     "receiver is '/no/such/folder', and there is no such folder or file; expected"),
    ([*TRAIN, "--sharer", "notes"], "The Sharer 'notes' was not loaded"),
    ([*TRAIN, "--train_data", "nowhere.json"], "nowhere.json"),
    ([*TRAIN, "--train_data", "path=atlas,from=me"], "'from'"),
    ([*TRAIN, "--train_data", "path=atlas,split=test"], "a test split is for reports"),
    ([*TRAIN, "--resume_from_checkpoint", "elsewhere"],
     "which holds no trainer_state.json; expected a checkpoint folder"),
    ([*TRAIN, "--metric_for_best_model", "beauty"], "metric_for_best_model is 'beauty'; expected one of"),
    (["precompute", "atlas", "--output_dir", "out"],
     "sharer_states is missing; expected the folder to write"),
    # evaluation
    ([*EVALUATE, "--methods", "receiver", "h2c", "magic"],
     "There is no method 'magic'; expected one of receiver"),
    ([*EVALUATE, "--methods", "receiver", "sharer", "zeros"], "methods lacks h2c"),
    ([*EVALUATE, "--limit", "1"], "limit is 1; expected at least 2"),
    ([*EVALUATE, "--data", "no-such-data"], "The dataset 'no-such-data'"),
    ([*EVALUATE, "--split", "exam"], "atlas has no split 'exam'; expected train, validation or test"),
    ([*EVALUATE, "--model", "nobody/no-such-bridge"], "The bridge 'nobody/no-such-bridge' was not loaded"),
    ([*EVALUATE, "--output_dir", "notes.txt/out"], "Not a directory"),
    # reports and figures
    (["report", "nothing.json"], "No such file or directory: 'nothing.json'"),
    (["report", "notes.txt"], "notes.txt is no report: expected JSON with a schema_version"),
    (["report", "old.json"], "old.json has schema_version 0; expected 1"),
    (["plot", "{folder}"], "No such file or directory"),
    (["report", "{report}", "{report}", "third"], "'third' is not expected here. `h2c report --help`"),
    # sharing and trying
    (["models", "fetch", "gemma"], "There is no model 'gemma' to fetch; expected one of gemma-3-270m"),
    (["models", "get", "gemma-3-270m"], "invalid choice: 'get'"),
    (["push", "{bridge}"], "the following arguments are required: REPO"),
    (["push", "{bridge}", "bridge"], "'bridge' names no owner: expected 'user/name'"),
    (["push", "{bridge}", "me/../bridge"], "is no id of a repo: expected 'user/name'"),
    (["push", "{folder}", "me/bridge", "--dry_run"],
     "empty holds no config.json; expected the folder of a bridge"),
    (["push", "/no/such", "me/bridge"], "There is no folder /no/such; expected that of a bridge"),
    (["push", "{bridge}", "me/bridge", "--report", "none.json"], "There is no report none.json"),
    (["chat", "/no/such/bridge"], "The bridge '/no/such/bridge' was not loaded: there is no such folder"),
    (["chat", "{truncated}"], "is truncated or damaged"),
    (["chat", "--url", "http://127.0.0.1:1"], "does not answer"),
    (["serve", "--port", "70000"], "--port is 70000; expected 0 to 65535"),
    (["models", "fetch"], "The name of the model to fetch is missing; expected one of gemma-3-270m"),
    (["quickstart", "--epochs", "-1"], "--epochs is -1; expected more than 0"),
    (["demo", "--port", "99999"], "--port is 99999; expected 1 to 65535"),
    (["demo", "--port", "{port}"], "is in use; expected another port, or none"),
    (["demo", "--host", "no.such.host.invalid"], "--host is 'no.such.host.invalid', which is no address"),
    # newer parts: the message form, drafts, sets in a yaml file, the published pair, servers
    ([*TRAIN, "--bridge_form", "mesage"], "bridge_form is 'mesage'; expected one of rewrite, message"),
    ([*TRAIN, "--bridge_form", "rewrite", "--num_attention_heads", "7"],
     "num_attention_heads is 7, which does not divide"),
    ([*TRAIN, "--bridge_form", "message", "--num_attention_heads", "8"],
     "num_attention_heads is 8, a field of the form 'rewrite', and bridge_form is 'message'; expected"),
    ([*TRAIN, "--draft_tokens", "-1"], "draft_tokens is -1; expected at least 0"),
    ([*TRAIN, "--draft_tokens", "many"], "invalid int value: 'many'"),
    ([*TRAIN, "--train_data", "form=words"], "The data source 'form=words' has no path; expected path="),
    (["evaluate", "unnamed.yaml", "--output_dir", "out"],
     "The set 'path=atlas' has no name; expected name=NAME,path=DATA,regime=private"),
    (["evaluate", "no_list.yaml", "--output_dir", "out"], "The set 'atlas' has no name; expected name=NAME"),
    (["evaluate", "regime.yaml", "--output_dir", "out"],
     "regime of the set 'a' is 'secret'; expected one of private, shared"),
    (["models", "fetch", "smollm2"],
     "There is no model 'smollm2' to fetch; expected one of gemma-3-270m, smollm2-135m-instruct"),
    (["quickstart", "--pair", "gemma"],
     "There is no quickstart for the pair 'gemma'; expected one of atlas, gemma-3-270m_to_smollm2-135m"),
    (["quickstart", "--pair", "gemma-3-270m_to_smollm2-135m", "--steps", "0"],
     "--steps is 0; expected at least 1"),
    (["quickstart", "--steps", "5"], "--steps is 5, and the quickstart of Atlas has none; expected --epochs"),
    (["serve", "--port", "{port}"], "cannot be listened on (Address already in use); choose another --port"),
    (["serve", "--host", "no.such.host.invalid"], "--host is 'no.such.host.invalid', which is no address"),
    (["serve", "--max_body", "0"], "--max_body is 0; expected at least 1"),
    (["chat", "--url", "nothing"], "--url is 'nothing'; expected http://HOST:PORT, as `h2c serve` prints it"),
    (["chat", "--revision", "abc"],
     "--revision is 'abc', and Atlas is a folder; expected a revision with a Hub id only"),
    (["chat", "--receiver", "nobody/none"], "The Receiver 'nobody/none' was not loaded"),
    (["chat", "--sharer_chat_template", "none.jinja"], "none.jinja"),
    (["configs", "copy", "atlas", "notes.txt"], "notes.txt is a file; expected a folder to copy to"),
    (["atlas", "build", "--tables", "/no/such"],
     "There is no folder /no/such; expected that of the source tables"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    texts = {
        "unnamed.yaml": "model: m\nsets:\n- {path: atlas}\n", "no_list.yaml": "model: m\nsets: atlas\n",
        "regime.yaml": "model: m\nsets:\n- {name: a, path: atlas, regime: secret}\n",
        "broken.yaml": "a: [", "list.yaml": "- 1\n", "notes.txt": "notes",
        "old.json": json.dumps({"schema_version": 0}),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    shutil.copytree(ATLAS, folder / "bridge", ignore=shutil.ignore_patterns("adapter"))
    shutil.copytree(folder / "bridge", folder / "truncated")
    weights = folder / "truncated" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {name: str(folder / name) for name in ("bridge", "truncated")}
        yield (
            folder,
            {**names, "folder": str(folder / "empty"), "report": str(ATLAS), "port": taken.getsockname()[1]},
        )


@pytest.mark.parametrize(
    ("arguments", "told"), MISTAKES, ids=[" ".join(arguments)[:50] for arguments, _ in MISTAKES]
)
def test_a_mistake_is_told_in_one_sentence(arguments, told, places, monkeypatch, capfd):
    folder, names = places
    monkeypatch.chdir(folder)
    assert main([argument.format(**names) for argument in arguments]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("h2c: ")]
    assert len(lines) == 1 and told in lines[0]
    assert len(lines[0]) < 400


def test_there_are_forty():
    assert len(MISTAKES) >= 40
