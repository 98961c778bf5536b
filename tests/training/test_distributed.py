"""FSDP2 as `hub_configs/accelerate/8gpu_fsdp2.yaml` sets it up, trained by two gloo processes on CPU."""

import json
import sys

import pytest
import yaml
from safetensors.torch import load_file
from test_runs import ROOT, losses, train


# accelerate makes FSDP of ACCELERATE_USE_FSDP on accelerators only: AcceleratorState.__init__ leaves
# MULTI_CPU as it is, which is mended here. What each rank has sharded is written down.
ON_CPU = """
import json, os, sys
import accelerate.state
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from h2c_hf.cli import main
from h2c_hf.training.trainer import H2CTrainer
init, checkpoint = accelerate.state.AcceleratorState.__init__, H2CTrainer._save_checkpoint
def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
def noted(self, model, trial):
    sharded = [name for name, parameter in self.model.named_parameters() if isinstance(parameter, DTensor)]
    with open(f"{self.args.output_dir}/rank{self.args.process_index}.json", "w") as file:
        json.dump(sharded, file)
    checkpoint(self, model, trial)
accelerate.state.AcceleratorState.__init__ = with_fsdp
H2CTrainer._save_checkpoint = noted
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_fsdp2_shards_the_bridge_alone_and_trains_as_one_process(tmp_path):
    config = yaml.safe_load((ROOT / "hub_configs/accelerate/8gpu_fsdp2.yaml").read_text())["fsdp_config"]
    environment = {
        "ACCELERATE_USE_FSDP": "true",
        "PYTHONPATH": str(ROOT),
        **{name.upper(): str(value) for name, value in config.items()},
    }
    (tmp_path / "on_cpu.py").write_text(ON_CPU)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        str(tmp_path / "on_cpu.py"),
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    # Drawn at random, since batches of like lengths are other batches where two ranks share them.
    options = ("--dropout=0.0", "--train_sampling_strategy=random")
    train(one, *options)
    train(two, *options, "--per_device_train_batch_size=4", command=torchrun, **environment)
    assert len(losses(two)) == 6
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)

    bridge = {name: tensor.shape for name, tensor in load_file(one / "model.safetensors").items()}
    for rank in range(2):
        assert sorted(json.loads((two / f"rank{rank}.json").read_text())) == sorted(bridge)
    for folder in (two, two / "checkpoint-6"):
        assert {
            name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()
        } == bridge
    train(tmp_path / "further", f"--init_from={two / 'checkpoint-6'}", "--max_steps=1")
