"""Losses of logits that the kernel interpolates."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits
from python_tests.cross_entropy.cases import batch, loss_of
from python_tests.support import IGNORED
from segunc_ops.losses import (
    CrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)


def test_losses_take_it():
    x, target, _ = batch(size=(12, 16), source=(3, 4))
    sigma = torch.rand(target.shape) / 2
    options = {"upsample": "bilinear", "align_corners": True, "ignore_index": IGNORED}
    by_function = partial(loss_of, upsample="bilinear", align_corners=True)
    plain = CrossEntropyLoss(**options)(x, target)
    assert_same_bits(plain, by_function(x, target), name="CE")
    weighted = UncertaintyAwareCrossEntropyLoss(2.0, **options)(x, target, sigma)
    by_hand = by_function(x, target, (1 + sigma) ** 2, reduction="mean_all")
    torch.testing.assert_close(weighted, by_hand)
    for components in ("target", "prediction"):
        prediction = target.clamp(max=2) if components == "prediction" else None
        loss = InstanceUncertaintyCrossEntropyLoss(components=components, **options)
        labels = target if prediction is None else prediction
        ignored = IGNORED if prediction is None else None
        mean = sf.component_mean(sigma, labels, ignore_index=ignored)
        by_hand = by_function(x, target, (1 + mean) ** 2, reduction="mean_all")
        torch.testing.assert_close(loss(x, target, sigma, prediction), by_hand)
        assert "upsample='bilinear', align_corners=True" in repr(loss)
    assert "upsample" not in repr(CrossEntropyLoss())


def test_compile_of_a_loss():
    torch.compiler.reset()
    loss = UncertaintyAwareCrossEntropyLoss(upsample="bilinear", ignore_index=IGNORED)

    def step(x: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
        return loss(2 * x.sin(), target, sigma / 2)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((8, 9), (10, 11)):
        x, target, sigma = batch(size=size, source=(3, 4))
        (found,) = torch.autograd.grad(compiled(x, target, sigma.detach()), x)
        (wanted,) = torch.autograd.grad(step(x, target, sigma.detach()), x)
        torch.testing.assert_close(found, wanted)


X, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 9, dtype=torch.long)
ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "mode of a loss": (
        lambda: CrossEntropyLoss(upsample="nearest"),
        ValueError,
        "upsample: expected None or one of ('bilinear', 'trilinear'), got 'nearest'",
    ),
    "uncertainty of the logits' size": (
        lambda: UncertaintyAwareCrossEntropyLoss(upsample="bilinear")(X, T, X[:, 0]),
        ValueError,
        "uncertainty: expected the target's shape (2, 8, 9) for input of shape (2, 3, 4, 5), got "
        "(2, 4, 5)",
    ),
    "target of an uncertainty": (
        lambda: UncertaintyAwareCrossEntropyLoss(upsample="bilinear")(X, T[:1], X[:1, 0]),
        ValueError,
        "target: expected shape (2, H, W) with pixels",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_errors(name, backend):
    call, kind, message = ERRORS[name]
    with segunc_ops.backend(backend), pytest.raises(kind, match="^" + re.escape(message)):
        call()
