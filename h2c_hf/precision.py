"""Which dtype a machine is to compute in.

A CPU without bfloat16 instructions (AMD before Zen 4, most Intel laptops) emulates them: on an AMD Milan the
product of two matrices of 2,048 rows took 200 times as long as in float32.
"""

import functools
import sys

import torch


def emulates_bfloat16(device: torch.device | str) -> bool:
    """Return whether a device is a CPU of which oneDNN says that it has no bfloat16 instructions."""
    if torch.device(device).type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def loaded_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    """Return the dtype to load models in: float32 for "auto" (or None) where there is no accelerator, and a
    CPU that emulates bfloat16. A dtype that is named stays."""
    if dtype not in (None, "auto") or torch.accelerator.is_available() or not emulates_bfloat16("cpu"):
        return dtype
    return torch.float32


@functools.cache  # once, though each stage of a run says it
def tell(change: str) -> None:
    """Print on stderr what is done instead of computing in bfloat16."""
    print(f"This CPU emulates bfloat16, which is slow: {change}.", file=sys.stderr, flush=True)
