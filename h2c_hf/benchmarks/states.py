"""Training from a store of Sharer states against training live, side by side in one process: seconds an
epoch, disk, and when it pays. The Sharer is a Llama with random weights, as many times heavier than the
Receiver as it is told to be."""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

from ..atlas import MODELS
from ..atlas.questions import atlas_questions
from ..data.examples import H2CCollator, encode_questions
from ..data.tokenizers import load_tokenizer
from ..modeling import H2CForCausalLM, H2CProcessor
from ..training.arguments import H2CTrainingArguments
from ..training.precompute import compute
from ..training.sharer_states import SharerStates, StoredStatesCollator, bytes_per_token
from ..training.trainer import H2CTrainer


SHARD_BYTES = 2**28


@dataclass
class StatesReport:
    """Seconds by round; after `epochs_to_pay` the store has won back the time of writing it."""

    sharer_parameters: int
    prompts: int
    tokens: int
    bytes_per_token: int
    mb_per_thousand_tokens: float
    precompute_seconds: float
    live_seconds: list[float]
    stored_seconds: list[float]
    live_losses: list[float]
    stored_losses: list[float]
    speedup: float
    epochs_to_pay: float

    def __str__(self) -> str:
        def spread(seconds):
            return (
                f"{min(seconds):.1f} / {median(seconds):.1f} / {max(seconds):.1f} s an epoch "
                f"(min / median / max of {len(seconds)})"
            )

        difference = max(
            abs(live - stored) for live, stored in zip(self.live_losses, self.stored_losses, strict=True)
        )
        return "\n".join(
            [
                f"Sharer of {self.sharer_parameters / 1e6:,.0f} M parameters; {self.prompts:,} prompts of "
                f"{self.tokens:,} tokens",
                f"  live      {spread(self.live_seconds)}",
                f"  stored    {spread(self.stored_seconds)}: {self.speedup:.2f} x as fast",
                f"  writing   {self.precompute_seconds:.1f} s, won back after {self.epochs_to_pay:.2f} "
                "epochs",
                f"  disk      {self.mb_per_thousand_tokens:.3f} MB per thousand tokens "
                f"({self.bytes_per_token:,} bytes a token by formula)",
                f"  losses    differ by at most {difference:.1e} over the {len(self.live_losses)} steps of "
                "the first epoch",
            ]
        )


def measure_states(
    examples: int = 256,
    hidden_size: int = 1024,
    layers: int = 12,
    rounds: int = 3,
    batch_size: int = 16,
    dtype: str = "bfloat16",
) -> StatesReport:
    """Write the states of Atlas questions, then train an epoch live and one from the store, in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = H2CProcessor(*(load_tokenizer(MODELS / role) for role in ("sharer", "receiver")))
    receiver = AutoModelForCausalLM.from_pretrained(MODELS / "receiver", dtype=torch.float32)
    sharer = random_sharer(hidden_size, layers, len(processor.sharer_tokenizer))
    dataset = encode_questions(processor, atlas_questions("train")[:examples])
    with tempfile.TemporaryDirectory() as directory:

        def trainer(sharer, collator) -> H2CTrainer:
            set_seed(0)
            arguments = H2CTrainingArguments(
                output_dir=directory, num_train_epochs=1, per_device_train_batch_size=batch_size,
                report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
                use_cpu=device.type == "cpu", dataloader_pin_memory=device.type != "cpu",
            )  # fmt: skip
            model = H2CForCausalLM.from_pair(sharer, receiver, bridge_form="rewrite")
            return H2CTrainer(model, arguments, processor, train_dataset=dataset, data_collator=collator)

        live = trainer(sharer, H2CCollator(processor))
        identity = {
            "layers": live.model.bridge.read_layers,
            "hidden_states": live.model.config.sharer_num_hidden_layers + 1,
            "dtype": dtype,
        }
        store = SharerStates(Path(directory) / "states", identity)
        store.begin([])
        token_bytes = bytes_per_token(len(identity["layers"]), hidden_size, dtype)
        start = time.perf_counter()
        compute(live.model, store, store.missing([dataset]), batch_size, SHARD_BYTES // token_bytes)
        precompute_seconds = time.perf_counter() - start
        stored = trainer(sharer.config, StoredStatesCollator(processor, store))
        seconds, curves = {"live": [], "stored": []}, {}
        for round in range(rounds):
            for name, run in (("live", live), ("stored", stored)):
                set_seed(round)  # the same dropout, so that the losses can be compared
                seconds[name].append(run.train().metrics["train_runtime"])
                # Of the first round: both bridges are the same at its start.
                curves.setdefault(name, [entry["loss"] for entry in run.state.log_history if "loss" in entry])
        prompts, tokens, size = store.size()
    saved = median(seconds["live"]) - median(seconds["stored"])
    return StatesReport(
        sharer_parameters=sharer.num_parameters(), prompts=prompts, tokens=tokens,
        bytes_per_token=token_bytes, mb_per_thousand_tokens=size / tokens / 1e3,
        precompute_seconds=precompute_seconds, live_seconds=seconds["live"], stored_seconds=seconds["stored"],
        live_losses=curves["live"], stored_losses=curves["stored"],
        speedup=median(seconds["live"]) / median(seconds["stored"]),
        epochs_to_pay=precompute_seconds / saved if saved > 0 else float("inf"),
    )  # fmt: skip


def random_sharer(hidden_size: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden_size, intermediate_size=4 * hidden_size,
        num_hidden_layers=layers, num_attention_heads=hidden_size // 64, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py states", description=__doc__)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--hidden_size", type=int, default=1024, help="of the Sharer; a multiple of 64")
    parser.add_argument("--layers", type=int, default=12, help="of the Sharer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float8_e4m3fn"], default="bfloat16")
    parser.add_argument("--json", help="write the figures into this file as well")
    options = vars(parser.parse_args(arguments))
    path = options.pop("json")
    report = measure_states(**options)
    print(report)
    if path:
        Path(path).write_text(json.dumps(asdict(report), indent=1) + "\n")
    return 0
