"""`h2c convert`: original bridge checkpoints to the Hub layout.

The original keeps two modules a layer, `key_modifiers.{t}` and `value_modifiers.{t}`, t counted from the top
layer down; here all blocks are stacked, from the bottom up (see `H2CBridgeModel`). The values are the same.
"""

import pickle
import re
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig

from ..atomic import atomic
from ..hints import next_commands
from ..modeling import H2CBridgeConfig, H2CBridgeModel


BLOCK = re.compile(r"(key|value)_modifiers\.(\d{1,6})\.(.+)")
NORMS = ("norm_receiver", "norm_sharer", "norm_ffn")
LINEARS = {"attn.out_proj": "o_proj", "ffn.0": "ffn_in", "ffn.3": "ffn_out"}


class ConversionError(ValueError):
    """The checkpoint, the pair or the output cannot be used; the message is one sentence."""


def convert(
    checkpoint: str | Path, sharer: str, receiver: str, output: str | Path, num_attention_heads: int = 16
) -> H2CBridgeModel:
    """Convert an original checkpoint to a folder that
    `AutoModel.from_pretrained(output, trust_remote_code=True)` loads.

    Args:
        checkpoint: a torch file, or safetensors; see `read_checkpoint`.
        sharer, receiver: Hub ids or folders of the pair; only their configs are read.
        output: the folder to make. It appears whole or not at all.
        num_attention_heads: of the blocks' cross-attention; the checkpoint's shapes do not tell.

    Raises:
        ConversionError: if the checkpoint cannot be read or does not fit the pair, or `output` exists and is
            not empty.
    """
    output = Path(output).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConversionError(f"The output {output} exists and is not an empty folder.")
    state = read_checkpoint(checkpoint)
    config = pair_config(state, sharer, receiver, num_attention_heads)
    with torch.device("meta"):
        model = H2CBridgeModel(config)
    model.load_state_dict(stack_blocks(state, config), assign=True)

    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as temporary_path:
        model.save_pretrained(temporary_path)
    return model


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The original bridge's state dict.

    Args:
        path: safetensors (keys as they are, or under `state.`, beside which others may stand), or a torch
            file: the state dict, or a dict that holds it as `bridge_state_dict`. No code in it is run.

    Raises:
        ConversionError: if the file is not there, not whole, needs code to be read, or holds no bridge.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"The checkpoint {path} is not a file.")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise ConversionError(
                f"The checkpoint {path} is not a whole safetensors file: {_one_line(error)}"
            ) from error
        if any(key.startswith("state.") for key in state):
            state = {
                key.removeprefix("state."): tensor
                for key, tensor in state.items()
                if key.startswith("state.")
            }
    else:
        state = _read_torch_file(path)
    if not any(BLOCK.fullmatch(key) for key in state):
        raise ConversionError(
            f"The checkpoint {path} holds no bridge: no key_modifiers.* or value_modifiers.*, got "
            f"{_some(state)}."
        )
    return state


