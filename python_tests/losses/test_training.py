"""A step of training by each method, against torch alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from python_tests.components.cases import component_means
from python_tests.losses.cases import Segmenter
from python_tests.support import IGNORED
from segunc_ops import (
    InstanceUncertaintyCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
    ensemble_statistics,
    sample_statistics,
)

pytestmark = pytest.mark.usefixtures("each_backend")


def test_a_step_of_algorithm_1():
    torch.manual_seed(0)
    model = Segmenter()
    twin = copy.deepcopy(model)
    images, target = torch.randn(2, 3, 6, 8), torch.randint(0, 6, (2, 6, 8))
    target[0, :2] = IGNORED
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)

    torch.manual_seed(1)
    value = loss(model(images), target, sample_statistics(model, images, 10))
    value.backward()

    # The same in torch alone: ten passes in training mode without a gradient, whose only trace
    # are running statistics, and one with it. The argument `model(images)` is evaluated first.
    torch.manual_seed(1)
    logits = twin(images)
    with torch.no_grad():
        p = torch.stack([twin(images).double().softmax(1) for _ in range(10)])
    predicted = p.mean(0).argmax(1, keepdim=True)
    sigma = p.std(0).gather(1, predicted).squeeze(1)
    each = nn.functional.cross_entropy(
        logits.double(), target, ignore_index=IGNORED, reduction="none"
    )
    expected = ((1 + sigma) ** 10 * each).sum() / each.numel()
    expected.backward()

    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert model.layers[1].num_batches_tracked == 1


def test_a_step_of_the_ensemble_approach():
    torch.manual_seed(0)
    members = [Segmenter() for _ in range(3)]
    images, target = torch.randn(2, 3, 6, 8), torch.randint(0, 3, (2, 6, 8))
    target[0, :2] = IGNORED
    logits = members[0](images)
    with torch.no_grad():
        p = sum(copy.deepcopy(m).eval()(images).double().softmax(1) for m in members) / 3
    mean = component_means(-(p * p.log()).sum(1), target, None)
    each = nn.functional.cross_entropy(
        logits.double(), target, ignore_index=IGNORED, reduction="none"
    )
    expected = ((1 + mean) ** 2 * each).sum() / each.numel()
    value = InstanceUncertaintyCrossEntropyLoss(ignore_index=IGNORED)(
        logits, target, ensemble_statistics(members, images)
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    gradients = [
        torch.autograd.grad(v, [*members[0].parameters()], retain_graph=True)
        for v in (value, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
