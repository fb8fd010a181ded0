"""CrossEntropyLoss: its formula, and torch's module in its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from python_tests.losses.cases import expected_loss
from python_tests.support import IGNORED, REDUCTIONS
from segunc_ops import CrossEntropyLoss

pytestmark = pytest.mark.usefixtures("each_backend")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_agrees_with_the_formula(batch, reduction, weighted, smoothing):
    weight = batch.weight if weighted else None
    loss = CrossEntropyLoss(
        weight, ignore_index=IGNORED, reduction=reduction, label_smoothing=smoothing
    )
    for pixel_weight in (None, batch.std):
        actual = loss(*batch.arguments, pixel_weight)
        expected = expected_loss(batch, pixel_weight, weight, reduction, smoothing)
        torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_replaces_torch(batch, reduction, weighted):
    options = {
        "weight": batch.weight if weighted else None,
        "ignore_index": IGNORED,
        "reduction": reduction,
        "label_smoothing": 0.1,
    }
    ours, theirs = CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options)
    upstream = torch.randn((), dtype=torch.float64)
    values, gradients = [], []
    for loss in (ours, theirs):
        value = loss(*batch.arguments)
        gradients += torch.autograd.grad(value.mul(upstream).sum(), batch.input)
        values.append(value)
    torch.testing.assert_close(*values, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_pixel_weight_gets_its_gradient(batch):
    pixel_weight = batch.std.clone().requires_grad_()
    CrossEntropyLoss(ignore_index=IGNORED, reduction="sum")(
        *batch.arguments, pixel_weight
    ).backward()
    expected = expected_loss(batch, None, None, "none")
    torch.testing.assert_close(pixel_weight.grad, expected, rtol=1e-11, atol=1e-11)