def _read_torch_file(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about foreign formats, which end in an error here
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        # torch's own messages go on to recommend weights_only=False: they are not passed on.
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            why = (
                f"reading it would run code from the file ({named.group(1)})"
                if named
                else "it is no torch file, or one that runs code"
            )
            raise ConversionError(
                f"The checkpoint {path} is refused: {why}; expected tensors in plain dicts, as "
                "torch.save(bridge_state_dict, file) writes them."
            ) from error
        except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise ConversionError(
                f"The checkpoint {path} is not a whole torch file: damaged, cut short, or of another format."
            ) from error
    state = state.get("bridge_state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise ConversionError(f"The checkpoint {path} holds a {type(state).__name__}; expected a state dict.")
    wrong = [
        key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]
    if wrong:
        raise ConversionError(
            f"The checkpoint {path} is no state dict: expected a tensor under each name, not so for "
            f"{_some(wrong)}."
        )
    return state


def pair_config(
    state: dict[str, torch.Tensor], sharer: str, receiver: str, num_attention_heads: int = 16
) -> H2CBridgeConfig:
    """The config of an original bridge between two models, checked against its state dict, shape by shape.

    Raises:
        ConversionError: if a model's config cannot be read, a key is missing or unknown, or a shape is not
            the pair's.
    """
    configs = {role: _model_config(role, name) for role, name in (("sharer", sharer), ("receiver", receiver))}
    matches = {key: BLOCK.fullmatch(key) for key in state}
    unknown = [key for key, match in matches.items() if not match]
    if unknown:
        raise ConversionError(f"The checkpoint has {len(unknown)} unknown keys: {_some(unknown)}.")
    # Revisions stay open: the checkpoint does not say which the bridge was trained on; today's may be others.
    overrides = {
        "sharer_revision": None,
        "receiver_revision": None,
        "num_attention_heads": num_attention_heads,
    }
    for role, name in (("sharer", sharer), ("receiver", receiver)):
        # In a bridge's config "./name" means a folder inside its repo.
        overrides[f"{role}_model_id"] = str(Path(name).resolve()) if Path(name).is_dir() else name
    size = state.get("key_modifiers.0.norm_receiver.weight", torch.empty(0)).numel()
    inner = state.get("key_modifiers.0.ffn.0.bias", torch.empty(0)).numel()
    if size and inner % size == 0:
        overrides["ffn_multiplier"] = max(1, inner // size)
    try:
        config = H2CBridgeConfig.published(*configs.values(), **overrides)
    except (ValueError, AttributeError) as error:
        raise ConversionError(f"There is no bridge for this pair: {_one_line(error)}") from error

    layers, needed = 1 + max(int(match.group(2)) for match in matches.values()), len(config.alignment)
    if layers != needed:
        raise ConversionError(
            f"The checkpoint bridges {layers} layers and this pair {needed} (the smaller of the sharer's "
            f"{config.sharer_num_hidden_layers} and the receiver's {config.receiver_num_hidden_layers})."
        )
    for name, what, expected in (
        ("norm_sharer", "the sharer's hidden_size", config.sharer_hidden_size),
        ("norm_receiver", "the receiver's key-value heads x head_dim", config.receiver_size),
    ):
        got = state.get(f"key_modifiers.0.{name}.weight", torch.empty(expected)).numel()
        if got != expected:
            raise ConversionError(
                f"The checkpoint was made for {got} as {what}, and in this pair it is {expected}."
            )

    expected = original_shapes(config)
    for what, keys in (
        ("lacks", expected.keys() - state.keys()),
        ("has unknown keys, among", state.keys() - expected.keys()),
    ):
        if keys:
            raise ConversionError(
                f"The checkpoint {what} {len(keys)} of {len(expected)} keys: {_some(sorted(keys))}."
            )
    for key, shape in expected.items():
        tensor = state[key]
        got = tuple(tensor.shape) or (1,)
        if got != shape:
            raise ConversionError(f"The checkpoint's {key} has shape {got}; expected {shape} for this pair.")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise ConversionError(
                f"The checkpoint's {key} holds {tensor.dtype} ({tensor.layout}); expected plain "
                "floating-point values."
            )
    return config


def original_shapes(config: H2CBridgeConfig) -> dict[str, tuple[int, ...]]:
    """Every key of the original state dict of this pair, with its shape."""
    size = config.receiver_size
    hidden = config.sharer_hidden_size
    inner = config.ffn_multiplier * config.receiver_size
    block = {"gate": (1,), "attn.in_proj_bias": (3 * size,)}
    for norm, width in zip(NORMS, (size, hidden, size), strict=True):
        block |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for linear, shape in zip(LINEARS, ((size, size), (inner, size), (size, inner)), strict=True):
        block |= {f"{linear}.weight": shape, f"{linear}.bias": shape[:1]}
    # nn.MultiheadAttention keeps one matrix where queries and keys are equally wide, else three.
    if hidden == size:
        block["attn.in_proj_weight"] = (3 * size, size)
    else:
        block |= {
            "attn.q_proj_weight": (size, size),
            "attn.k_proj_weight": (size, hidden),
            "attn.v_proj_weight": (size, hidden),
        }
    return {
        f"{kind}_modifiers.{t}.{name}": shape
        for t in range(len(config.alignment))
        for kind in ("key", "value")
        for name, shape in block.items()
    }


def stack_blocks(state: dict[str, torch.Tensor], config: H2CBridgeConfig) -> dict[str, torch.Tensor]:
    """The original's state dict as that of `H2CBridgeModel`: blocks are the first dimension of parameters.

    Gates come out in fp32, the rest in the widest dtype of the checkpoint.
    """
    top = config.receiver_num_hidden_layers - 1
    blocks = [
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for layer, _ in config.alignment
        for prefix in (f"key_modifiers.{top - layer}.", f"value_modifiers.{top - layer}.")
    ]
    size = config.receiver_size
    for block in blocks:
        if "attn.in_proj_weight" in block:
            names = ("attn.q_proj_weight", "attn.k_proj_weight", "attn.v_proj_weight")
            block |= dict(zip(names, block["attn.in_proj_weight"].split(size), strict=True))

    def stacked(*names: str) -> torch.Tensor:
        return torch.stack([torch.cat([block[name] for name in names]) for block in blocks])

    bias = stacked("attn.in_proj_bias")
    result = {
        "q_proj.weight": stacked("attn.q_proj_weight"), "q_proj.bias": bias[:, :size].contiguous(),
        "kv_proj.weight": stacked("attn.k_proj_weight", "attn.v_proj_weight"),
        "kv_proj.bias": bias[:, size:].contiguous(),
    }  # fmt: skip
    for original, name in {**{norm: norm for norm in NORMS}, **LINEARS}.items():
        result |= {f"{name}.{kind}": stacked(f"{original}.{kind}") for kind in ("weight", "bias")}
    dtype = result["q_proj.weight"].dtype
    for tensor in result.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    gates = torch.stack([block["gate"].reshape(()) for block in blocks])
    return {**{name: tensor.to(dtype) for name, tensor in result.items()}, "gate": gates.float()}


def _model_config(role: str, name: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(
            f"The {role}'s config cannot be read from {name!r}: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    """An error's first paragraph, on one line."""
    return " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__


def _some(keys) -> str:
    """The first few of many keys."""
    keys = [str(key) for key in keys]
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "") or "none"


def main(arguments: list[str] | None = None) -> int:
    """`h2c convert`."""
    from .parsers import convert as parser

    options = parser().parse_args(arguments)
    model = convert(**vars(options))
    print(
        f"{len(model.alignment)} layers, {model.num_parameters():,} parameters, written to {options.output}"
    )
    next_commands(f"h2c push {options.output} USER/NAME --dry_run")
    return 0
