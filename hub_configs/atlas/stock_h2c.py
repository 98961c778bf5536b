"""Methods of every transformers model, answered for a composite of a Sharer, a bridge and a Receiver."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from .families_h2c import backbone, check_recomputable


ROLES = ("sharer", "receiver")
# Arguments of stock models that the composite makes itself.
MADE_HERE = {
    "inputs_embeds": "expected input_ids: both models and the bridge read whole prompts as token ids.",
    "position_ids": "expected none: positions are counted from attention_mask, as the bridged cache counts "
    "them.",
}


class StockMixin:
    """Overrides of `PreTrainedModel` and `GenerationMixin` for `H2CForCausalLM`."""

    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    config: PreTrainedConfig
    sharer: PreTrainedModel | None
    receiver: PreTrainedModel

    def get_decoder(self) -> PreTrainedModel:
        """The Receiver's."""
        return (
            self.receiver.get_decoder()
            if self.receiver.get_decoder() is not self.receiver
            else backbone(self.receiver)
        )

    def get_input_embeddings(self):
        return self.receiver.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Set the Receiver's, which are not saved with the bridge."""
        self.receiver.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.receiver.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        """Set the Receiver's, which are not saved with the bridge."""
        self.receiver.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ):
        """Return the Receiver's input embeddings.

        Raises:
            ValueError: for another size than they have. The Receiver is not saved with the bridge.
        """
        embeddings = self.get_input_embeddings()
        size = embeddings.weight.shape[0]
        wanted = size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted != size:
            raise ValueError(
                f"Got {wanted} tokens, and the Receiver's embeddings have {size}; a base model is not saved "
                "with the bridge. Resize and save the Receiver first, then join it with "
                "H2CForCausalLM.from_pair."
            )
        return embeddings

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """Set the attention implementation of both base models, or of those that a dict names:
        `{"sharer": ..., "receiver": ...}`. The bridge has one only; its config repeats the models' common
        one."""
        for role, implementation in by_role(attn_implementation).items():
            model = getattr(self, role)
            if (
                implementation is not None
                and model is not None
                and model.config._attn_implementation != implementation
            ):
                model.set_attn_implementation(implementation, *args, **kwargs)
        if isinstance(attn_implementation, str):
            self.config._attn_implementation = attn_implementation

    def generate_batch(self, *args, **kwargs):
        """
        Raises:
            NotImplementedError: continuous batching fills a paged cache, which a bridge does not rewrite.
        """
        raise NotImplementedError(
            "Continuous batching fills a paged cache, and a bridge rewrites a DynamicCache; use generate "
            "with a left-padded batch."
        )

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    def enable_input_require_grads(self) -> None:
        """Nothing to do: gradients come through the bridged cache."""

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, every_n_layers: int = 1
    ) -> None:
        """Compute the layers of the Receiver's target pass again in the backward pass. (The bridge always
        does so, and all else has no backward pass.)

        Raises:
            ValueError: if the Receiver's layers are not a plain list.
        """
        if enable:
            check_recomputable(self.receiver)
        self.gradient_checkpointing = enable
        self._recomputation = (gradient_checkpointing_func, every_n_layers)


def by_role(value) -> dict:
    """Return a setting for either base model, from one for both or a dict of some.

    Raises:
        ValueError: for a dict with other names.
    """
    if not isinstance(value, dict):
        return dict.fromkeys(ROLES, value)
    if unknown := sorted(map(str, value.keys() - set(ROLES))):
        raise ValueError(
            f"Got a setting for {', '.join(unknown)}; expected one for sharer, receiver or both."
        )
    return {role: value.get(role) for role in ROLES}


def check_arguments(input_ids: torch.Tensor | None, arguments: dict) -> None:
    """
    Raises:
        ValueError: for arguments that the composite makes itself, and for no prompt.
    """
    for name, reason in MADE_HERE.items():
        if arguments.pop(name, None) is not None:
            raise ValueError(f"{name} is given; {reason}")
    if input_ids is None:
        raise ValueError("input_ids is missing: got None, expected the Receiver's prompt (batch, length).")


def second_position(attention_mask, generation_config: GenerationConfig | None) -> tuple:
    """Return the mask and the generation config, which is second in stock's `generate(ids, config)`."""
    if not isinstance(attention_mask, GenerationConfig):
        return attention_mask, generation_config
    if generation_config is not None:
        raise ValueError("Got two generation configs, one of them as the second argument; expected one.")
    return None, attention_mask


__all__ = ["StockMixin", "by_role", "check_arguments", "second_position"]
