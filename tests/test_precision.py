"""`h2c_hf.precision`: what is computed in float32 where a CPU would emulate bfloat16."""

import pytest
import torch

from h2c_hf.precision import emulates_bfloat16, loaded_dtype, tell
from h2c_hf.training.arguments import parse


RUN = ["atlas", "--bf16", "true", "--base_dtype", "bfloat16", "--use_cpu", "true"]


@pytest.fixture(params=[False, True])
def native(request, monkeypatch) -> bool:
    """Whether oneDNN has bfloat16 on this CPU: both are tried on any machine."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    tell.cache_clear()
    return request.param


def test_an_emulating_cpu_is_told_from_other_devices(native):
    assert emulates_bfloat16("cpu") is not native
    assert not emulates_bfloat16("cuda")


def test_auto_is_float32_where_bfloat16_is_emulated(native):
    assert loaded_dtype("auto") == ("auto" if native else torch.float32)
    assert loaded_dtype(None) == (None if native else torch.float32)
    assert loaded_dtype("bfloat16") == "bfloat16"


def test_a_run_computes_in_float32_where_bfloat16_is_emulated_and_says_so_once(native, capsys):
    for _ in range(2):
        h2c, training = parse(RUN, "h2c train")
    assert (training.bf16, training.mixed_precision) == ((True, "bf16") if native else (False, "no"))
    assert h2c.base_dtype == ("bfloat16" if native else "float32")
    assert capsys.readouterr().err.count("This CPU emulates bfloat16") == (0 if native else 1)
