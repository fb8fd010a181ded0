"""Logits that the kernels interpolate, against the reference, which does it beforehand."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

import segunc_ops.functional as sf
from python_tests.comparison import accumulate_dtype, assert_close
from python_tests.dice.cases import batch, loss_of, truth_of
from python_tests.interpolation import random_sizes
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES


def compare(x, target, u, **options) -> None:
    """In float32 coordinates differ from the reference's by a rounding: that is a share of the
    logits."""
    options = {"upsample": "bilinear" if x.dim() == 4 else "trilinear"} | options
    loss = loss_of(x, target, u, **options)
    leaves = (x,) if u is None else (x, u)
    found = torch.autograd.grad(loss, leaves, torch.tensor(-2.5, dtype=loss.dtype))
    truth, *wanted = truth_of(x, target, u, **options)
    compute = accumulate_dtype(x.dtype)
    size = 20 * (1 + float(x.detach().abs().max()))
    assert_close(loss, truth, name="loss", scale=size, compute=compute, bias=False)
    for name, a, b in zip(("input", "pixel_weight"), found, wanted, strict=False):
        scale = size * 2.5 * float(b.abs().max())
        assert_close(a, -2.5 * b, name=name, scale=scale, compute=compute, bias=False)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("first", range(0, 150, 50))
def test_random_calls(first):
    for seed in range(first, first + 50):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        source, size = random_sizes(choose, choose.random() < 0.3)
        dtype = choose.choice(LOGITS_DTYPES)
        classes = choose.choice((2, 3, 12, 13, 33))
        _, target, u = batch(dtype, tuple(size), classes)
        if (target == IGNORED).all():
            continue
        x = 3 * torch.randn(2, classes, *source)
        x = LAYOUTS[choose.choice([*LAYOUTS])].make(x.to(dtype)).detach().requires_grad_()
        compare(
            x,
            target,
            choose.choice((None, u)),
            align_corners=choose.random() < 0.3,
            batch=choose.random() < 0.5,
            squared=choose.random() < 0.3,
            label_smoothing=choose.choice((0.0, 0.1)),
            include_background=choose.random() < 0.7,
        )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("source", "size"), [((2, 3), (5, 4)), ((4, 3), (2, 2)), ((2, 1, 2), (3, 2, 3))]
)
def test_gradcheck(source, size, align_corners):
    _, target, u = batch(torch.float64, size)
    x = torch.randn(2, 3, *source, dtype=torch.float64, requires_grad=True)
    mode = "bilinear" if x.dim() == 4 else "trilinear"
    for options in ({"squared": True}, {"label_smoothing": 0.2, "weight": torch.rand(3)}):
        own = options | {"upsample": mode, "align_corners": align_corners}
        assert torch.autograd.gradcheck(lambda x, u, o=own: loss_of(x, target, u, **o), (x, u))


def test_the_gradient_of_the_weights_alone():
    _, target, u = batch(size=(9, 70))
    x = torch.randn(2, 3, 4, 31)
    loss = loss_of(x, target, u, upsample="bilinear")
    (found,) = torch.autograd.grad(loss, u)
    large = F.interpolate(x, target.shape[1:], mode="bilinear")
    (wanted,) = torch.autograd.grad(loss_of(large, target, u), u)
    torch.testing.assert_close(found, wanted)


def test_same_size_is_the_loss_itself():
    x, target, u = batch()
    for align_corners in (False, True):
        same = loss_of(x, target, u, upsample="bilinear", align_corners=align_corners)
        torch.testing.assert_close(same, loss_of(x, target, u))


def test_ignored_pixels_may_reach_any_logit():
    """A NaN that only ignored pixels have a share in does no harm."""
    x = torch.randn(1, 3, 8, 8)
    x[..., 0, 0] = float("nan")
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[:, :4, :4] = IGNORED
    x.requires_grad_()
    loss = sf.dice_cross_entropy(x, target, ignore_index=IGNORED, upsample="bilinear")
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all()
