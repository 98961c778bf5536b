import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from ggufs import SHAPE, write_gguf
from pairs import random_pair, tiny_model, tiny_processor

from h2c_hf.atlas import MODELS
from h2c_hf.data.examples import H2CCollator
from h2c_hf.pair import Pair
from h2c_hf.training import precompute, train
from h2c_hf.training.arguments import parse
from h2c_hf.training.sharer_states import SharerStates, StoredStatesCollator, bytes_per_token, states_identity


ROOT = Path(__file__).parents[2]
# Atlas as `hub_configs/atlas/training.yaml` has it, but its smaller split alone, and a part of that to
# validate on.
SMALL = [
    "--sharer=atlas", "--receiver=atlas", "--base_dtype=float32", "--report_to=none", "--use_cpu",
    "--bridge_form=rewrite",
    "--learning_rate=3e-3", "--train_data", "path=atlas,split=validation",
    "path=atlas,split=validation,form=open", "--validation_fraction=0.2", "--per_device_train_batch_size=8",
    "--per_device_eval_batch_size=64", "--max_steps=4", "--logging_steps=1",
    "--eval_strategy=steps", "--eval_steps=4", "--generations=2",
]  # fmt: skip


def store(folder, dtype: str = "float32", layers=(0, 2), hidden_states: int = 4) -> SharerStates:
    return SharerStates(folder, {"layers": list(layers), "hidden_states": hidden_states, "dtype": dtype})


def filled(folder, dtype: str = "float32", seed: int = 0, shards: int = 2, size: int = 24, **kwargs):
    """A store of random states under random prompts; (store, states by prompt)."""
    written, rng = store(folder, dtype, **kwargs), random.Random(seed)
    written.begin([])
    torch.manual_seed(seed)
    states = {}
    for _ in range(shards):
        prompts = [tuple(rng.choices(range(100), k=rng.randint(1, 9))) for _ in range(5)]
        shard = {
            ids: torch.randn(len(written.identity["layers"]), len(ids), size) * 10 ** rng.uniform(-3, 3)
            for ids in prompts
        }
        written.write({written.key(ids): state for ids, state in shard.items()})
        states |= shard
    return written, states


# Storing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_written_is_read_back(tmp_path, dtype, seed):
    written, states = filled(tmp_path, dtype, seed)
    opened = SharerStates.open(tmp_path, written.identity)
    for ids, state in states.items():
        read = opened.read(list(ids))
        # 3 bits of mantissa below the largest of a token, and a last step for what is far smaller.
        if dtype == "float8_e4m3fn":
            largest = state.abs().amax(-1, keepdim=True)
            assert ((read.float() - state).abs() <= state.abs() / 15 + largest * 2**-9 / 448).all()
        else:
            assert torch.equal(read, state.to(getattr(torch, dtype)))


