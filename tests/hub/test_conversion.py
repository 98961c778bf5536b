"""Original checkpoints convert, load through AutoModel and compute what the original computes."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, DynamicCache, LlamaConfig, Qwen2Config

from h2c_hf.hub.conversion import ConversionError, main
from h2c_hf.modeling.configuration_h2c import REMOTE_CODE


ROOT = Path(__file__).parents[2]
REFERENCES = ("original_bridge_deeper_receiver.safetensors", "original_bridge_deeper_sharer.safetensors")
SHAPES = {
    "sharer_hidden_size": 24,
    "sharer_num_hidden_layers": 4,
    "receiver_num_hidden_layers": 3,
    "receiver_num_key_value_heads": 2,
    "receiver_head_dim": 8,
}


class OriginalBlock(nn.Module):
    """One block in the original's form: x + sigmoid(gate) * FFN(LN(MHA(LN(x), LN(h), LN(h))))."""

    def __init__(self, size: int, hidden: int, heads: int):
        super().__init__()
        self.norm_receiver = nn.LayerNorm(size)
        self.norm_sharer = nn.LayerNorm(hidden)
        self.norm_ffn = nn.LayerNorm(size)
        self.attn = nn.MultiheadAttention(size, heads, kdim=hidden, vdim=hidden, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(size, 4 * size), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * size, size)
        )
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, h: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        h = self.norm_sharer(h)
        attended, _ = self.attn(self.norm_receiver(x), h, h, key_padding_mask=padding)
        return x + torch.sigmoid(self.gate) * self.ffn(self.norm_ffn(attended))


class OriginalBridge(nn.Module):
    """A key and a value block for each bridged layer, counted from the top."""

    def __init__(self, shapes: dict[str, int], heads: int):
        super().__init__()
        self.shapes = shapes
        size = shapes["receiver_num_key_value_heads"] * shapes["receiver_head_dim"]
        depth = min(shapes["sharer_num_hidden_layers"], shapes["receiver_num_hidden_layers"])
        blocks = [
            [OriginalBlock(size, shapes["sharer_hidden_size"], heads) for _ in range(depth)] for _ in range(2)
        ]
        self.key_modifiers, self.value_modifiers = map(nn.ModuleList, blocks)
        for parameter in self.parameters():  # biases, norms and gates too: zeros and ones would hide a mix-up
            nn.init.normal_(parameter, std=0.3)

    def forward(self, hidden_states, keys, values, padding=None):
        """Lists of (batch, heads, length, head_dim) in, new lists out."""
        keys, values = list(keys), list(values)
        for t, (key_block, value_block) in enumerate(
            zip(self.key_modifiers, self.value_modifiers, strict=True)
        ):
            layer = self.shapes["receiver_num_hidden_layers"] - 1 - t
            hidden = hidden_states[self.shapes["sharer_num_hidden_layers"] - 1 - t]
            for states, block in ((keys, key_block), (values, value_block)):
                batch, heads, length, head_dim = states[layer].shape
                bridged = block(
                    states[layer].transpose(1, 2).reshape(batch, length, heads * head_dim), hidden, padding
                )
                states[layer] = bridged.view(batch, length, heads, head_dim).transpose(1, 2)
        return keys, values


def write_pair(folder: Path, shapes: dict[str, int]) -> list[str]:
    """Config folders of a Sharer and a Receiver of these shapes, as arguments of the script."""
    sharer = LlamaConfig(
        hidden_size=shapes["sharer_hidden_size"], num_hidden_layers=shapes["sharer_num_hidden_layers"],
        num_attention_heads=2,
    )  # fmt: skip
    receiver = Qwen2Config(
        hidden_size=64, num_hidden_layers=shapes["receiver_num_hidden_layers"], num_attention_heads=4,
        num_key_value_heads=shapes["receiver_num_key_value_heads"], head_dim=shapes["receiver_head_dim"],
    )  # fmt: skip
    sharer.save_pretrained(folder / "sharer")
    receiver.save_pretrained(folder / "receiver")
    return ["--sharer", str(folder / "sharer"), "--receiver", str(folder / "receiver")]


def run_command(*arguments, **kwargs) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "h2c_hf", "convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        **kwargs,
    )


def filled_cache(keys, values) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key, value, layer)
    return cache


