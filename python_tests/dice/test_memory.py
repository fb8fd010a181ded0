"""Peak memory of a training step's loss, from the allocator's own events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.dice import cases
from python_tests.memory import peak_bytes

SHAPE = (1, 19, 256, 256)


def step_of(
    loss: Callable[..., Tensor], dtype: torch.dtype, shape: tuple[int, ...], autocast: bool = False
) -> tuple[Callable[[], None], int]:
    """Forward and backward on fresh logits, and the size of these in bytes."""
    x = torch.randn(shape).to(dtype).requires_grad_()
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))

    def step() -> None:
        x.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = 3 * loss(x, target)
        value.backward()

    step()  # what is allocated once in a process is no part of it
    x.grad = None
    return step, x.numel() * x.element_size()


@pytest.mark.parametrize("shape", [SHAPE, (2, 4, 32, 48, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_needs_the_gradient_and_little_else(dtype, shape):
    for autocast in (False, True):
        step, size = step_of(sf.dice_cross_entropy, dtype, shape, autocast)
        assert peak_bytes(step) <= 1.1 * size


def test_the_instrument_sees_what_the_formula_needs():
    step, size = step_of(cases.nnunet, torch.float32, SHAPE)
    assert peak_bytes(step) >= 5 * size


def test_inference_needs_little():
    x, target = torch.randn(SHAPE), torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]))
    with torch.no_grad():
        assert peak_bytes(lambda: sf.dice_cross_entropy(x, target)) <= 0.02 * x.nbytes


def test_interpolation_keeps_no_large_logits():
    x = torch.randn(2, 50, 64, 64, requires_grad=True)
    target = torch.randint(0, 50, (2, 256, 256))

    def step() -> None:
        x.grad = None
        sf.dice_cross_entropy(x, target, upsample="bilinear").backward()

    step()
    x.grad = None
    # The gradient, and the rows that bands share.
    assert peak_bytes(step) <= 1.3 * x.nbytes
