"""Load the weights of a bridge: from safetensors alone, whole, and with the hash that the Hub gives."""

import hashlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import cached_file


# Device maps that split a model by its layers. A bridge has none: all of its blocks are computed at once.
SPLITTING = ("auto", "balanced", "balanced_low_0", "sequential")


def check_hashes(folder: Path) -> None:
    """Compare weights in the Hub's cache, whose blobs are named by the SHA-256 that the Hub gives, with their
    names: the client checks their size alone. Other folders have no hashes to compare with.

    Raises:
        ValueError: for a file with another hash.
    """
    for path in folder.glob("model*.safetensors"):
        blob, digest = path.resolve(), hashlib.sha256()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            with blob.open("rb") as file:
                while chunk := file.read(2**24):
                    digest.update(chunk)
            if digest.hexdigest() != blob.name:
                raise ValueError(
                    f"{path} is damaged: its SHA-256 is not the Hub's; fetch it again with "
                    "force_download=True."
                )


class WeightsMixin:
    """`from_pretrained` of `H2CBridgeModel`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, from safetensors alone: a pickle can run code.

        Raises:
            ValueError: for weights that are truncated, pickled or incomplete, or not those that the Hub has
                the hash of.
        """
        with_info = kwargs.pop("output_loading_info", False)
        if isinstance(kwargs.get("device_map"), str) and kwargs["device_map"] in SPLITTING:
            kwargs["device_map"] = {"": torch.accelerator.current_accelerator() or "cpu"}
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"The safetensors file of {pretrained_model_name_or_path} is truncated or damaged ({error}); "
                "fetch or save it again."
            ) from error
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise ValueError(
                f"{pretrained_model_name_or_path} has no model.safetensors. Pickled weights (.bin, .pt) are "
                "not loaded; expected safetensors, which save_pretrained and h2c convert write."
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"The weights of {pretrained_model_name_or_path} lack {len(missing)} of the bridge's "
                f"{len(model.state_dict())} tensors: {', '.join(missing)}."
            )
        if pretrained_model_name_or_path is not None:  # else the weights are a state dict
            where = {
                name: kwargs[name] for name in ("cache_dir", "revision", "subfolder") if kwargs.get(name)
            }
            folder = Path(
                cached_file(pretrained_model_name_or_path, "config.json", local_files_only=True, **where)
            ).parent
            check_hashes(folder)
            model.config._folder = str(folder)
        model.requires_grad_()  # transformers makes parameters anew
        return (model, info) if with_info else model


__all__ = ["WeightsMixin"]