def test_a_token_of_zeros_and_one_of_huge_states_survive_fp8(tmp_path):
    states = torch.zeros(2, 3, 8)
    states[0, 1] = 1e4
    written = store(tmp_path, "float8_e4m3fn")
    written.begin([])
    written.write({written.key([1, 2, 3]): states})
    torch.testing.assert_close(written.read([1, 2, 3]).float(), states, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_the_formula_is_the_size_on_the_disk(tmp_path, dtype):
    written, states = filled(tmp_path, dtype, shards=1, size=4096)
    prompts, tokens, size = written.size()
    assert (prompts, tokens) == (len(states), sum(map(len, states)))
    expected = tokens * bytes_per_token(2, 4096, dtype)
    assert expected < size < 1.02 * expected


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_collator_pads_stored_states_as_the_sharer_pads_them_live(tmp_path, seed):
    model, processor, rng = random_pair(seed), tiny_processor(), random.Random(seed)
    layers = model.bridge.read_layers
    rows = [[rng.choices(range(1, 60), k=rng.randint(2, 12)) for _ in range(3)] for _ in range(6)]
    examples = [dict(zip(("input_ids", "sharer_input_ids", "target_ids"), row, strict=True)) for row in rows]
    written = store(tmp_path, layers=layers, hidden_states=model.config.sharer_num_hidden_layers + 1)
    written.begin([])
    prompts = written.missing([Dataset.from_list(examples)])
    precompute.compute(model, written, prompts, batch_size=2, shard_tokens=15)
    assert len(written.shards()) > 1

    # As a worker that is spawned gets it.
    collator = pickle.loads(pickle.dumps(StoredStatesCollator(processor, written)))
    batch, live = collator(examples), H2CCollator(processor)(examples)
    states = batch.pop("sharer_hidden_states")
    expected = model.read(live.pop("sharer_input_ids"), live["sharer_attention_mask"], layers)
    assert [state is None for state in states] == [state is None for state in expected]
    mask = live["sharer_attention_mask"].bool()
    for layer in layers:
        assert states[layer].is_contiguous()
        torch.testing.assert_close(states[layer][mask], expected[layer][mask], atol=1e-5, rtol=1e-5)
        assert not states[layer][~mask].any()
    assert batch.keys() == live.keys() and all(torch.equal(batch[name], live[name]) for name in live)


def test_equal_prompts_are_computed_once(tmp_path):
    columns = {"sharer_input_ids": [[1, 2], [3], [1, 2], [2, 1]]}
    written = store(tmp_path)
    absent = written.missing(
        [Dataset.from_dict(columns), Dataset.from_dict({"sharer_input_ids": [[3], [1, 2, 3]]})]
    )
    assert sorted(ids.tolist() for ids in absent.values()) == [[1, 2], [1, 2, 3], [2, 1], [3]]


def test_a_full_disk_leaves_whole_shards_and_says_what_happened(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        written, states = filled(tmp_path / "states")
        with pytest.raises(OSError, match=r"A shard could not be written to .*; the 2 before it are kept"):
            written.write({"large": torch.zeros(2, 10, 100_000)})
        assert sorted(path.suffix for path in written.folder.iterdir()) == [
            ".json",
            ".safetensors",
            ".safetensors",
        ]
        assert SharerStates.open(written.folder, written.identity).size()[0] == len(states)
        with pytest.raises(ValueError, match=r"need 5\.0 MB in .*, which has .* MB free"):
            precompute.refuse_small_disk(tmp_path / "new" / "states", 5_000_000)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Refusing


def test_a_damaged_shard_is_refused_wherever_it_is_hurt(tmp_path):
    written, _ = filled(tmp_path)
    shard, rng = written.shards()[1], random.Random(0)
    whole = shard.read_bytes()
    hurt = [whole[:-1], whole[: len(whole) // 2], b""]
    for position in [0, 9, len(whole) - 1, *rng.sample(range(len(whole)), 20)]:
        hurt.append(
            whole[:position] + bytes([whole[position] ^ 1 << rng.randrange(8)]) + whole[position + 1 :]
        )
    for content in hurt:
        shard.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"1 of 2 shards in .* are damaged, the first is {shard.name}.*'h2c precompute'"
        ):
            SharerStates.open(tmp_path, written.identity)
    shard.write_bytes(whole)
    SharerStates.open(tmp_path, written.identity)


def test_a_store_that_is_none_is_refused(tmp_path):
    identity = store(tmp_path).identity
    with pytest.raises(
        ValueError,
        match=r"holds no Sharer states \(store.json\); expected a folder that 'h2c precompute' wrote",
    ):
        SharerStates.open(tmp_path / "none", identity)
    filled(tmp_path / "states")
    for text in ("{", "[]"):
        (tmp_path / "states" / "store.json").write_text(text)
        with pytest.raises(ValueError, match=r"store.json is damaged; delete"):
            SharerStates.open(tmp_path / "states", identity)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="holds something else than Sharer states; expected a new or empty folder"
    ):
        SharerStates(tmp_path, identity).scan()
    assert (tmp_path / "notes.txt").exists()


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """Atlas, as `h2c precompute` writes it in fp32."""
    folder = tmp_path_factory.mktemp("atlas") / "states"
    assert precompute.main([*SMALL, f"--sharer_states={folder}", "--sharer_states_dtype=float32"]) == 0
    return folder


def run(output: Path, *arguments: str) -> list[dict]:
    """Train; the log."""
    assert train.main([*SMALL, f"--output_dir={output}", *arguments]) == 0
    return json.loads((output / "log_history.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sharer_states_dtype=bfloat16"], "dtype is 'float32', expected 'bfloat16'"),
        (["--base_dtype=bfloat16"], "base_dtype is 'float32', expected 'bfloat16'"),
        (["--bf16"], "autocast is 'none', expected 'bf16'"),
        (["--sharer_quantization=nf4"], "quantization is 'none', expected 'nf4'"),
        (
            ["--train_data=path=atlas,form=open"],
            r"lacks [\d,]+ of this config's Sharer prompts: the data changed",
        ),
        (
            ["--streaming", "--validation_fraction=0", "--eval_strategy=no"],
            "streaming and sharer_states are both given",
        ),
    ],
)
def test_a_store_of_another_run_is_refused_before_training(stored, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, f"--sharer_states={stored}", "--sharer_states_dtype=float32", *arguments)
    assert not list(tmp_path.iterdir())


