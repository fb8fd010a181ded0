"""Values and gradients of the kernels against the reference in float64, which is held against the
packages' formulas in test_packages.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segunc_ops
from python_tests.comparison import (
    assert_close,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.dice.cases import assert_equals, batch, loss_of, truth_of
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, TARGET_DTYPES

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "over the batch": {"batch": True},
    "squared": {"squared": True},
    "squared over the batch": {"squared": True, "batch": True, "ce_weight": 0.0},
    "jaccard without background": {"jaccard": True, "include_background": False},
    "absent ones left out": {"absent": "skip", "smooth_numerator": 1.0},
    "absent ones are right": {
        "absent": "zero",
        "batch": True,
        "smooth_numerator": 0.0,
        "smooth_denominator": 0.0,
    },
    "cross-entropy alone": {"dice_weight": 0.0, "label_smoothing": 0.2},
    "Dice alone": {"ce_weight": 0.0},
    "sum": {"reduction": "sum", "ce_weight": 0.01},
    "mean of all pixels": {"reduction": "mean_all", "label_smoothing": 0.1, "dice_offset": 0.0},
    "weights": {"ce_weight": 0.3, "dice_weight": 2.0, "dice_offset": -1.5},
}
CLASSES = (2, 3, 12, 13, 19, 70)
# One pixel, less than a pack, ragged tiles, more than a unit.
SIZES = ((), (1, 1), (5, 7), (131,), (3, 50, 31))


def compare(
    x: Tensor, target: Tensor, u: Tensor | None, upstream: float = 1.0, **options: Any
) -> None:
    """Loss and gradients against the reference in float64."""
    loss = loss_of(x, target, u, **options)
    assert_equals(truth_of(x, target, u, **options), loss, x, u, upstream)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_equals_the_reference(dtype, options):
    for classes in CLASSES:
        for size in SIZES:
            x, target, u = batch(dtype, size, classes, images=3)
            if (target == IGNORED).all():
                continue
            extra = dict(OPTIONS[options])
            if classes % 2:
                extra["weight"] = torch.rand(classes, dtype=torch.float64) + 0.5
            for weights in (None, u):
                compare(x, target, weights, -2.5, **extra)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype):
    for shape in ((2, 19, 65, 67), (2, 3, 33, 35), (1, 150, 9, 11)):
        x = LAYOUTS[layout].make(torch.randn(shape).to(dtype)).detach().requires_grad_()
        for target_dtype in TARGET_DTYPES:
            target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
            target[torch.rand(target.shape) < 0.2] = IGNORED
            for options in ({}, {"batch": True, "label_smoothing": 0.1}):
                compare(x, target.to(target_dtype), None, **options)
        (gradient,) = torch.autograd.grad(loss_of(x, target), x)
        if "expanded" not in layout and layout != "crop" and "every" not in layout:
            assert gradient.stride() == torch.empty_like(x).stride()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_ignored_pixels_are_never_read(dtype):
    x, target, u = batch(dtype, (9, 33), classes=5)
    ignored = target == IGNORED
    for options in ({}, {"batch": True, "squared": True, "label_smoothing": 0.1}):
        wanted = torch.autograd.grad(loss_of(x, target, u, **options), (x, u))
        for poison in (float("nan"), float("inf"), -float("inf")):
            bad = torch.where(ignored.unsqueeze(1), poison, x.detach()).requires_grad_()
            weights = torch.where(ignored, poison, u.detach()).requires_grad_()
            loss = loss_of(bad, target, weights, **options)
            assert_same_bits(loss, loss_of(x, target, u, **options), name="loss")
            found = torch.autograd.grad(loss, (bad, weights))
            for name, a, b in zip(("input", "pixel_weight"), found, wanted, strict=True):
                assert_same_bits(a, b, name=name)
            assert not found[0].movedim(1, -1)[ignored].any()


@pytest.mark.usefixtures("each_backend")
def test_ignored_pixels_count_nothing():
    """As if they were not there."""
    x, target, _ = batch(torch.float64, (40,), images=1)
    valid = (target != IGNORED)[0]
    for options in ({}, {"squared": True}, {"jaccard": True, "absent": "skip"}):
        fewer = loss_of(x[..., valid], target[:, valid], **options)
        torch.testing.assert_close(loss_of(x, target, **options), fewer)


@pytest.mark.usefixtures("each_backend")
def test_no_valid_pixel():
    """Cross-entropy is NaN as in torch; Dice is by its own terms finite, and the gradient 0."""
    x, target, _ = batch()
    target.fill_(IGNORED)
    assert loss_of(x, target).isnan()
    torch.testing.assert_close(loss_of(x, target, ce_weight=0.0), torch.tensor(0.0))
    nothing = {"ce_weight": 0.0, "smooth_numerator": 0.0, "smooth_denominator": 0.0}
    for absent, value in (("count", 1.0), ("skip", 0.0), ("zero", 0.0)):
        loss = loss_of(x, target, absent=absent, **nothing)
        torch.testing.assert_close(loss, torch.tensor(value))
        assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.usefixtures("each_backend")
def test_empty_inputs():
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5)):
        x = torch.randn(shape, requires_grad=True)
        target = torch.zeros(shape[0], *shape[2:], dtype=torch.long)
        assert loss_of(x, target).isnan()
        for wanted in (True, False):
            loss = loss_of(x, target, batch=wanted)
            assert torch.autograd.grad(loss, x)[0].shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(dtype):
    """Probabilities of 0 and 1, in every class."""
    x, target, _ = batch(dtype, (11, 13), classes=4)
    for factor in (20.0, 1000.0):
        large = (factor * x.detach()).to(dtype).requires_grad_()
        for options in ({}, {"squared": True, "batch": True}):
            compare(large, target, None, **options)
            (gradient,) = torch.autograd.grad(loss_of(large, target, **options), large)
            assert gradient.isfinite().all()


def test_many_pixels_are_summed_exactly():
    """Sixteen million probabilities of 1/2: single-precision sums would stall at 2^24."""
    x = torch.zeros(1, 2, 1 << 24)
    target = torch.zeros(1, 1 << 24, dtype=torch.uint8)
    loss = loss_of(x, target, ce_weight=0.0, smooth_numerator=0.0, smooth_denominator=0.0)
    # 2 * 1/2 / (1/2 + 1) and 0.
    torch.testing.assert_close(loss, torch.tensor(1 - (2 / 3) / 2), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    x, target, u = batch(dtype, (129, 131), classes=19)
    small = x.detach()[..., ::4, ::5].contiguous().requires_grad_()

    def calls() -> tuple[Tensor, ...]:
        results = []
        for leaf, options in ((x, {}), (small, {"upsample": "bilinear", "batch": True})):
            loss = loss_of(leaf, target, u, **options)
            results += [loss, *torch.autograd.grad(loss, (leaf, u))]
        return tuple(results)

    assert_same_bits_on_every_run(calls, name=str(dtype), runs=12)


def test_autocast():
    """As torch's losses: float32 of bfloat16 logits, without a copy of these."""
    x, target, _ = batch(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(x, target)
        assert loss.dtype == torch.float32
    assert loss_of(x, target).dtype == torch.bfloat16
    truth, wanted, _ = truth_of(x, target)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == torch.bfloat16
    assert_close(gradient, wanted, name="gradient", bias=False)


def test_gradients_of_float16_do_not_underflow():
    """Scaled by GradScaler's factor before they are rounded."""
    x, target, _ = batch(torch.float16, (300, 400), images=1)
    loss = loss_of(x, target)
    scale = 32768.0  # the loss itself is float16
    (gradient,) = torch.autograd.grad(scale * loss.float(), x)
    _, wanted, _ = truth_of(x, target)
    assert_close(gradient, wanted * scale, name="gradient", scale=1.0, bias=False)
    assert (gradient != 0).float().mean() > 0.75


def test_backends_agree_on_what_flows():
    for backend in ("native", "reference"):
        with segunc_ops.backend(backend):
            x, target, u = batch()
            loss_of(x, target, u).backward()
            assert x.grad is not None
            assert u.grad is not None
