"""Every operation once more in plain PyTorch, the specification that kernels are tested against.

The functions here take arguments that :mod:`segunc_ops.functional` has validated, compute in
float32 (float64 for float64 input) and are differentiable by autograd as often as one likes.
They also run where no kernel exists: ``with segunc_ops.backend("reference")``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "UNCERTAINTY_BINS",
    "accumulate_counts",
    "accumulate_map_counts",
    "accumulate_patch_counts",
    "accumulate_statistics",
    "component_mean",
    "connected_components",
    "cross_entropy",
    "finalize_statistics",
    "interpolate",
    "predictive_statistics",
]


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that logits of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _labels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which pixels count, and every pixel's class with 0 where it does not."""
    valid = target != ignore_index
    labels = torch.where(valid, target, torch.zeros_like(target)).long()
    _check_classes("target", labels, num_classes, f" or {ignore_index}")
    return valid, labels


def _check_classes(name: str, labels: Tensor, num_classes: int, or_else: str = "") -> None:
    # Reading the values would synchronise a GPU or break a compiled graph; there gather checks.
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        value = labels[outside][0].item()
        raise IndexError(f"{name}: expected a class in [0, {num_classes}){or_else}, got {value}")


def reduce_loss(
    loss: Tensor, valid: Tensor, normalizer_terms: Tensor | None, reduction: str
) -> Tensor:
    """Reduces per-pixel losses that are 0 where ignored; the four reductions."""
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if reduction == "mean_all":
        return total / loss.numel()
    if normalizer_terms is None:
        return total / valid.sum()
    return total / torch.where(valid, normalizer_terms, 0).sum()


def interpolate(logits: Tensor, size: Sequence[int], mode: str, align_corners: bool) -> Tensor:
    """:func:`torch.nn.functional.interpolate`, in float32 (float64) even under autocast.

    Args:
        logits: ``(N, C, *source)``.
        size: of the result ``(N, C, *size)``.
        mode: ``"bilinear"`` or ``"trilinear"``.
        align_corners: as for torch.
    """
    device = logits.device.type
    without_autocast: AbstractContextManager[object] = nullcontext()
    if device != "meta":  # which autocast does not know
        without_autocast = torch.autocast(device, enabled=False)
    with without_autocast:
        wide = logits.to(accumulate_dtype(logits.dtype))
        return F.interpolate(wide, [*size], mode=mode, align_corners=align_corners)


