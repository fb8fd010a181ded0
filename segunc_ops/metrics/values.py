"""From tables of counts to values: float64 but on devices that have none."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._constants import UNITS

Absent = Literal["exclude", "zero"]
By = Literal["target", "prediction"]


class Reliability(NamedTuple):
    """A reliability diagram: per bin of confidence, each ``(B,)``; NaN where a bin is empty."""

    confidence: Tensor
    """Mean confidence."""
    accuracy: Tensor
    """Share of correct pixels."""
    pixels: Tensor
    """Number of pixels (int64)."""


class RiskCoverageCurve(NamedTuple):
    """What error rate remains if only the most certain pixels are kept, each ``(points,)``."""

    coverage: Tensor
    """Share of the pixels that are kept, increasing."""
    risk: Tensor
    """Share of wrong ones among them."""
    area: Tensor
    """AURC, a scalar: the mean over k of the risk of the k most certain pixels."""


def _real(counts: Tensor) -> Tensor:
    return counts.float() if counts.device.type == "mps" else counts.double()


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, ``(C,)``; NaN where it occurs nowhere."""
    counts = _real(confusion)
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def class_dice(confusion: Tensor) -> Tensor:
    """Dice coefficient of each class, ``(C,)``; NaN where it occurs nowhere."""
    counts = _real(confusion)
    return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


def by_class(values: Tensor, absent: Absent, ignored: int) -> Tensor:
    """Values of the classes, with NaN or 0 for absent ones, and NaN for the one that is ignored."""
    if absent == "zero":
        values = values.nan_to_num(0.0)
    if 0 <= ignored < len(values):  # it has no targets, so that any prediction of it is wrong
        values = values.clone()
        values[ignored] = torch.nan
    return values


def macro(values: Tensor, absent: Absent, ignored: int) -> Tensor:
    """Mean over the classes but the one that is ignored, without absent ones or with 0 for them."""
    return by_class(values, absent, ignored).nanmean()


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of correct pixels."""
    return _real(confusion.diagonal().sum()) / _real(confusion.sum())


def _nan_if(undefined: Tensor, value: Tensor) -> Tensor:
    return torch.where(undefined > 0, torch.nan, value)


def calibration_error(calibration: Tensor) -> Tensor:
    """Expected calibration error."""
    pixels, correct, confidence = _real(calibration[:-1]).unbind(1)
    gap = (correct - confidence / UNITS).abs().sum() / pixels.sum()
    return _nan_if(calibration[-1, 0], gap)


def reliability(calibration: Tensor) -> Reliability:
    """Accuracy by confidence."""
    pixels, correct, confidence = _real(calibration[:-1]).unbind(1)
    undefined = calibration[-1, 0]
    return Reliability(
        _nan_if(undefined, confidence / UNITS / pixels),
        _nan_if(undefined, correct / pixels),
        calibration[:-1, 0].clone(memory_format=torch.contiguous_format),
    )


def brier_score(scores: Tensor) -> Tensor:
    """Mean Brier score."""
    pixels, brier, _, _, undefined = _real(scores)
    return _nan_if(undefined, brier / UNITS / pixels)


def negative_log_likelihood(scores: Tensor) -> Tensor:
    """Mean of -log p of the target, in nats."""
    pixels, _, negative_log, impossible, undefined = _real(scores)
    value = torch.where(impossible > 0, torch.inf, negative_log / UNITS / pixels)
    return _nan_if(undefined, value)


def class_uncertainty(confusion: Tensor, sums: Tensor, by: By) -> Tensor:
    """Mean uncertainty of each class, ``(C,)``."""
    dim = 1 if by == "target" else 0
    total, undefined = sums.sum(dim + 1)
    return _nan_if(undefined, _real(total) / UNITS / _real(confusion.sum(dim)))


def mean_uncertainty(confusion: Tensor, sums: Tensor) -> Tensor:
    """Mean uncertainty of all pixels."""
    total, undefined = sums.sum((1, 2))
    return _nan_if(undefined, _real(total) / UNITS / _real(confusion.sum()))


def pavpu(patches: Tensor) -> Tensor:
    """Share of good patches by threshold, ``(K,)``."""
    accurate_certain, _, _, inaccurate_uncertain, undefined = _real(patches).unbind(1)
    good = accurate_certain + inaccurate_uncertain
    return _nan_if(undefined, good / _real(patches[:, :4].sum(1)))


def risk_coverage(histogram: Tensor) -> RiskCoverageCurve:
    """The curve through the upper ends of the bins of uncertainty."""
    filled = histogram[:, :-1].sum(0) > 0
    wrong, right = histogram[:, :-1][:, filled]
    pixels = wrong + right
    up_to, errors_up_to = pixels.cumsum(0), wrong.cumsum(0)
    before, errors_before = _real(up_to - pixels), _real(errors_up_to - wrong)
    # Pixels of a bin are kept in random order: their j-th finds errors_before + j * rate errors
    # among before + j pixels, in the mean, whose quotients sum up to this.
    rate = _real(wrong) / _real(pixels)
    harmonic = torch.digamma(_real(up_to) + 1) - torch.digamma(before + 1)
    total = _real(pixels.sum())
    area = (_real(wrong) + (errors_before - before * rate) * harmonic).sum() / total
    undefined = histogram[:, -1].sum()
    return RiskCoverageCurve(
        _real(up_to) / total,
        _nan_if(undefined, _real(errors_up_to) / _real(up_to)),
        _nan_if(undefined, area),
    )


def error_auroc(histogram: Tensor) -> Tensor:
    """Area under the ROC curve of the uncertainty as a detector of wrong pixels."""
    wrong, right = _real(histogram[:, :-1])
    below = right.cumsum(0) - right
    area = (wrong * (below + right / 2)).sum() / (wrong.sum() * right.sum())
    return _nan_if(histogram[:, -1].sum(), area)
