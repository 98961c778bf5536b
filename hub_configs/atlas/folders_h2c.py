"""Base models that lie in a bridge's own repo."""

import os
import shutil
import warnings
from pathlib import Path

from transformers import PreTrainedConfig


def copy_base_models(
    config: PreTrainedConfig, source: str | os.PathLike | None, target: str | os.PathLike
) -> None:
    """Copy base models that lie in a bridge's own repo (`"./name"`) along, or warn that they are missing."""
    for role in ("sharer", "receiver"):
        model_id = getattr(config, f"{role}_model_id") or ""
        name = model_id[2:]
        if not model_id.startswith("./") or Path(name).name != name or (Path(target) / name).exists():
            continue
        if source and (Path(source) / name).is_dir():
            shutil.copytree(Path(source) / name, Path(target) / name)
        else:
            warnings.warn(
                f"{role}_model_id is {model_id!r}, and there is no folder {name} to copy into {target}: put "
                f"the model there, or pass {role}=MODEL_OR_ID when you load the bridge.",
                stacklevel=3,
            )


__all__ = ["copy_base_models"]