def test_another_gguf_file_makes_another_store(tmp_path):
    h2c, training = parse([*SMALL, "--sharer_states=none"], "test")
    tokenizer = Pair(h2c).processor().sharer_tokenizer

    def identity(folder: str, seed: int) -> dict:
        (tmp_path / folder).mkdir()
        write_gguf(tmp_path / folder / "tiny.gguf", tiny_model("llama", seed, **SHAPE))
        pair = Pair(parse([*SMALL, f"--sharer={tmp_path / folder / 'tiny.gguf'}"], "test")[0])
        return states_identity(pair.arguments, training, pair, tokenizer)

    first = identity("a", seed=1)
    assert identity("b", seed=1) == first
    assert identity("c", seed=2)["revision"] != first["revision"]


def test_another_sharer_tokenizer_or_receiver_makes_another_store(tmp_path):
    h2c, training = parse([*SMALL, "--sharer_states=none"], "test")
    pair = Pair(h2c)
    tokenizer = pair.processor().sharer_tokenizer
    own = states_identity(h2c, training, pair, tokenizer)

    def different(pair=pair, tokenizer=tokenizer) -> list[str]:
        other = states_identity(pair.arguments, training, pair, tokenizer)
        return [name for name in own if other[name] != own[name]]

    assert different() == []
    for role, name in (("sharer", "atlas"), ("sharer", "tuned/atlas"), ("receiver", "shallow")):
        shutil.copytree(MODELS / role, tmp_path / name)

    def moved(role: str, name: str) -> list[str]:
        return different(Pair(parse([*SMALL, f"--{role}={tmp_path / name}"], "test")[0]))

    assert moved("sharer", "atlas") == []  # a copy of the same files, under the same name
    with open(tmp_path / "tuned/atlas/model.safetensors", "r+b") as file:  # one weight
        file.seek(-2, os.SEEK_END)
        file.write(b"12")
    assert moved("sharer", "tuned/atlas") == ["revision"]
    config = json.loads((tmp_path / "shallow/config.json").read_text())
    config["num_hidden_layers"] = 2
    (tmp_path / "shallow/config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "layer_types"})
    )
    assert moved("receiver", "shallow") == ["layers"]
    tokenizer.chat_template += " "
    assert different() == ["tokenizer"]


# Training


def values(log: list[dict], name: str) -> list[float]:
    return [entry[name] for entry in log if name in entry]


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("live")
    run(output)
    return output


def test_training_from_the_store_gives_the_losses_of_training_live(live, stored, tmp_path):
    expected = json.loads((live / "log_history.json").read_text())
    log = run(
        tmp_path, f"--sharer_states={stored}", "--sharer_states_dtype=float32", "--dataloader_num_workers=2"
    )
    assert len(values(log, "loss")) == 4 and len(values(log, "eval_loss")) == 1
    for name in ("loss", "eval_loss"):
        assert values(log, name) == pytest.approx(values(expected, name), rel=1e-6, abs=1e-6)
    assert (tmp_path / "generations.jsonl").read_text() == (live / "generations.jsonl").read_text()


