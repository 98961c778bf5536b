import copy

import pytest
import torch

from h2c_hf.muon import Muon


def steps(optimizer, parameters, gradients):
    for gradient_step in gradients:
        for parameter, gradient in zip(parameters, gradient_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def parameters_and_gradients(*shapes, times=4):
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in shapes]
    return start, [[torch.randn_like(tensor) for tensor in start] for _ in range(times)]


def copies(start):
    return [torch.nn.Parameter(tensor.clone()) for tensor in start]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.0), (torch.float32, 5e-4)])
def test_steps_are_those_of_torch(dtype, tolerance):
    """To the bit in bfloat16, in which torch's works; closely in float32."""
    start, gradients = parameters_and_gradients((24, 24), (16, 40), (40, 16))
    ours, theirs = copies(start), copies(start)
    group = {"params": ours, "lr": 0.01, "weight_decay": 0.05, "muon": True}
    steps(Muon([group], dtype=dtype), ours, gradients)
    torchs = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    steps(torchs, theirs, gradients)
    for our, their, begun in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(our, their, atol=tolerance, rtol=0)
        assert (our - begun).abs().mean() > 3e-3


def test_a_stack_moves_as_its_matrices_do():
    start, gradients = parameters_and_gradients((30, 24, 16), (3, 8, 40))
    stacks = copies(start)
    steps(Muon([{"params": stacks}], lr=0.01), stacks, gradients)
    matrices = [torch.nn.Parameter(matrix.clone()) for stack in start for matrix in stack]
    apart = [[matrix for stack in step for matrix in stack] for step in gradients]
    steps(
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        matrices,
        apart,
    )
    torch.testing.assert_close(
        torch.cat([stack.flatten() for stack in stacks]),
        torch.cat([matrix.flatten() for matrix in matrices]),
        atol=5e-4,
        rtol=0,
    )


def test_what_is_no_stack_takes_the_steps_of_adamw():
    start, gradients = parameters_and_gradients((4, 6, 6), (4, 6), (4,))
    ours, theirs = copies(start), copies(start[1:])
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = Muon([{"params": ours}], **settings)
    assert [(group["muon"], len(group["params"])) for group in optimizer.param_groups] == [
        (True, 1),
        (False, 2),
    ]
    steps(optimizer, ours, gradients)
    steps(torch.optim.AdamW(theirs, **settings), theirs, [step[1:] for step in gradients])
    for our, their in zip(ours[1:], theirs, strict=True):
        assert torch.equal(our, their)


def test_a_saved_optimizer_goes_on_to_the_bit():
    start, gradients = parameters_and_gradients((4, 6, 6), (4, 6))
    whole, resumed = copies(start), copies(start)
    steps(Muon([{"params": whole}], lr=0.01), whole, gradients)
    first = Muon([{"params": resumed}], lr=0.01)
    steps(first, resumed, gradients[:2])
    second = Muon([{"params": resumed}], lr=0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, resumed, gradients[2:])
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one, other)


def test_what_has_no_gradient_stays():
    matrix = torch.nn.Parameter(torch.ones(2, 3, 3))
    Muon([{"params": [matrix]}], lr=0.1).step()
    assert torch.equal(matrix, torch.ones(2, 3, 3))
