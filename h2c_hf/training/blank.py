"""The adapter control: a bridge trained as any other, but with zeros instead of the Sharer's states."""

from dataclasses import dataclass

import torch

from ..data.examples import H2CCollator
from ..modeling import H2CBridgeConfig


@dataclass
class BlankSharerCollator(H2CCollator):
    """Adds `sharer_hidden_states`, all zero: same batches, masks and losses, nothing to learn of a Sharer."""

    config: H2CBridgeConfig

    def __call__(self, examples: list[dict]) -> dict:
        batch = super().__call__(examples)
        shape = (*batch["sharer_input_ids"].shape, self.config.sharer_hidden_size)
        blank = torch.zeros(1, 1, 1).expand(shape)  # one number in memory, whatever the shape
        return {**batch, "sharer_hidden_states": (blank,) * (self.config.sharer_num_hidden_layers + 1)}
