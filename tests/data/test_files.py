"""Data files that are missing, empty or broken, and absent base models: one sentence, with their name."""

import gzip

import pytest
from pairs import join, tiny_model

from h2c_hf.cli import main
from h2c_hf.data.mixture import build_dataset
from h2c_hf.data.sources import DataSource
from h2c_hf.evaluation.questions import load_questions
from h2c_hf.modeling import H2CForCausalLM


CONTENTS = {
    "empty.json": (b"", "it is empty; expected at least one record"),
    "empty.jsonl": (b"", "it is empty; expected at least one record"),
    "list.json": (b"[]", "expected at least one"),
    "empty.csv": (b"", "No columns to parse from file"),
    "empty.parquet": (b"", "Parquet file size is 0 bytes"),
    "broken.json": (b'{"messages": [', "JSON parse error: Invalid value. in row 0"),
    "broken.jsonl": (b'{"a": 1}\n{"a": ', "JSON parse error: Invalid value. in row 1"),
    "broken.csv": (b"a,b\n1,2\n1,2,3,4\n", "Expected 2 fields in line 3, saw 4"),
    "broken.parquet": (b"PAR1", "Parquet file size is 4 bytes"),
    "zipped.json": (gzip.compress(b'{"a": 1}')[:20], ""),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(processor, tmp_path, name):
    content, reason = CONTENTS[name]
    path = tmp_path / name
    path.write_bytes(content)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=f"^{path} train could not be loaded: .*{reason}"):
            build_dataset([DataSource(str(path))], processor, streaming=streaming)
    with pytest.raises(ValueError, match=f"^The dataset '{path}' .* cannot be read: .*{reason}"):
        load_questions(str(path), None, "test")


@pytest.mark.parametrize("path", ["none.jsonl", "data/none.csv", "./none", "/none/none", "~/none", "a/b/c"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the Hub was asked"))
    for read in (lambda: DataSource(path).load(), lambda: load_questions(path, None, "test")):
        with pytest.raises(
            ValueError, match=f"there is no file or folder '{path}'; expected one, or a Hub id"
        ):
            read()


def test_an_id_of_the_hub_is_asked_of_it():
    with pytest.raises(ValueError, match="could not be loaded: .*on the Hub"):  # the tests are offline
        DataSource("user/data.v2").load()


@pytest.mark.parametrize("name", ["user/none", "./none", "/none/none"])
@pytest.mark.parametrize("role", ["sharer", "receiver"])
def test_a_base_model_that_is_not_there_is_named(role, name, tmp_path, capsys):
    pair = {"sharer": "atlas", "receiver": "atlas", role: name}
    few = [
        "--train_data",
        "atlas",
        f"--output_dir={tmp_path}",
        "--max_steps=1",
        "--use_cpu",
        "--report_to=none",
    ]
    assert main(["train", *(f"--{key}={value}" for key, value in pair.items()), *few]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error.startswith("h2c: ")
        and f"{role.capitalize() if name == 'user/none' else role}" in error
        and f"'{name}'" in error
    )


def test_a_bridge_names_the_base_model_that_it_lacks(tmp_path):
    model = join(tiny_model("llama", 1), tiny_model("qwen2", 2), sharer_model_id="user/none")
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="^The base model 'user/none' could not be loaded: "):
        H2CForCausalLM.from_pretrained(tmp_path, receiver=model.receiver)
