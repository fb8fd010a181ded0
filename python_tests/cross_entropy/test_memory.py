"""Peak memory of a training step's loss, from the allocator's own events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.memory import peak_bytes

SHAPE = (1, 19, 256, 256)


def step_of(
    loss: Callable[..., Tensor], dtype: torch.dtype, autocast: bool, **options: object
) -> tuple[Callable[[], None], int]:
    """Forward and backward on fresh logits, and the size of these in bytes."""
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    target = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]))

    def step() -> None:
        x.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = loss(x, target, **options)
        value.backward()

    step()  # what is allocated once in a process is no part of it
    x.grad = None
    return step, x.numel() * x.element_size()


PRECISIONS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "bfloat16 under autocast": (torch.bfloat16, True),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_all"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_needs_the_gradient_and_little_else(precision, reduction):
    dtype, autocast = PRECISIONS[precision]
    for extra in ({}, {"label_smoothing": 0.1, "weight": torch.ones(SHAPE[1])}):
        step, size = step_of(sf.cross_entropy, dtype, autocast, reduction=reduction, **extra)
        assert peak_bytes(step) <= 1.1 * size


def test_scaling_by_an_upstream_gradient_needs_no_more():
    step, size = step_of(lambda *a: 3 * sf.cross_entropy(*a), torch.float32, False)
    assert peak_bytes(step) <= 1.1 * size


@pytest.mark.parametrize(
    ("precision", "least"), [("float32", 2.9), ("bfloat16 under autocast", 5.9)]
)
def test_the_instrument_sees_what_torch_needs(precision, least):
    """torch keeps log-probabilities and makes two gradients; under autocast these and a copy of the
    logits are float32. An instrument that missed allocations would make the tests above pass."""
    step, size = step_of(F.cross_entropy, *PRECISIONS[precision])
    assert peak_bytes(step) >= least * size


def test_inference_needs_nothing():
    x = torch.randn(SHAPE)
    target = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]))
    with torch.no_grad():
        assert peak_bytes(lambda: sf.cross_entropy(x, target)) <= 0.01 * x.nbytes


def test_interpolation_keeps_no_large_logits():
    """Neither them nor their gradient: 1/8 of eager's peak is the bar."""
    x = torch.randn(2, 150, 64, 64, requires_grad=True)
    target = torch.randint(0, 150, (2, 256, 256))
    u = torch.ones(target.shape)

    def fused(x: Tensor, target: Tensor, u: Tensor) -> Tensor:
        return sf.cross_entropy(x, target, pixel_weight=u, upsample="bilinear")

    def separate(x: Tensor, target: Tensor, u: Tensor) -> Tensor:
        large = F.interpolate(x, target.shape[1:], mode="bilinear")
        return (F.cross_entropy(large, target, reduction="none") * u).mean()

    def step_of(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def step() -> None:
            x.grad = None
            loss(x, target, u).backward()

        step()  # what is allocated once in a process is no part of it
        x.grad = None
        return step

    ours, eager = peak_bytes(step_of(fused)), peak_bytes(step_of(separate))
    assert eager > 3 * 16 * x.nbytes
    # The gradient, and the rows that bands share.
    assert ours <= 1.3 * x.nbytes
    assert ours <= eager / 8
