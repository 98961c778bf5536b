"""A folder of the Sharer's hidden states, which `h2c precompute` writes once and training reads.

`store.json` says whose states they are. Each `<checksum>.safetensors` holds some prompts, each under a hash
over that and its token ids, (layers, length, sharer_hidden_size), with only the layers that the bridge reads.
A shard is named by the checksum of its bytes, so that a whole shard needs no other record.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_128

from ..atomic import write_text
from ..data.examples import H2CCollator
from ..pair import Pair
from .arguments import H2CArguments, H2CTrainingArguments


SCALE = ".scale"  # beside an fp8 tensor: (layers, length), fp32
CHUNK = 2**24  # bytes read at once for a checksum


class SharerStates:
    """The store in `folder`, of the Sharer that `identity` describes."""

    def __init__(self, folder: str | Path, identity: dict):
        self.folder, self.identity = Path(folder), identity
        self._salt = json.dumps(identity, sort_keys=True).encode()
        self._shard_of: dict[str, str] = {}  # by prompt
        self._opened = {}  # by shard; each process its own

    def __getstate__(self):
        return {**self.__dict__, "_opened": {}}  # a worker of a data loader opens its own

    @classmethod
    def open(cls, folder: str | Path, identity: dict, verify: bool = True) -> "SharerStates":
        """The store to train from. verify: read every shard once, for its checksum.

        Raises:
            ValueError: if there is none, it holds another Sharer's states, or a shard is damaged.
        """
        store = cls(folder, identity)
        if not (store.folder / "store.json").is_file():
            raise ValueError(
                f"{folder} holds no Sharer states (store.json); expected a folder that 'h2c precompute' "
                "wrote."
            )
        if damaged := store.scan(verify):
            raise ValueError(
                f"{len(damaged)} of {len(store.shards())} shards in {folder} are damaged, the first is "
                f"{damaged[0].name}: its bytes are not those of its checksum; 'h2c precompute' with the same "
                "config computes them again."
            )
        return store

    def scan(self, verify: bool = True) -> list[Path]:
        """Find the prompts that are stored; returns the shards that are damaged.

        Raises:
            ValueError: if the folder holds something else.
        """
        self._refuse_another()
        shards = tqdm(
            self.shards(), "Checking the Sharer states", unit="shard", disable=None if verify else True
        )
        damaged = [shard for shard in shards if verify and checksum(shard) != shard.stem]
        for shard in set(self.shards()) - set(damaged):
            keys = self._open(shard.name).keys()
            self._shard_of |= dict.fromkeys((key for key in keys if not key.endswith(SCALE)), shard.name)
        return damaged

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _refuse_another(self) -> None:
        record = self.folder / "store.json"
        if not record.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ValueError(
                    f"{self.folder} holds something else than Sharer states; expected a new or empty folder, "
                    "or a store."
                )
            return
        try:
            found = json.loads(record.read_text())
            different = [
                f"{name} is {found.get(name)!r}, expected {value!r}"
                for name, value in self.identity.items()
                if found.get(name) != value
            ]
        except (ValueError, AttributeError):
            raise ValueError(
                f"{record} is damaged; delete {self.folder} and run 'h2c precompute' again."
            ) from None
        if different:
            raise ValueError(
                f"{self.folder} holds other Sharer states than this config reads: {'; '.join(different)}. "
                "Expected a store of this config: 'h2c precompute' with another sharer_states folder writes "
                "one."
            )

    # Writing

    def begin(self, damaged: list[Path]) -> None:
        """Make the folder ready for writing: remove a killed run's half shard, and damaged shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [*damaged, *self.folder.glob("*.part")]:
            path.unlink()
        write_text(self.folder / "store.json", json.dumps(self.identity, indent=1) + "\n")

    def write(self, states: dict[str, torch.Tensor]) -> None:
        """Write a shard: states (layers, length, sharer_hidden_size) by prompt, as `missing` names them.

        Raises:
            OSError: if the disk is full; nothing half-written is left.
        """
        dtype = getattr(torch, self.identity["dtype"])
        tensors = {
            name: tensor for key, state in states.items() for name, tensor in pack(key, state, dtype).items()
        }
        # A shard is named by its checksum, so it is written before it has a name.
        temporary_path = self.folder / "shard.part"
        try:
            save_file(tensors, temporary_path)
            name = f"{checksum(temporary_path)}.safetensors"
            temporary_path.replace(self.folder / name)
        except (OSError, SafetensorError) as error:
            temporary_path.unlink(missing_ok=True)
            reason = " ".join(str(error).split())
            raise OSError(
                f"A shard could not be written to {self.folder}: {reason}; the {len(self.shards())} before "
                "it are kept, and the same command goes on from them."
            ) from error
        self._shard_of |= dict.fromkeys(states, name)

    # Reading

    def key(self, ids: list[int] | np.ndarray) -> str:
        """The name of a Sharer prompt: a hash over the store's identity and its token ids."""
        return xxh3_128(self._salt + np.asarray(ids, dtype="<i4").tobytes()).hexdigest()

    def missing(self, datasets: list[Dataset]) -> dict[str, np.ndarray]:
        """Token ids of the Sharer prompts that are not stored, by name; equal prompts once."""
        absent = {}
        for dataset in datasets:
            for row in dataset.select_columns("sharer_input_ids").with_format("numpy"):
                ids = np.asarray(row["sharer_input_ids"], dtype="<i4")
                if (key := self.key(ids)) not in self._shard_of:
                    absent[key] = ids
        return absent

    def read(self, ids: list[int]) -> torch.Tensor:
        """The states of one prompt, (layers, length, sharer_hidden_size)."""
        key = self.key(ids)
        return unpack(self._open(self._shard_of[key]), key)

    def size(self) -> tuple[int, int, int]:
        """Prompts, their tokens, bytes on the disk."""
        tokens = sum(self._open(shard).get_slice(key).get_shape()[1] for key, shard in self._shard_of.items())
        return len(self._shard_of), tokens, sum(shard.stat().st_size for shard in self.shards())

    def _open(self, shard: str):
        # Memory-mapped, its header parsed once: a prompt is read when it is asked for.
        if shard not in self._opened:
            self._opened[shard] = safe_open(self.folder / shard, framework="pt")
        return self._opened[shard]


