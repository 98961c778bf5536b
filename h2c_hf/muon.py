"""Muon (Jordan et al., 2024), as `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``, but for three
things: a parameter may be a stack of matrices, as a bridge's are; the work may be in float32, where torch's
is in bfloat16, which a CPU without it computes fifty times slower; and AdamW is in the same optimizer, since
the Trainer has one."""

from collections.abc import Callable

import torch


COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, with the number of its steps
STEPS = 5


class Muon(torch.optim.AdamW):
    """AdamW; in groups of which ``muon`` is true, the momentum of each matrix, made orthogonal, is the step.

    The step has the size of AdamW's, so one learning rate serves both. Rare words are learned in fewer steps
    than by AdamW alone (`docs/ablation.md`).
    """

    def __init__(
        self, params: list[dict], momentum: float = 0.95, dtype: torch.dtype = torch.float32, **adamw
    ):
        """
        Args:
            params: groups. One that does not say ``muon`` is split: stacks of matrices, with three
                dimensions, become a group with it.
            momentum, dtype: of the groups with ``muon``; the work on their matrices is in ``dtype``.
            adamw: the arguments of `torch.optim.AdamW`.
        """
        super().__init__([part for group in params for part in split(group)], **adamw)
        self.momentum, self.dtype = momentum, dtype

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for matrix in group["params"] if group["muon"] else []:
                if matrix.grad is not None:
                    self._step(matrix, group["lr"], group["weight_decay"])
        return loss

    def _step(self, matrix: torch.Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[matrix]
        if not state:  # AdamW's names: its `load_state_dict` reads "step" of every parameter
            state["step"], state["exp_avg"] = torch.tensor(0.0), torch.zeros_like(matrix)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(matrix.grad, 1 - self.momentum)
        step = orthogonal(matrix.grad.lerp(mean, self.momentum).to(self.dtype))  # Nesterov's
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(step, alpha=-lr * 0.2 * max(matrix.shape[-2:]) ** 0.5)


def split(group: dict) -> list[dict]:
    """Return the group in two, its stacks of matrices with ``muon`` and the rest; as it is, if it says
    ``muon``."""
    if "muon" in group:
        return [group]
    parts: dict[bool, list] = {True: [], False: []}
    for parameter in group["params"]:
        parts[parameter.ndim == 3].append(parameter)
    return [{**group, "params": params, "muon": muon} for muon, params in parts.items() if params]


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix whose singular values are all 1 (they come out between 0.5 and 1.5); of each
    matrix of a stack."""
    a, b, c = COEFFICIENTS
    product = torch.addmm if matrix.ndim == 2 else torch.baddbmm  # torch's own order of rounding
    wide = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = wide @ wide.mT
        wide = product(wide, product(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if matrix.shape[-2] > matrix.shape[-1] else wide
