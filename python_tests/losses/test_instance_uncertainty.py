"""InstanceUncertaintyCrossEntropyLoss (IU): its formula and what stands for its uncertainty."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from python_tests.components.cases import component_means
from python_tests.losses.cases import expected_loss
from python_tests.support import IGNORED, REDUCTIONS
from segunc_ops import (
    InstanceUncertaintyCrossEntropyLoss,
    PredictiveAccumulator,
    PredictiveStatistics,
)

pytestmark = pytest.mark.usefixtures("each_backend")


def entropy_statistics(entropy: Tensor, prediction: Tensor) -> PredictiveStatistics:
    nan = torch.full_like(entropy, torch.nan)
    return PredictiveStatistics(prediction, nan, nan, entropy, nan, nan)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("connectivity", [None, 4, 8])
@pytest.mark.parametrize("components", ["target", "prediction"])
@pytest.mark.parametrize(("exponent", "weighted"), [(2, False), (0.0, True), (0.5, True)])
def test_iu_agrees_with_the_formula(batch, exponent, weighted, components, connectivity, reduction):
    batch.target = batch.target.clamp(max=2).where(batch.valid, IGNORED)  # larger components
    prediction = batch.target.roll(1, 0).where(batch.valid.roll(1, 0), 4)
    weight = batch.weight if weighted else None
    loss = InstanceUncertaintyCrossEntropyLoss(
        exponent,
        weight,
        components=components,
        connectivity=connectivity,
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=0.1,
    )
    labels = batch.target if components == "target" else prediction
    mean = component_means(batch.std, labels, connectivity)
    expected = expected_loss(batch, (1 + mean) ** exponent, weight, reduction, 0.1)
    given = [entropy_statistics(batch.std, prediction)], {"instance_uncertainty": mean}
    for positional, named in ((given[0], {}), ([], given[1])):
        actual = loss(*batch.arguments, *positional, **named)
        torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-11, atol=1e-11)
        if reduction != "none":
            gradients = [
                torch.autograd.grad(v, batch.input, retain_graph=True)[0]
                for v in (actual, expected)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_iu_defaults_are_those_of_the_paper():
    loss = InstanceUncertaintyCrossEntropyLoss()
    defaults = (loss.exponent, loss.components, loss.connectivity, loss.reduction)
    assert defaults == (2.0, "target", None, "mean_all")


def test_three_pixels_by_hand():
    # p = 1/2 everywhere; the first two pixels are one instance of mean entropy 0.2.
    target = torch.tensor([[[1, 1, 0]]])
    entropy = torch.tensor([[[0.1, 0.3, 0.5]]])
    value = InstanceUncertaintyCrossEntropyLoss()(torch.zeros(1, 2, 1, 3), target, entropy)
    assert value.item() == pytest.approx(math.log(2) * (2 * 1.2**2 + 1.5**2) / 3, rel=1e-6)


def test_every_form_of_the_uncertainty_is_the_same(batch):
    torch.manual_seed(0)
    accumulator = PredictiveAccumulator()
    for _ in range(3):
        accumulator.update(torch.randn(3, 6, 5, 7, dtype=torch.float64))
    statistics = accumulator.compute()
    for components in ("target", "prediction"):
        loss = InstanceUncertaintyCrossEntropyLoss(components=components, ignore_index=IGNORED)
        expected = loss(*batch.arguments, statistics)
        prediction = statistics.prediction if components == "prediction" else None
        for given in ((accumulator, None), (statistics.entropy, prediction)):
            torch.testing.assert_close(loss(*batch.arguments, *given), expected, rtol=1e-12, atol=0)
            loss.observe(*given)
            torch.testing.assert_close(loss(*batch.arguments), expected, rtol=1e-12, atol=0)
        labels = statistics.prediction if prediction is not None else batch.target
        mask = component_means(statistics.entropy, labels, None)
        loss.observe(instance_uncertainty=mask)
        torch.testing.assert_close(loss(*batch.arguments), expected, rtol=1e-12, atol=0)
    # The caller's prediction goes before that of the statistics.
    other = loss(*batch.arguments, statistics, batch.target.clamp(max=5))
    assert not torch.equal(other, expected)


def test_iu_of_volumes_and_of_other_shapes():
    torch.manual_seed(0)
    input, entropy = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5)
    target = torch.randint(0, 2, (2, 3, 4, 5))
    for connectivity in (6, 26):
        loss = InstanceUncertaintyCrossEntropyLoss(connectivity=connectivity, reduction="none")
        mean = component_means(entropy, target, connectivity)
        each = nn.functional.cross_entropy(input, target, reduction="none")
        torch.testing.assert_close(
            loss(input, target, entropy.double()), (1 + mean) ** 2 * each, rtol=1e-6, atol=0
        )
    input, target, mask = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.rand(6)
    value = InstanceUncertaintyCrossEntropyLoss(reduction="none")(
        input, target, instance_uncertainty=mask
    )
    expected = (1 + mask) ** 2 * nn.functional.cross_entropy(input, target, reduction="none")
    torch.testing.assert_close(value, expected)


def test_a_non_finite_entropy_spoils_its_component_and_no_other(batch):
    loss = InstanceUncertaintyCrossEntropyLoss(ignore_index=IGNORED, reduction="none")
    entropy = batch.std.masked_fill(~batch.valid, torch.nan)
    expected = loss(*batch.arguments, batch.std)
    assert torch.equal(loss(*batch.arguments, entropy), expected)
    at = tuple(batch.valid.nonzero()[0])
    for value in (torch.nan, torch.inf):
        spoilt = entropy.clone()
        spoilt[at] = value
        found = loss(*batch.arguments, spoilt)
        component = torch.zeros_like(entropy)
        component[at] = 1
        component = component_means(component, batch.target, None) > 0
        assert torch.equal(found.isnan(), component)
        assert torch.equal(found[~component], expected[~component])