def checksum(path: Path) -> str:
    digest = xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def pack(key: str, states: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors that hold `states` in a shard. fp8 has a scale for each token of each layer: a few are
    hundreds of times as large as the others."""
    if dtype != torch.float8_e4m3fn:
        return {key: states.to("cpu", dtype).contiguous()}
    scale = states.float().abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(dtype).max
    return {
        key: (states.float() / scale[..., None]).to("cpu", dtype).contiguous(),
        key + SCALE: scale.cpu().contiguous(),
    }


def unpack(shard: safe_open, key: str) -> torch.Tensor:
    states = shard.get_tensor(key)
    if states.dtype != torch.float8_e4m3fn:
        return states
    return (states.float() * shard.get_tensor(key + SCALE)[..., None]).to(torch.bfloat16)


def bytes_per_token(layers: int, hidden_size: int, dtype: str) -> int:
    """On the disk, names and headers aside."""
    dtype = getattr(torch, dtype)
    return layers * (hidden_size * dtype.itemsize + (4 if dtype == torch.float8_e4m3fn else 0))


@dataclass
class StoredStatesCollator(H2CCollator):
    """As `H2CCollator`, with the Sharer's states from `states` instead of its token ids."""

    states: SharerStates

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor | tuple[torch.Tensor | None, ...]]:
        """`sharer_hidden_states`: (batch, sharer length, sharer_hidden_size) by layer, None if not read."""
        batch = super().__call__(examples)
        batch.pop("sharer_input_ids")
        rows = [self.states.read(example["sharer_input_ids"]) for example in examples]
        hidden = [None] * self.states.identity["hidden_states"]
        for i, layer in enumerate(self.states.identity["layers"]):
            hidden[layer] = pad_sequence([row[i] for row in rows], batch_first=True, padding_side="left")
        return {**batch, "sharer_hidden_states": tuple(hidden)}


# Whose states they are


def states_identity(
    h2c: H2CArguments, training: H2CTrainingArguments, pair: Pair, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """All that the Sharer's states depend on beside the prompt, and how they are stored."""
    config = pair.bridge_config()
    base = pair.base("sharer")
    folder = Path(base.path)
    # A folder is known by what is in it, wherever it lies.
    revision = (
        weights_checksum(folder, base.gguf_file)
        if folder.is_dir()
        else getattr(pair.config("sharer"), "_commit_hash", None)
    )
    name = Path(h2c.sharer).name if folder.is_dir() else h2c.sharer
    return {
        "sharer": name if h2c.sharer_gguf_file is None else f"{name}/{h2c.sharer_gguf_file}",
        "revision": revision,
        "base_dtype": h2c.base_dtype,
        "quantization": h2c.sharer_quantization,
        "autocast": "bf16" if training.bf16 else "fp16" if training.fp16 else "none",
        "tokenizer": hashed([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]),
        "hidden_states": config.sharer_num_hidden_layers + 1,
        "layers": config.read_layers,
        "dtype": h2c.sharer_states_dtype,
    }


def hashed(content: list) -> str:
    return xxh3_128(json.dumps(content).encode()).hexdigest()


def weights_checksum(folder: Path, gguf_file: str | None = None) -> str:
    """A checksum over a model's config and weights, or over its GGUF file."""
    if gguf_file is not None:
        return checksum(folder / gguf_file)
    files = sorted(
        path
        for path in folder.iterdir()
        if path.name == "config.json" or path.suffix in (".safetensors", ".bin")
    )
    return hashed([(path.name, checksum(path)) for path in files])


def open_states(
    h2c: H2CArguments,
    training: H2CTrainingArguments,
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    datasets: list[Dataset],
) -> SharerStates:
    """The store that `sharer_states` names, with all prompts of `datasets` in it.

    Raises:
        ValueError: if it is stale, damaged or incomplete.
    """
    identity = states_identity(h2c, training, pair, tokenizer)
    with training.main_process_first(desc="checking the Sharer states"):
        store = SharerStates.open(h2c.sharer_states, identity, verify=training.local_process_index == 0)
    if absent := store.missing(datasets):
        raise ValueError(
            f"{h2c.sharer_states} lacks {len(absent):,} of this config's Sharer prompts: the data changed, "
            "or 'h2c precompute' did not finish; run it with this config to add them."
        )
    return store