def random_inputs(shapes: dict[str, int], batch: int = 2, sharer_length: int = 7, length: int = 5):
    hidden_states = [
        torch.randn(batch, sharer_length, shapes["sharer_hidden_size"])
        for _ in range(shapes["sharer_num_hidden_layers"] + 1)
    ]
    size = (batch, shapes["receiver_num_key_value_heads"], length, shapes["receiver_head_dim"])
    keys, values = (
        [torch.randn(size) for _ in range(shapes["receiver_num_hidden_layers"])] for _ in range(2)
    )
    return hidden_states, keys, values


def assert_same_cache(cache, keys, values, atol=1e-5):
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        torch.testing.assert_close(cache.layers[layer].keys, key, atol=atol, rtol=0)
        torch.testing.assert_close(cache.layers[layer].values, value, atol=atol, rtol=0)


@pytest.mark.parametrize("name", REFERENCES)
def test_reproduces_the_reference(name, tmp_path):
    real = os.environ.get("H2C_REAL_DATA")
    if not real:
        pytest.skip("H2C_REAL_DATA is not set; the reference files lie in $H2C_REAL_DATA/../reference.")
    path = Path(real).parent / "reference" / name
    with safe_open(path, "pt") as file:
        shapes = {key: int(value) for key, value in file.metadata().items()}
    heads = shapes.pop("bridge_num_attention_heads")
    pair, output = write_pair(tmp_path, shapes), tmp_path / "bridge"

    done = run_command("--checkpoint", path, *pair, "--num_attention_heads", heads, "--output", output)
    assert done.returncode == 0, done.stderr
    assert (
        f"{min(shapes['sharer_num_hidden_layers'], shapes['receiver_num_hidden_layers'])} layers"
        in done.stdout
    )
    model = AutoModel.from_pretrained(output, trust_remote_code=True)

    tensors, layers = load_file(path), range(shapes["receiver_num_hidden_layers"])
    hidden_states = tuple(
        tensors[f"sharer_hidden_states.{i}"] for i in range(shapes["sharer_num_hidden_layers"] + 1)
    )
    cache = filled_cache(
        [tensors[f"receiver_key.{r}"] for r in layers], [tensors[f"receiver_value.{r}"] for r in layers]
    )
    with torch.no_grad():
        bridged = model(hidden_states, cache)
    assert_same_cache(
        bridged,
        [tensors[f"bridged_key.{r}"] for r in layers],
        [tensors[f"bridged_value.{r}"] for r in layers],
    )
    unbridged = [r for r in layers if r < len(layers) - shapes["sharer_num_hidden_layers"]]
    assert len(unbridged) == (2 if name == REFERENCES[0] else 0)
    for r in unbridged:
        assert torch.equal(bridged.layers[r].keys, tensors[f"receiver_key.{r}"])
        assert torch.equal(bridged.layers[r].values, tensors[f"receiver_value.{r}"])


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({}, 4),
        ({"receiver_num_hidden_layers": 6}, 2),
        # As wide as the Receiver's cache: nn.MultiheadAttention then has one in_proj_weight.
        ({"sharer_hidden_size": 16}, 16),
    ],
    ids=["deeper_sharer", "deeper_receiver", "equal_widths"],
)
def test_computes_what_the_original_computes(changes, heads, suffix, tmp_path):
    torch.manual_seed(0)
    shapes = {**SHAPES, **changes}
    original = OriginalBridge(shapes, heads).eval()
    checkpoint, state = tmp_path / f"checkpoint{suffix}", original.state_dict()
    if suffix == ".pt":
        torch.save({"bridge_state_dict": state, "step": 3, "optimizer_state_dict": {"lr": 0.1}}, checkpoint)
    elif suffix == ".bin":
        torch.save(state, checkpoint)
    else:
        save_file(state, checkpoint)
    output = tmp_path / "bridge"
    main(
        [
            "--checkpoint",
            str(checkpoint),
            *write_pair(tmp_path, shapes),
            "--num_attention_heads",
            str(heads),
            "--output",
            str(output),
        ]
    )
    model = AutoModel.from_pretrained(output, trust_remote_code=True)
    assert model.num_parameters() == sum(parameter.numel() for parameter in original.parameters())

    hidden_states, keys, values = random_inputs(shapes)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        assert_same_cache(
            model(hidden_states, filled_cache(keys, values)), *original(hidden_states, keys, values)
        )
        bridged = model(hidden_states, filled_cache(keys, values), mask)
        assert_same_cache(bridged, *original(hidden_states, keys, values, mask == 0))


