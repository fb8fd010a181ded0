"""Means and spreads of logits: their start, their form, and the losses that take them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from segunc_ops import (
    ExpectedCrossEntropyLoss,
    GaussianHead,
    GaussianLogits,
    LabelUncertaintyLoss,
)

FEATURES = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
KINDS = pytest.mark.parametrize(
    ("num_classes", "covariance"), [(1, "diagonal"), (4, "diagonal"), (4, "cholesky")]
)


def factors(spread: Tensor, num_classes: int) -> Tensor:
    """``(N, *, C, C)`` of packed rows."""
    full = torch.zeros(*spread.shape[:1], *spread.shape[2:], num_classes, num_classes)
    rows, columns = torch.tril_indices(num_classes, num_classes)
    full[..., rows, columns] = spread.movedim(1, -1)
    return full


@KINDS
def test_it_starts_with_the_variance_asked_for(num_classes, covariance):
    head = GaussianHead(6, num_classes, covariance=covariance, start_variance=0.3)
    logits = head(FEATURES)
    assert isinstance(logits, GaussianLogits)
    assert logits.mean.shape == (2, num_classes, 4, 5)
    assert logits.spread.shape[1] == {"diagonal": num_classes, "cholesky": 10}[covariance]
    torch.testing.assert_close(logits.variance, torch.full_like(logits.mean, 0.3))
    assert logits.mean.std() > 0.1
    if covariance == "cholesky":
        factor = factors(logits.spread, 4)
        torch.testing.assert_close(factor, math.sqrt(0.3) * torch.eye(4).expand(2, 4, 5, 4, 4))


@KINDS
def test_any_features_give_a_positive_spread(num_classes, covariance):
    head = GaussianHead(6, num_classes, covariance=covariance, min_deviation=0.01)
    with torch.no_grad():
        head.spread.weight.normal_(std=100)
    mean, spread = logits = head(FEATURES)
    assert spread.isfinite().all()
    if num_classes == 1:
        assert torch.equal(spread, head.spread(FEATURES))
        return
    deviations = spread if covariance == "diagonal" else factors(spread, 4).diagonal(0, -2, -1)
    assert deviations.min().item() == pytest.approx(0.01)
    if covariance == "cholesky":
        factor = factors(spread, 4)
        variances = (factor @ factor.mT).diagonal(0, -2, -1).movedim(-1, 1)
        torch.testing.assert_close(logits.variance, variances)
        below = torch.tril_indices(4, 4)[0] != torch.tril_indices(4, 4)[1]
        assert torch.equal(spread[:, below], head.spread(FEATURES)[:, below])
    else:
        torch.testing.assert_close(logits.variance, spread.square())
    assert mean.shape == logits.variance.shape


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype, num_classes, covariance):
    head = GaussianHead(6, num_classes, covariance=covariance)
    with torch.no_grad():
        head.spread.weight.normal_()
    with torch.autocast("cpu", dtype):
        mean, spread = head(FEATURES)
    assert mean.dtype == spread.dtype == dtype
    whole = head(FEATURES)
    torch.testing.assert_close(spread.float(), whole.spread, rtol=0.02, atol=0.05)
    mean, spread = copy.deepcopy(head).to(dtype)(FEATURES.to(dtype))
    assert mean.dtype == spread.dtype == dtype


@KINDS
def test_memory_formats_stay(num_classes, covariance):
    head = GaussianHead(6, num_classes, covariance=covariance, kernel_size=3)
    whole = head(FEATURES)
    head.to(memory_format=torch.channels_last)
    found = head(FEATURES.to(memory_format=torch.channels_last))
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other)
        assert one.is_contiguous(memory_format=torch.channels_last)
        assert other.is_contiguous()


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_axes(spatial_dims):
    features = torch.randn(2, 6, *(5, 4, 3)[:spatial_dims])
    head = GaussianHead(6, 3, covariance="cholesky", spatial_dims=spatial_dims, kernel_size=3)
    mean, spread = head(features)
    assert mean.shape[2:] == spread.shape[2:] == features.shape[2:]
    assert spread.shape[1] == 6


@KINDS
def test_losses_teach_all_of_it(num_classes, covariance):
    torch.manual_seed(0)
    head = GaussianHead(6, num_classes, covariance=covariance)
    if num_classes == 1:
        labels = torch.randint(0, 2, (2, 4, 5))
        loss = LabelUncertaintyLoss(threshold=1.0)(*head(FEATURES), labels)
    else:
        labels = torch.randint(0, num_classes, (2, 16, 20))
        criterion = ExpectedCrossEntropyLoss(num_draws=2, upsample="bilinear")
        loss = criterion(*head(FEATURES), labels)
    loss.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.ne(0).any(), name


def test_state_holds_parameters_alone():
    head = GaussianHead(6, 3, covariance="cholesky")
    assert set(head.state_dict()) == {"mean.weight", "mean.bias", "spread.weight", "spread.bias"}
    head.mean.load_state_dict(torch.nn.Conv2d(6, 3, 1).state_dict())
    assert "covariance='cholesky', start_variance=0.1" in repr(head)


def test_a_networks_own_initialisation_can_be_undone():
    head = GaussianHead(6, 3, start_variance=0.2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    head.reset_spread()
    variance = head(FEATURES).variance
    torch.testing.assert_close(variance, torch.full_like(variance, 0.2))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected at least 1, got 0"),
        ({"in_channels": 2.5}, TypeError, "in_channels: expected an integer"),
        ({"covariance": "full"}, ValueError, "covariance: expected one of .* got 'full'"),
        (
            {"num_classes": 1, "covariance": "cholesky"},
            ValueError,
            "covariance: expected 'diagonal' for one class",
        ),
        ({"start_variance": 0}, ValueError, "start_variance: expected a finite number above 0"),
        ({"start_variance": 1e-6}, ValueError, "start_variance: expected more than the square of"),
        ({"min_deviation": -1}, ValueError, "min_deviation: expected a finite number of at least"),
        ({"kernel_size": 2}, ValueError, "kernel_size: expected an odd number, got 2"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims: expected 1, 2 or 3, got 4"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        GaussianHead(**{"in_channels": 6, "num_classes": 3, **arguments})
