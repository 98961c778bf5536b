import pytest
import torch

from h2c_hf.atlas.muon import Muon


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.0), (torch.float32, 5e-4)])
def test_steps_are_those_of_torch(dtype, tolerance):
    """To the bit in bfloat16, in which torch's works; closely in float32."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 24), (16, 40), (40, 16))]
    gradients = [[torch.randn_like(matrix) for matrix in start] for _ in range(4)]
    reached = {}
    for name, make in (
        ("ours", lambda matrices: Muon(matrices, lr=0.01, weight_decay=0.05, dtype=dtype)),
        (
            "torch",
            lambda matrices: torch.optim.Muon(
                matrices, lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
        ),
    ):
        matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        optimizer = make(matrices)
        for step in gradients:
            for matrix, gradient in zip(matrices, step, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
        reached[name] = matrices
    for ours, theirs, begun in zip(reached["ours"], reached["torch"], start, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
        assert (ours - begun).abs().mean() > 1e-3


def test_what_has_no_gradient_stays():
    matrix = torch.nn.Parameter(torch.ones(3, 3))
    Muon([matrix], lr=0.1).step()
    assert torch.equal(matrix, torch.ones(3, 3))
