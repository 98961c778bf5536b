import os
from pathlib import Path


# Tiny models run no faster on several threads, and nothing here may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from source import ATLAS_BRIDGE

from h2c_hf.modeling import H2CForCausalLM, H2CProcessor


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data that `H2C_REAL_DATA` names."""
    folder = os.environ.get("H2C_REAL_DATA")
    if not folder:
        pytest.skip(
            "H2C_REAL_DATA is not set: it names the folder of real MMLU questions, tokenizers and fact tables"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def atlas():
    """The Atlas pair that ships, with the bridge that ships, and its processor."""
    model = H2CForCausalLM.from_pretrained(ATLAS_BRIDGE, dtype=torch.float32)
    return model.eval(), H2CProcessor.from_pretrained(ATLAS_BRIDGE)
