"""Read from the configs of two base models what a bridge's config says of them: ids, commits and shapes."""

import copy
import os
import re

from transformers import PreTrainedConfig
from transformers.utils import cached_file


def record_commit(
    config: PreTrainedConfig, revision: str | None = None, filename: str = "config.json", **hub
) -> PreTrainedConfig:
    """Note in `config._commit_hash` at which commit it was read, as transformers itself did before 5.24.

    Args:
        filename: a file of the repo that was read already; a GGUF repo has no config.json.
        revision, hub: the arguments of its loading (`cache_dir`, `subfolder`, `token` ...). A folder that is
            no Hub cache has no commit.
    """
    if getattr(config, "_commit_hash", None) is None and config._name_or_path:
        path = cached_file(
            config._name_or_path, filename, revision=revision, **hub,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )  # fmt: skip
        found = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", path or "")
        config._commit_hash = found[1] if found else None
    return config


def location(config: PreTrainedConfig) -> str | None:
    """Return the Hub id of a base model, or the absolute path of its folder: valid in any directory."""
    name = config._name_or_path
    return os.path.abspath(name) if name and os.path.isdir(name) else name or None


def is_hub_id(name: str) -> bool:
    """Return whether `name` can be the id of a Hub repo, and is no path."""
    return (
        re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None
        and ".." not in name
        and not os.path.isdir(name)
    )


def pair_values(sharer_config: PreTrainedConfig, receiver_config: PreTrainedConfig) -> dict:
    """The fields of a bridge's config that say which two models it joins."""
    sharer = sharer_config.get_text_config(decoder=True)
    receiver = receiver_config.get_text_config(decoder=True)
    return {
        "sharer_model_id": location(sharer_config),
        "sharer_revision": getattr(sharer_config, "_commit_hash", None),
        "receiver_model_id": location(receiver_config),
        "receiver_revision": getattr(receiver_config, "_commit_hash", None),
        "sharer_hidden_size": sharer.hidden_size,
        "sharer_num_hidden_layers": depth(sharer),
        "receiver_num_hidden_layers": depth(receiver),
        **text_values(receiver_config),
        **cache_shape(receiver),
    }


def depth(config: PreTrainedConfig) -> int:
    """Return the number of a decoder's layers. (Whisper's `num_hidden_layers` counts the encoder's.)"""
    of_encoder = config.attribute_map.get("num_hidden_layers") == "encoder_layers"
    return config.decoder_layers if of_encoder else config.num_hidden_layers


def text_values(receiver_config: PreTrainedConfig) -> dict:
    """Return the fields that any model's config has, of the Receiver: it writes the text."""
    receiver = receiver_config.get_text_config(decoder=True)
    names = ("vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id")
    return {
        **{name: getattr(receiver, name, None) for name in names},
        "receiver_max_position_embeddings": getattr(receiver, "max_position_embeddings", None),
    }


def cache_shape(receiver: PreTrainedConfig) -> dict:
    """Return the heads and the width of a Receiver's keys.

    Raises:
        ValueError: if it has none, or layers of different widths.
    """
    try:
        heads = receiver.num_attention_heads
        key_value_heads = getattr(receiver, "num_key_value_heads", None) or heads
        head_dim = getattr(receiver, "head_dim", None) or receiver.hidden_size // heads
    except Exception as error:  # a model without attention, or with other values for each layer
        raise ValueError(
            f"A model with a {type(receiver).__name__} cannot be the Receiver: {str(error).split('. ')[0]}"
        ) from error
    if receiver.model_type == "falcon":
        key_value_heads = (
            receiver.num_kv_heads
            if receiver.new_decoder_architecture
            else 1
            if receiver.multi_query
            else heads
        )
    return {"receiver_num_key_value_heads": key_value_heads, "receiver_head_dim": head_dim}


def rope_values(receiver_config: PreTrainedConfig) -> dict:
    """Return the fields of a bridge's config that say how the Receiver rotates its keys."""
    receiver = receiver_config.get_text_config(decoder=True)
    rope = getattr(receiver, "rope_parameters", None)
    by_type = bool(rope) and "rope_type" not in rope and "rope_theta" not in rope
    return {
        "receiver_rope_parameters": copy.deepcopy(rope) or None,
        "receiver_layer_types": list(receiver.layer_types) if by_type else None,
    }


def heads_that_divide(pair: dict, most: int) -> int:
    """The largest number of heads, up to `most`, that divides the Receiver's flattened width."""
    size = pair["receiver_num_key_value_heads"] * pair["receiver_head_dim"]
    return next(heads for heads in range(min(most, size), 0, -1) if size % heads == 0)
