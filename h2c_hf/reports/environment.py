"""The environment of a report: libraries, hardware, and the commit of this code."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


LIBRARIES = (
    "h2c_hf", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "bitsandbytes",
    "numpy", "scipy", "statsmodels", "pyarrow",
)  # fmt: skip


def environment() -> dict[str, str | None]:
    """Python, machine, accelerators, git commit ('+': files were changed since; or None), versions."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "accelerators": ", ".join(gpus) or "none",
        "git_commit": git_commit(),
        **{library: _version(library) for library in LIBRARIES},
    }


def git_commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
