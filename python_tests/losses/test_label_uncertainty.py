"""The loss of uncertain binary labels as a module, and the two minima that it is made for."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.label_uncertainty.cases import batch
from python_tests.support import IGNORED
from segunc_ops import LabelUncertaintyLoss

pytestmark = pytest.mark.usefixtures("each_backend")


def test_is_the_sum_of_the_functions():
    b = batch(torch.float64)
    options = {"ignore_index": IGNORED, "reduction": "mean_all"}
    loss = LabelUncertaintyLoss(0.7, detach_weight=False, bootstrap_weight=0.25, **options)
    wanted = sf.label_uncertainty_bce(
        b.mean, b.log_variance, b.target, pixel_weight=b.u, **options
    ) + 0.25 * sf.bootstrapped_bce(
        b.mean,
        b.log_variance,
        b.target,
        threshold=0.7,
        bootstrap=b.bootstrap,
        detach_weight=False,
        pixel_weight=b.u,
        **options,
    )
    found = loss(b.mean, b.log_variance, b.target, b.bootstrap, b.u)
    torch.testing.assert_close(found, wanted)
    for a, w in zip(*(torch.autograd.grad(v, b.leaves()) for v in (found, wanted)), strict=True):
        torch.testing.assert_close(a, w)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        again = other(b.mean, b.log_variance, b.target, b.bootstrap, b.u)
        torch.testing.assert_close(again, found)


def test_arguments_and_their_errors():
    parameters = set(inspect.signature(LabelUncertaintyLoss).parameters)
    of_function = set(inspect.signature(sf.bootstrapped_bce).parameters)
    inputs = {"mean", "log_variance", "target", "bootstrap", "pixel_weight"}
    assert parameters == of_function - inputs | {"uncertainty_weight", "bootstrap_weight"}
    text = repr(LabelUncertaintyLoss(0.5, ignore_index=255, reduction="sum"))
    for part in ("threshold=0.5", "ignore_index=255", "reduction='sum'", "detach_weight=True"):
        assert part in text
    with pytest.raises(ValueError, match="threshold: expected a finite number of at least 0"):
        LabelUncertaintyLoss(float("nan"))
    with pytest.raises(ValueError, match="reduction: expected one of"):
        LabelUncertaintyLoss(1.0, reduction="average")


SMALLEST, LARGEST = -3.0, 3.0  # log-variances that a pixel may have


def _descend(loss: LabelUncertaintyLoss, y: Tensor, mean: float, log_variance: float) -> Tensor:
    """Where descent takes a pixel, the variance by steps of one length: its slopes are slight."""
    at = torch.tensor([mean, log_variance], dtype=torch.float64, requires_grad=True)
    for _ in range(250):
        (gradient,) = torch.autograd.grad(loss(at[:1], at[1:], y), at)
        with torch.no_grad():
            at[0] -= 2.0 * gradient[0]
            at[1] -= 0.05 * gradient[1].sign()
            at[1].clamp_(SMALLEST, LARGEST)
    return at.detach()


@pytest.mark.parametrize("detach_weight", [True, False])
@pytest.mark.parametrize("label", [1, 0])
def test_both_local_minima(label, detach_weight):
    """A pixel of label 1 ends at a positive mean with the smallest variance, or at a negative one
    with the largest, by where it starts; label 0 is its mirror image.

    Along the variance both lie at the end of its range: a smaller variance always suits the label,
    a larger one the flipped label.
    """
    y = torch.tensor([label])
    side = 2 * label - 1
    loss = LabelUncertaintyLoss(0.5, detach_weight=detach_weight)
    kept = _descend(loss, y, side * 0.5, -1.0)
    flipped = _descend(loss, y, side * -0.5, 1.0)
    assert side * kept[0] > 1
    assert kept[1] == SMALLEST
    assert side * flipped[0] < -1
    assert flipped[1] == LARGEST

    def value(points: Tensor) -> Tensor:
        means, log_variances = points.unbind(-1)
        labels = y.expand(means.shape)
        each = LabelUncertaintyLoss(0.5, detach_weight=detach_weight, reduction="none")
        return each(means, log_variances, labels)

    angles = torch.linspace(0, 2 * torch.pi, 65, dtype=torch.float64)
    around = torch.stack([angles.cos(), angles.sin()], -1)
    for minimum in (kept, flipped):
        for radius in (0.01, 0.1, 0.5):
            points = minimum + radius * around
            points = points[(points[:, 1] >= SMALLEST) & (points[:, 1] <= LARGEST)]
            assert len(points) > 30
            assert (value(points) > value(minimum[None])).all()
    # No way leads from one to the other without a climb: not the straight one, nor any along which
    # the mean is the best of each variance's.
    way = torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1)
    climbs = value(kept + way * (flipped - kept))
    assert climbs.max() > max(value(kept[None]), value(flipped[None])) + 0.05
    means = torch.linspace(-12, 12, 481, dtype=torch.float64)
    variances = torch.linspace(SMALLEST, LARGEST, 201, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(variances, means, indexing="ij")[::-1], -1)
    best = value(grid.flatten(0, 1)).view(201, 481).amin(1)
    assert best.max() > max(best[0], best[-1]) + 0.05