def _at_size(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Logits ``(N, C, *)``, interpolated unless they have that size."""
    if tuple(size) == tuple(logits.shape[2:]):
        return logits
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return interpolate(logits, size, mode, align_corners)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    upsample: str | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Weighted cross-entropy; see :func:`segunc_ops.functional.cross_entropy`.

    With p = softmax(z), label y, class weights w, smoothing e and pixel weight u::

        l = u * ((1 - e) * w_y * -log p_y + e / C * sum_c w_c * -log p_c)

    With `upsample` z is the input, interpolated to the target's size.
    """
    if upsample is not None:
        input = interpolate(input, target.shape[1:], upsample, align_corners)
    num_classes = input.shape[1]
    valid, labels = _labels(target, num_classes, ignore_index)
    dtype = accumulate_dtype(input.dtype)
    # Whatever ignored pixels hold is never read: a NaN there would come back as 0 * NaN.
    logits = torch.where(valid.unsqueeze(1), input, torch.zeros_like(input)).to(dtype)
    negative_log_p = -torch.log_softmax(logits, dim=1)
    loss = negative_log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    target_weight = None
    if weight is not None:
        weight = weight.to(dtype)
        target_weight = weight[labels]
        loss = loss * target_weight
    if label_smoothing > 0:
        shape = (1, num_classes) + (1,) * (input.dim() - 2)
        spread = negative_log_p if weight is None else negative_log_p * weight.view(shape)
        loss = (1 - label_smoothing) * loss + label_smoothing / num_classes * spread.sum(1)
    if pixel_weight is not None:
        loss = loss * torch.where(valid, pixel_weight.to(dtype), 0)
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return reduce_loss(loss, valid, target_weight, reduction)


def _entropy(p: Tensor, dim: int) -> Tensor:
    return torch.special.entr(p).sum(dim)


def _maps(
    mean: Tensor, variance_at: Tensor, prediction: Tensor, expected_entropy: Tensor
) -> tuple[Tensor, ...]:
    entropy = _entropy(mean, 1)
    confidence = mean.gather(1, prediction.unsqueeze(1)).squeeze(1)
    # Jensen's inequality makes it non-negative; rounding alone would not.
    mutual_information = (entropy - expected_entropy).clamp(min=0)
    return (
        prediction,
        confidence,
        variance_at.sqrt(),
        entropy,
        expected_entropy,
        mutual_information,
    )


def predictive_statistics(
    samples: Tensor | Sequence[Tensor],
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    return_mean: bool = False,
) -> tuple[Tensor, ...]:
    """Statistics of S samples; see :func:`segunc_ops.functional.predictive_statistics`.

    Returns prediction, confidence, std, entropy, expected entropy and mutual information, then
    the mean if asked.
    """
    if size is not None:
        samples = [_at_size(sample, size, align_corners) for sample in samples]
    stacked = samples if isinstance(samples, Tensor) else torch.stack(list(samples))
    p = stacked.to(accumulate_dtype(stacked.dtype)).softmax(2)
    mean = p.mean(0)
    prediction = mean.argmax(1)
    chosen = p.gather(
        2, prediction[None, :, None].expand(p.shape[0], -1, -1, *prediction.shape[1:])
    )
    chosen = chosen.squeeze(2)
    squares = (chosen - chosen.mean(0)).square().sum(0)
    # Divided as tensors: a single sample gives 0 / 0 = NaN, as in torch.std.
    variance = squares / squares.new_tensor(p.shape[0] - 1)
    maps = _maps(mean, variance, prediction, _entropy(p, 2).mean(0))
    return (*maps, mean) if return_mean else maps


def accumulate_statistics(
    mean: Tensor,
    squared_deviations: Tensor,
    entropy_sum: Tensor,
    logits: Tensor,
    count: int,
    align_corners: bool = False,
) -> None:
    """Updates a running state in place by the ``count``-th sample (Welford's recurrence).

    Logits of another size than the state's are interpolated to it.
    """
    p = _at_size(logits, mean.shape[2:], align_corners).to(mean.dtype).softmax(1)
    entropy = _entropy(p, 1)
    if count == 1:
        mean.copy_(p)
        squared_deviations.zero_()
        entropy_sum.copy_(entropy)
        return
    delta = p - mean
    mean.add_(delta / count)
    squared_deviations.add_(delta * (p - mean))
    entropy_sum.add_(entropy)


def finalize_statistics(
    mean: Tensor, squared_deviations: Tensor, entropy_sum: Tensor, count: int
) -> tuple[Tensor, ...]:
    """The maps of :func:`predictive_statistics` from a running state."""
    prediction = mean.argmax(1)
    squares = squared_deviations.gather(1, prediction.unsqueeze(1)).squeeze(1)
    variance = squares / squares.new_tensor(count - 1)
    return _maps(mean, variance, prediction, entropy_sum / count)


def _component_roots(
    labels: Tensor, connectivity: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Of every pixel the first one of its component in raster order, and whether it is valid.

    Both are flat over the whole batch; an ignored pixel is its own root.
    """
    pixels = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
    valid = torch.ones_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        valid = labels != ignore_index
    size = labels.shape[1:]
    axes = len(size)
    full = connectivity > 2 * axes
    edges = []
    for step in itertools.product((-1, 0, 1), repeat=axes):
        if step <= (0,) * axes or (not full and sum(map(abs, step)) > 1):
            continue  # of two opposite steps one suffices
        here = [slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, size, strict=True)]
        there = [slice(max(s, 0), n - max(-s, 0)) for s, n in zip(step, size, strict=True)]
        at, near = (slice(None), *here), (slice(None), *there)
        joined = (labels[at] == labels[near]) & valid[at]
        edges.append(torch.stack([pixels[at][joined], pixels[near][joined]]))
    first, second = torch.cat(edges, 1)
    # Of two trees that touch, the later one's root goes under the earlier's; then trees are
    # flattened. At least half of the trees that touch vanish in a round, and what is left as a
    # root is its component's first pixel.
    root = pixels.flatten()
    while True:
        a, b = root[first], root[second]
        apart = a != b
        if not apart.any():
            return root, valid.flatten()
        a, b, first, second = a[apart], b[apart], first[apart], second[apart]
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(above := root[root], root):
            root = above


def connected_components(
    labels: Tensor, connectivity: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Ids and their number; see :func:`segunc_ops.functional.connected_components`."""
    root, valid = _component_roots(labels, connectivity, ignore_index)
    pixel = torch.arange(root.numel(), device=root.device)
    per_image = (len(labels), math.prod(labels.shape[1:]))
    rank = ((root == pixel) & valid).view(per_image).cumsum(1)
    ids = torch.where(valid, rank.flatten()[root], 0)
    counts = rank[:, -1] if per_image[1] else rank.new_zeros(per_image[0])
    return ids.view(labels.shape).to(torch.int32), counts


def component_mean(
    values: Tensor, labels: Tensor, connectivity: int, ignore_index: int | None
) -> Tensor:
    """Means over components; see :func:`segunc_ops.functional.component_mean`."""
    root, valid = _component_roots(labels, connectivity, ignore_index)
    # What ignored pixels hold is never read.
    each = torch.where(valid, values.flatten(), torch.zeros_like(values.flatten())).double()
    size = torch.zeros_like(each).index_add_(0, root, torch.ones_like(each))
    mean = torch.zeros_like(each).index_add(0, root, each) / size.clamp(min=1)
    mean = torch.where(mean.isfinite(), mean, torch.nan)
    mean = torch.where(valid, mean[root], torch.zeros_like(mean))
    return mean.view(values.shape).to(values.dtype)


UNCERTAINTY_BINS = 4096
"""Bins of the histogram of uncertainties: 128 an octave from 2^-24 to 2^8."""

# Sums are integers in units of 2^-24: any order of addition gives the same bits.
_UNITS = 2.0**24
_MAX_CONFIDENCE = 1 + 2.0**-7  # rounded to bfloat16, probabilities exceed 1 by up to so much
_MAX_UNCERTAINTY = 256 - 2.0**-16
_MAX_BRIER = 4.0  # 2, if probabilities add up to 1
_MAX_NEGATIVE_LOG = 1024.0  # beyond, a probability is 0 in every float type
_WRONG, _RIGHT, _IGNORED = 0, 1, 2


def _fixed(values: Tensor) -> Tensor:
    """In units of 2^-24, to the nearest, ties to even."""
    return (values * _UNITS).round().long()


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
    input = _at_size(input, target.shape[1:], align_corners)
    num_classes = input.shape[1]
    valid, labels = _labels(target, num_classes, ignore_index)
    values = input.to(accumulate_dtype(input.dtype))
    # NaN is never the prediction; a pixel of nothing else has class 0.
    prediction = values.masked_fill(values.isnan(), -torch.inf).argmax(1)
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
    valid, labels = _labels(target, num_classes, ignore_index)
    prediction = torch.where(valid, prediction.long(), 0)
    _check_classes("prediction", prediction, num_classes)
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
        uncertain = sums.double() > threshold * (number.double() * _UNITS)
        kind = 2 * (~accurate).long() + uncertain.long()
        kind = torch.where(undefined, 4, kind)[number > 0]
        _add_at(row, kind, torch.ones_like(kind))
