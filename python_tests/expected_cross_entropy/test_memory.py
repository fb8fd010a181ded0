"""Peak memory of a training step's loss, from the allocator's own events."""

from __future__ import annotations

import pytest
import torch

import segunc_ops.functional as sf
from python_tests.expected_cross_entropy.cases import triangle
from python_tests.memory import peak_bytes


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("classes", "cholesky"), [(19, False), (9, True)])
def test_a_step_needs_the_gradients_and_little_else(classes, cholesky, dtype, reduction):
    """Whatever the number of draws: at most 1.2 times mean, scale and their gradients, in all."""
    channels = triangle(classes) if cholesky else classes
    mean = torch.randn(1, classes, 64, 64).to(dtype).requires_grad_()
    scale = torch.rand(1, channels, 64, 64).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (1, 64, 64))
    inputs = sum(t.numel() * t.element_size() for t in (mean, scale))
    # Beside the gradients a loss per pixel is a result, and its upstream gradient.
    maps = 3 * target.numel() * 4 if reduction == "none" else 0

    def step(draws: int) -> None:
        mean.grad = scale.grad = None
        loss = sf.expected_cross_entropy(mean, scale, target, num_draws=draws, reduction=reduction)
        (loss if reduction == "mean" else loss.sum()).backward()

    step(1)  # what is allocated once in a process is no part of it
    for draws in (1, 16, 64):
        mean.grad = scale.grad = None
        assert inputs + peak_bytes(lambda draws=draws: step(draws)) <= 1.2 * 2 * inputs + maps
