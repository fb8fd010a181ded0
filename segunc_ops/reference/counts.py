"""Tables of counts; see :mod:`segunc_ops.functional.counts`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._constants import UNCERTAINTY_BINS, UNITS
from .._dtypes import accumulate_dtype
from .common import at_size, check_classes, class_sizes, valid_labels

__all__ = [
    "accumulate_counts",
    "accumulate_map_counts",
    "accumulate_patch_counts",
    "class_sizes",
]

_MAX_CONFIDENCE = 1 + 2.0**-7  # rounded to bfloat16, probabilities exceed 1 by up to so much
_MAX_UNCERTAINTY = 256 - 2.0**-16
_MAX_BRIER = 4.0  # 2, if probabilities add up to 1
_MAX_NEGATIVE_LOG = 1024.0  # beyond, a probability is 0 in every float type
_WRONG, _RIGHT, _IGNORED = 0, 1, 2


def _fixed(values: Tensor) -> Tensor:
    """In units of 2^-24, to the nearest, ties to even."""
    return (values * UNITS).round().long()


def uncertainty_bins(uncertainty: Tensor) -> Tensor:
    """The bin of each uncertainty in [0, 256): the leading bits of its float32."""
    bits = (uncertainty.float() + 0.0).view(torch.int32)  # -0 becomes 0
    return ((bits - ((127 - 24) << 23)) >> (23 - 7)).clamp(min=0).long()


def _add_at(table: Tensor, index: Tensor, values: Tensor) -> None:
    table.view(-1).index_add_(0, index.flatten(), values.flatten().long())


def _count_predictions(
    prediction: Tensor,
    labels: Tensor,
    valid: Tensor,
    uncertainty: Tensor | None,
    num_classes: int,
    confusion: Tensor | None,
    uncertainty_sums: Tensor | None,
    histogram: Tensor | None,
    outcome: Tensor | None,
) -> None:
    right = prediction == labels
    if outcome is not None:
        outcome.copy_(torch.where(valid, right.long() * _RIGHT, _IGNORED))
    right = right[valid]
    cell = (labels * num_classes + prediction)[valid]
    if confusion is not None:
        _add_at(confusion, cell, torch.ones_like(cell))
    if uncertainty is None:
        return
    u = uncertainty[valid]
    defined = (u >= 0) & (u <= _MAX_UNCERTAINTY)
    u = torch.where(defined, u, 0)
    if uncertainty_sums is not None:
        _add_at(uncertainty_sums[0], cell, _fixed(u))
        _add_at(uncertainty_sums[1], cell, ~defined)
    if histogram is not None:
        bins = torch.where(defined, uncertainty_bins(u), UNCERTAINTY_BINS)
        index = right.long() * (UNCERTAINTY_BINS + 1) + bins
        _add_at(histogram, index, torch.ones_like(index))


def _count_confidences(confidence: Tensor, right: Tensor, calibration: Tensor) -> None:
    num_bins = len(calibration) - 1
    defined = (confidence >= 0) & (confidence <= _MAX_CONFIDENCE)
    fixed = _fixed(torch.where(defined, confidence, 0))
    bins = ((fixed * num_bins - 1) >> 24).clamp(0, num_bins - 1)
    bins = torch.where(defined, bins, num_bins)
    rows = torch.stack((torch.ones_like(fixed), right.long(), fixed), 1)
    calibration.index_add_(0, bins, rows)


def _count_scores(p: Tensor, labels: Tensor, negative_log: Tensor, scores: Tensor) -> None:
    target = torch.nn.functional.one_hot(labels, p.shape[1])
    brier = (p - target).square().sum(1)
    defined = (brier <= _MAX_BRIER) & (negative_log >= -1)
    possible = negative_log <= _MAX_NEGATIVE_LOG
    counts = (
        torch.ones_like(labels).sum(),
        _fixed(brier[defined]).sum(),
        _fixed(negative_log[defined & possible]).sum(),
        (defined & ~possible).sum(),
        (~defined).sum(),
    )
    scores.add_(torch.stack(counts))


def accumulate_counts(
    input: Tensor,
    target: Tensor,
    uncertainty: Tensor | None,
    ignore_index: int,
    probabilities: bool,
    align_corners: bool,
    confusion: Tensor | None,
    uncertainty_sums: Tensor | None,
    calibration: Tensor | None,
    scores: Tensor | None,
    histogram: Tensor | None,
    outcome: Tensor | None,
) -> None:
    """Adds a batch to tables; see :func:`segunc_ops.functional.accumulate_counts`.

    Logits, or probabilities, of another size than the target's are interpolated to it.
    """
    input = at_size(input, target.shape[1:], align_corners)
    num_classes = input.shape[1]
    valid, labels = valid_labels(target, num_classes, ignore_index)
    values = input.to(accumulate_dtype(input.dtype))
    # NaN is never the prediction, though the others be -inf; a pixel of nothing else has class 0.
    known = values.masked_fill(values.isnan(), -torch.inf)
    prediction = (values == known.amax(1, keepdim=True)).int().argmax(1)
    _count_predictions(
        prediction,
        labels,
        valid,
        uncertainty,
        num_classes,
        confusion,
        uncertainty_sums,
        histogram,
        outcome,
    )
    if calibration is None and scores is None:
        return
    rows = values.movedim(1, -1)[valid]
    labels, right = labels[valid], (prediction == labels)[valid]
    p = rows if probabilities else rows.softmax(1)
    if calibration is not None:
        _count_confidences(p.amax(1), right, calibration)
    if scores is not None:
        log_p = rows.log() if probabilities else rows.log_softmax(1)
        negative_log = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
        _count_scores(p, labels, negative_log, scores)


def accumulate_map_counts(
    prediction: Tensor,
    confidence: Tensor | None,
    target: Tensor,
    uncertainty: Tensor | None,
    num_classes: int,
    ignore_index: int,
    confusion: Tensor | None,
    uncertainty_sums: Tensor | None,
    calibration: Tensor | None,
    histogram: Tensor | None,
    outcome: Tensor | None,
) -> None:
    """The same from maps of the prediction, without scores."""
    valid, labels = valid_labels(target, num_classes, ignore_index)
    prediction = torch.where(valid, prediction.long(), 0)
    check_classes("prediction", prediction, num_classes)
    _count_predictions(
        prediction,
        labels,
        valid,
        uncertainty,
        num_classes,
        confusion,
        uncertainty_sums,
        histogram,
        outcome,
    )
    if calibration is not None:
        assert confidence is not None
        _count_confidences(confidence[valid], (prediction == labels)[valid], calibration)


def accumulate_patch_counts(
    outcome: Tensor,
    uncertainty: Tensor,
    thresholds: Tensor,
    window: int,
    accuracy_threshold: float,
    counts: Tensor,
) -> None:
    """Adds patches to their counts; see :func:`segunc_ops.functional.accumulate_patch_counts`."""

    def patches(pixels: Tensor) -> Tensor:
        rows, columns = (size // window for size in pixels.shape[-2:])
        cut = pixels.flatten(0, -3)[:, : rows * window, : columns * window]
        tiles = cut.reshape(len(cut), rows, window, columns, window).transpose(2, 3)
        return tiles.reshape(len(cut) * rows * columns, window * window)

    valid = patches(outcome != _IGNORED)
    defined = (uncertainty >= 0) & (uncertainty <= _MAX_UNCERTAINTY)
    sums = (patches(_fixed(torch.where(defined, uncertainty, 0))) * valid).sum(1)
    undefined = (patches(~defined) & valid).any(1)
    right, number = patches(outcome == _RIGHT).sum(1), valid.sum(1)
    accurate = right.double() > accuracy_threshold * number.double()
    for row, threshold in zip(counts, thresholds, strict=True):
        uncertain = sums.double() > threshold * (number.double() * UNITS)
        kind = 2 * (~accurate).long() + uncertain.long()
        kind = torch.where(undefined, 4, kind)[number > 0]
        _add_at(row, kind, torch.ones_like(kind))
