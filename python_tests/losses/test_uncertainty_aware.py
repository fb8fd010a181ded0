"""UncertaintyAwareCrossEntropyLoss (U-CE): its formula and what stands for its uncertainty."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from python_tests.losses.cases import expected_loss, u_ce_weight
from python_tests.support import IGNORED, REDUCTIONS
from segunc_ops import PredictiveAccumulator, PredictiveStatistics, UncertaintyAwareCrossEntropyLoss

pytestmark = pytest.mark.usefixtures("each_backend")


def statistics_of(std: Tensor) -> PredictiveStatistics:
    nan = torch.full_like(std, torch.nan)
    return PredictiveStatistics(nan.long(), nan, std, nan, nan, nan)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_u_ce_agrees_with_the_formula(batch, reduction, alpha, weighted):
    weight = batch.weight if weighted else None
    loss = UncertaintyAwareCrossEntropyLoss(
        alpha, weight, ignore_index=IGNORED, reduction=reduction, label_smoothing=0.1
    )
    actual = loss(*batch.arguments, batch.std)
    expected = expected_loss(batch, u_ce_weight(batch.std, alpha), weight, reduction, 0.1)
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-11, atol=1e-11)
    if reduction != "none":
        gradients = [torch.autograd.grad(value, batch.input)[0] for value in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_u_ce_defaults_are_those_of_the_paper(batch):
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)
    assert (loss.alpha, loss.reduction) == (10.0, "mean_all")
    expected = expected_loss(batch, u_ce_weight(batch.std, 10), None, "sum") / batch.target.numel()
    torch.testing.assert_close(loss(*batch.arguments, batch.std), expected, rtol=1e-11, atol=0)


def test_two_pixels_by_hand():
    # p = (1/2, 1/2) and (3/4, 1/4), both labelled 0; the second pixel's weight is 1.5^2.
    input = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    std = torch.tensor([[0.0, 0.5]])
    value = UncertaintyAwareCrossEntropyLoss(2.0)(input, torch.zeros(1, 2, dtype=torch.long), std)
    assert value.item() == pytest.approx((math.log(2) + 2.25 * math.log(4 / 3)) / 2, rel=1e-6)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 5), (2, 4, 3, 4, 5)], ids=str)
def test_u_ce_takes_every_shape(shape):
    torch.manual_seed(0)
    input = torch.randn(shape)
    target_shape = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    target, std = torch.randint(0, 4, target_shape), torch.rand(target_shape)
    actual = UncertaintyAwareCrossEntropyLoss(3.0, reduction="none")(input, target, std)
    expected = (1 + std) ** 3 * nn.functional.cross_entropy(input, target, reduction="none")
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_uncertainty_is_never_silent(batch, value):
    std = batch.std.clone()
    std[tuple(batch.valid.nonzero()[0])] = value
    result = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)(*batch.arguments, std)
    torch.testing.assert_close(
        result.detach(), torch.tensor(value, dtype=torch.float64), equal_nan=True
    )


def test_statistics_and_accumulator_stand_for_their_std(batch):
    torch.manual_seed(0)
    accumulator = PredictiveAccumulator()
    for _ in range(3):
        accumulator.update(torch.randn(3, 6, 5, 7, dtype=torch.float64))
    statistics = accumulator.compute()
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)
    expected = loss(*batch.arguments, statistics.std)
    for uncertainty in (statistics, accumulator):
        assert torch.equal(loss(*batch.arguments, uncertainty), expected)
        loss.observe(uncertainty)
        assert torch.equal(loss(*batch.arguments), expected)
    assert torch.equal(loss(*batch.arguments, statistics_of(statistics.std)), expected)


def test_an_observed_accumulator_may_go_on(batch):
    torch.manual_seed(0)
    samples = torch.randn(4, 3, 6, 5, 7, dtype=torch.float64)
    accumulator = PredictiveAccumulator()
    for sample in samples[:3]:
        accumulator.update(sample)
    loss = UncertaintyAwareCrossEntropyLoss(ignore_index=IGNORED)
    expected = loss(*batch.arguments, accumulator)
    loss.observe(accumulator)
    accumulator.update(samples[3])
    assert torch.equal(loss(*batch.arguments), expected)