@pytest.mark.parametrize(
    ("dtype", "arguments", "tolerance"),
    [
        ("bfloat16", [], 1e-3),
        ("float8_e4m3fn", [], 2e-2),
        # Under autocast the Sharer's own rounding depends on the padding of its batch: live losses move as
        # much by more padding.
        pytest.param("bfloat16", ["--bf16"], 1e-2, marks=pytest.mark.slow),
    ],
)
def test_a_narrower_store_gives_nearly_the_same_losses(live, tmp_path, dtype, arguments, tolerance):
    expected = (
        run(tmp_path / "live", *arguments)
        if arguments
        else json.loads((live / "log_history.json").read_text())
    )
    states = [f"--sharer_states={tmp_path / 'states'}", f"--sharer_states_dtype={dtype}", *arguments]
    assert precompute.main([*SMALL, *states]) == 0
    log = run(tmp_path / "stored", *states)
    for name in ("loss", "eval_loss"):
        assert values(log, name) == pytest.approx(values(expected, name), abs=tolerance)


def test_no_sharer_is_in_memory(stored):
    h2c, training = parse([*SMALL, f"--sharer_states={stored}"], "test")
    assert Pair(h2c).model(training.device).sharer is None


# The command

SHARD_BYTES = 2**22
# Kills its own process when half of the third shard is written.
KILLED_IN_A_SHARD = f"""
import os, signal, sys
from h2c_hf.cli import main
from h2c_hf.training import precompute, sharer_states
precompute.SHARD_BYTES = {SHARD_BYTES}
save, saved = sharer_states.save_file, []
def half(tensors, path):
    save(tensors, path)
    saved.append(path)
    if len(saved) == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
sharer_states.save_file = half
sys.exit(main(["precompute", *sys.argv[1:]]))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_goes_on_to_the_store_that_it_would_have_written(tmp_path, monkeypatch):
    arguments = [
        *SMALL,
        "--train_data=path=atlas,split=validation,form=open",
        "--sharer_states_dtype=float32",
    ]
    monkeypatch.setattr(precompute, "SHARD_BYTES", SHARD_BYTES)
    assert precompute.main([*arguments, f"--sharer_states={tmp_path / 'whole'}"]) == 0
    whole = contents(tmp_path / "whole")
    assert len(whole) > 4

    killed = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_IN_A_SHARD, *arguments, f"--sharer_states={killed}"]
    process = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    left = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.safetensors")}
    assert len(left) == 2 and (killed / "shard.part").exists()
    with pytest.raises(ValueError, match="or 'h2c precompute' did not finish"):
        run(tmp_path / "run", *arguments[len(SMALL) :], f"--sharer_states={killed}")

    damaged = sorted(left)[0]
    os.truncate(killed / damaged, 100)
    assert precompute.main([*arguments, f"--sharer_states={killed}"]) == 0
    assert contents(killed) == whole
    (kept,) = set(left) - {damaged}
    assert (killed / kept).stat().st_mtime_ns == left[kept]


def test_a_whole_store_is_left_as_it_is_and_its_cost_is_told(stored, capsys):
    before = {path: path.stat().st_mtime_ns for path in stored.glob("*.safetensors")}
    assert precompute.main([*SMALL, f"--sharer_states={stored}", "--sharer_states_dtype=float32"]) == 0
    out = capsys.readouterr().out
    assert "848 examples; to compute: 0 Sharer prompts, 0.0 MB" in out
    # 5 layers x 192 x 4 bytes
    assert "MB per thousand tokens (3,840 bytes a token in float32, and the headers)" in out
    assert {path: path.stat().st_mtime_ns for path in stored.glob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sharer_states is missing; expected the folder to write"),
        (["--sharer_states={stored}"], "dtype is 'float32', expected 'bfloat16'"),
        (["--sharer_states={stored}/store.json"], "holds something else than Sharer states"),
    ],
)
def test_precompute_refuses_what_it_cannot_write(stored, arguments, message):
    with pytest.raises(ValueError, match=message):
        precompute.main([*SMALL, *(argument.format(stored=stored) for argument in arguments)])


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert precompute.main([*SMALL, f"--sharer_states={tmp_path / 'states'}", "--dry_run"]) == 0
    assert "848 examples; to compute: 848 Sharer prompts" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
