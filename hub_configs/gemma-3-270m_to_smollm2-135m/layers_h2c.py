"""Layers of a bridge: norms and linear maps of all blocks, stacked so that one batched matmul serves many."""

import torch
import torch.nn.functional as F
from torch import nn


EPSILON = 1e-5  # of every layer norm, as in the original


def normalized(x: torch.Tensor) -> torch.Tensor:
    """A layer norm without its affine part."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def inverse_deviation(x: torch.Tensor) -> torch.Tensor:
    """Return 1 / sqrt(var + eps) for each row, in fp32, with var = E[x^2] - E[x]^2.

    Two passes that only read are faster than one that writes. Inaccurate if abs(mean) > 100 std; hidden
    states have means around zero.
    """
    mean = x.sum(-1, dtype=torch.float32) / x.shape[-1]
    variance = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).square() / x.shape[-1] - mean.square()
    return (variance.clamp(min=0) + EPSILON).rsqrt()


class StackedNorm(nn.Module):
    """The affine parameters of `blocks` layer norms."""

    def __init__(self, blocks: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(blocks, size))
        self.bias = nn.Parameter(torch.zeros(blocks, size))
        self.folded = False  # into the linear layer that follows

    def forward(self, x: torch.Tensor, group: slice) -> torch.Tensor:
        """x: (blocks of the group, tokens, size)."""
        x = normalized(x)
        return x if self.folded else torch.addcmul(self.bias[group, None], x, self.weight[group, None])

    def folded_into(self, linear: "StackedLinear", group: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `linear`'s weight and bias with this norm folded in: divide inputs by their std only."""
        weight, bias = linear.weight[group], linear.bias[group]
        if self.folded:
            return weight, bias
        bias = torch.baddbmm(bias[:, :, None], weight, self.bias[group, :, None])[:, :, 0]
        weight = weight * self.weight[group, None]
        return weight - weight.mean(-1, keepdim=True), bias


class StackedLinear(nn.Module):
    """`blocks` linear layers as one batched matmul; weight: (blocks, out, in), as `nn.Linear` has it."""

    def __init__(self, blocks: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(blocks, out_features))

    def forward(self, x: torch.Tensor, group: slice) -> torch.Tensor:
        """x: (blocks of the group, tokens, in) -> (blocks of the group, tokens, out)."""
        return torch.baddbmm(self.bias[group, None], x, self.weight[group].transpose(1, 2))


__all__ = ["StackedLinear", "StackedNorm", "inverse_deviation", "normalized"]