def test_keeps_the_dtype_but_gates_in_fp32(tmp_path):
    torch.manual_seed(0)
    original = OriginalBridge(SHAPES, 4)
    checkpoint, output = tmp_path / "checkpoint.pt", tmp_path / "bridge"
    gate = original.key_modifiers[0].gate.item()
    state = {
        key: tensor if key.endswith("gate") else tensor.bfloat16()
        for key, tensor in original.state_dict().items()
    }
    torch.save(state, checkpoint)
    main(
        [
            "--checkpoint",
            str(checkpoint),
            *write_pair(tmp_path, SHAPES),
            "--num_attention_heads",
            "4",
            "--output",
            str(output),
        ]
    )
    model = AutoModel.from_pretrained(output, trust_remote_code=True)
    assert model.q_proj.weight.dtype == torch.bfloat16
    assert model.gate.dtype == torch.float32
    assert model.gate_values()["key"][-1] == pytest.approx(torch.sigmoid(torch.tensor(gate)).item(), abs=1e-6)


def test_records_the_pair(tmp_path, monkeypatch):
    """A relative folder is written as absolute ("./name" is a bridge's own folder); empty output is used."""
    checkpoint, output = tmp_path / "checkpoint.pt", tmp_path / "bridge"
    torch.save(OriginalBridge(SHAPES, 4).state_dict(), checkpoint)
    write_pair(tmp_path, SHAPES)
    output.mkdir()
    monkeypatch.chdir(tmp_path)
    pair = ["--sharer", "./sharer", "--receiver", "receiver"]
    main(["--checkpoint", "checkpoint.pt", *pair, "--num_attention_heads", "4", "--output", "bridge"])
    config = json.loads((output / "config.json").read_text())
    assert (config["sharer_model_id"], config["receiver_model_id"]) == (
        str(tmp_path / "sharer"),
        str(tmp_path / "receiver"),
    )
    assert {name: config[name] for name in SHAPES} == SHAPES
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors", *REMOTE_CODE}


class RunsCode:
    """Unpickling one calls a function, which makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def break_nothing(state):
    return state


def drop_two(state):
    del state["value_modifiers.2.gate"], state["key_modifiers.1.ffn.0.bias"]
    return state


def add_one(state):
    return {**state, "projector.weight": torch.zeros(1)}


def misshape_one(state):
    return {**state, "value_modifiers.1.ffn.3.weight": torch.zeros(16, 63)}


def whole_numbers(state):
    return {**state, "key_modifiers.0.gate": torch.ones(1, dtype=torch.long)}


def drop_a_layer(state):
    return {key: tensor for key, tensor in state.items() if "modifiers.2." not in key}


@pytest.mark.parametrize(
    ("breaks", "changes", "heads", "messages"),
    [
        (break_nothing, {"sharer_hidden_size": 32}, 4, ["24", "32", "sharer's hidden_size"]),
        (break_nothing, {"receiver_head_dim": 16}, 4, ["16", "32", "key-value heads x head_dim"]),
        (break_nothing, {"receiver_num_hidden_layers": 5}, 4,
         ["bridges 3 layers and this pair 4", "sharer's 4", "receiver's 5"]),
        (drop_a_layer, {}, 4, ["bridges 2 layers and this pair 3"]),
        (break_nothing, {}, 5, ["num_attention_heads is 5", "16"]),
        (drop_two, {}, 4, ["lacks 2 of 102 keys: key_modifiers.1.ffn.0.bias, value_modifiers.2.gate"]),
        (add_one, {}, 4, ["1 unknown keys: projector.weight"]),
        (misshape_one, {}, 4, ["value_modifiers.1.ffn.3.weight has shape (16, 63); expected (16, 64)"]),
        (whole_numbers, {}, 4, ["key_modifiers.0.gate holds torch.int64", "expected plain floating-point"]),
        (lambda state: {"weight": torch.zeros(2)}, {}, 4, ["holds no bridge", "got weight"]),
        (lambda state: {**state, "step": 3}, {}, 4, ["no state dict", "step"]),
        (lambda state: [1, 2], {}, 4, ["holds a list; expected a state dict"]),
        (lambda state: {**state, "extra": RunsCode()}, {}, 4,
         ["reading it would run code from the file (", "expected tensors"]),
    ],
    ids=[
        "sharer_width", "receiver_width", "deeper_pair", "fewer_layers", "heads", "missing", "unknown",
        "shape", "dtype", "no_bridge", "not_a_tensor", "not_a_dict", "code",
    ],
)  # fmt: skip
def test_refuses(breaks, changes, heads, messages, tmp_path, monkeypatch):
    """In one line that says what was wrong; nothing is written."""
    monkeypatch.chdir(tmp_path)
    torch.save(breaks(OriginalBridge(SHAPES, 4).state_dict()), tmp_path / "checkpoint.pt")
    arguments = [
        "--checkpoint",
        "checkpoint.pt",
        *write_pair(tmp_path, {**SHAPES, **changes}),
        "--num_attention_heads",
        str(heads),
    ]
    assert_refused(arguments, messages, tmp_path)


def assert_refused(arguments, messages, folder, output="new/bridge"):
    before = sorted(folder.rglob("*"))
    with pytest.raises((ConversionError, OSError)) as refused:
        main([*arguments, "--output", str(output)])
    assert "\n" not in str(refused.value)
    for message in messages:
        assert message in str(refused.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("kind", ["cut", "cut_safetensors", "empty", "text", "plain_pickle", "missing"])
def test_refuses_what_is_not_a_whole_checkpoint(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint, state = tmp_path / "checkpoint.pt", OriginalBridge(SHAPES, 4).state_dict()
    message = "not a whole torch file"
    if kind == "cut":
        torch.save(state, checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    elif kind == "cut_safetensors":
        checkpoint, message = tmp_path / "checkpoint.safetensors", "not a whole safetensors file"
        save_file(state, checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    elif kind == "empty":
        checkpoint.touch()
    elif kind == "text":
        checkpoint.write_text("version https://git-lfs.github.com/spec/v1\n" * 5)
        message = "refused: it is no torch file"
    elif kind == "plain_pickle":
        checkpoint.write_bytes(pickle.dumps({"bridge_state_dict": RunsCode()}))
        message = "or one that runs code"
    else:
        message = "is not a file"
    assert_refused(
        ["--checkpoint", str(checkpoint), *write_pair(tmp_path, SHAPES)], [checkpoint.name, message], tmp_path
    )


def test_refuses_an_output_in_use(tmp_path):
    torch.save(OriginalBridge(SHAPES, 4).state_dict(), tmp_path / "checkpoint.pt")
    output = tmp_path / "bridge"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    arguments = [
        "--checkpoint",
        str(tmp_path / "checkpoint.pt"),
        *write_pair(tmp_path, SHAPES),
        "--num_attention_heads",
        "4",
    ]
    assert_refused(arguments, [str(output), "not an empty folder"], tmp_path, output)
    assert_refused(arguments, ["notes.txt", "not an empty folder"], tmp_path, output / "notes.txt")
    assert (output / "notes.txt").read_text() == "mine"


def test_refuses_a_model_without_a_config(tmp_path):
    torch.save(OriginalBridge(SHAPES, 4).state_dict(), tmp_path / "checkpoint.pt")
    sharer, receiver = write_pair(tmp_path, SHAPES)[1::2]
    (tmp_path / "empty").mkdir()
    checkpoint = str(tmp_path / "checkpoint.pt")
    for role, arguments in (
        ("sharer", ["--sharer", str(tmp_path / "empty"), "--receiver", receiver]),
        ("receiver", ["--sharer", sharer, "--receiver", str(tmp_path / "nowhere")]),
    ):
        assert_refused(
            ["--checkpoint", checkpoint, *arguments], [f"The {role}'s config cannot be read from"], tmp_path
        )


def test_leaves_nothing_behind_when_saving_fails(tmp_path):
    """The output's parent is a file: the whole conversion is done by then."""
    torch.save(OriginalBridge(SHAPES, 4).state_dict(), tmp_path / "checkpoint.pt")
    (tmp_path / "file").touch()
    arguments = [
        "--checkpoint",
        str(tmp_path / "checkpoint.pt"),
        *write_pair(tmp_path, SHAPES),
        "--num_attention_heads",
        "4",
    ]
    assert_refused(arguments, ["file"], tmp_path, tmp_path / "file" / "bridge")


def test_the_command_tells_a_mistake_in_one_line(tmp_path):
    torch.save({"bridge_state_dict": RunsCode()}, tmp_path / "checkpoint.pt")
    done = run_command(
        "--checkpoint", "checkpoint.pt", *write_pair(tmp_path, SHAPES), "--output", "bridge", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("h2c: The checkpoint checkpoint.pt is refused")
    assert not (tmp_path / "was_run").exists()
    assert not (tmp_path / "bridge").exists()
