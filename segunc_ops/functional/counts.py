"""Integer tables that metrics are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import (
    check_bool,
    check_choice,
    check_class_scores,
    check_device,
    check_floating,
    check_int64,
    check_logits,
    check_positive,
    check_share,
    check_size,
    check_state,
    check_target,
    check_target_dtype,
    check_tensor,
    describe,
    one_channel_error,
    pixel_shape,
)
from .._constants import UNCERTAINTY_BINS
from .._dtypes import accumulate_dtype
from .._native.backend import implementation
from .._types import PredictiveStatistics

__all__ = [
    "SegmentationCounts",
    "accumulate_counts",
    "accumulate_patch_counts",
    "class_sizes",
    "empty_counts",
]

# A GPU kernel counts the patches of so many thresholds in shared memory.
_MAX_THRESHOLDS = 1024


class SegmentationCounts(NamedTuple):
    """Tables of integers that metrics are made of; None where one is not wanted.

    C classes, B bins of confidence. Sums are in units of 2^-24 (6e-8), to which each pixel's value
    is rounded, so that tables of any parts of a dataset add up to those of the whole, bit by bit.
    """

    confusion: Tensor | None = None
    """``(C, C)``, pixels: row = target, column = prediction."""
    uncertainty_sums: Tensor | None = None
    """``(2, C, C)``, by target and prediction: the sum of the uncertainty, and the number of pixels
    where it is not in [0, 256)."""
    calibration: Tensor | None = None
    """``(B + 1, 3)``, per bin of confidence: pixels, correct pixels, the sum of the confidence. The
    last row has the pixels whose confidence is not in [0, 1]."""
    scores: Tensor | None = None
    """``(5,)``: pixels, the sums of the Brier score and of -log p of the target, pixels where that
    p is 0, which the latter leaves out, and pixels without probabilities (NaN), which both do."""
    histogram: Tensor | None = None
    """``(2, 4097)``, wrong and correct pixels by uncertainty. Bins are those of a float32's leading
    bits, 128 an octave from 2^-24 to 256 (0.8% wide); the last column as in `uncertainty_sums`."""


def empty_counts(
    num_classes: int,
    *,
    num_bins: int = 15,
    tables: Sequence[str] = SegmentationCounts._fields,
    device: torch.device | str | None = None,
) -> SegmentationCounts:
    """Tables of zeros for :func:`accumulate_counts`.

    Args:
        num_classes: C.
        num_bins: bins of confidence.
        tables: the names of those that are wanted.
        device: where they live.

    Raises:
        ValueError: on a number that is not positive or a table that does not exist.
    """
    num_classes = check_positive("num_classes", num_classes)
    num_bins = check_positive("num_bins", num_bins)
    shapes = {
        "confusion": (num_classes, num_classes),
        "uncertainty_sums": (2, num_classes, num_classes),
        "calibration": (num_bins + 1, 3),
        "scores": (5,),
        "histogram": (2, UNCERTAINTY_BINS + 1),
    }
    if not isinstance(tables, Iterable) or isinstance(tables, Tensor):
        raise TypeError(f"tables: expected names, got {describe(tables)}")
    for index, name in enumerate(tables):
        check_choice(f"tables[{index}]", name, tuple(shapes))
    try:
        device = torch.empty(0, device=device).device
    except (TypeError, ValueError, RuntimeError) as error:
        raise type(error)(f"device: {error}") from error
    return SegmentationCounts(
        **{name: torch.zeros(shapes[name], dtype=torch.int64, device=device) for name in tables}
    )


@torch.no_grad()
def accumulate_counts(
    counts: SegmentationCounts,
    input: Tensor | PredictiveStatistics,
    target: Tensor,
    uncertainty: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    from_probabilities: bool = False,
    num_classes: int | None = None,
    ignore_index: int = -100,
    return_outcome: bool = False,
) -> Tensor | None:
    """Adds every pixel of a batch to tables, in place and in one pass.

    Everything is counted as integers, so results depend neither on threads nor on how a dataset is
    cut into batches. Rules: the prediction is the lowest class of the largest value, a NaN is never
    chosen; the confidence, rounded to 2^-24, falls into the bin (a, b] that holds it; what is not
    finite is counted apart, see :class:`SegmentationCounts`.

    With `size`, logits or probabilities are interpolated to the target's size on the way, as by
    :func:`predictive_statistics`, and are never in memory at that size.

    Args:
        counts: from :func:`empty_counts`, on the input's device.
        input: logits ``(N, C, *)`` of any float type and strides; or class probabilities; or
            :class:`PredictiveStatistics`, whose prediction and confidence are counted and whose
            mean, if `scores` are wanted, has to be there.
        target: class indices ``(N, *)``; int64, int32, int16 or uint8.
        uncertainty: ``(N, *)``, any float type, needed for `uncertainty_sums` and `histogram`; read
            in the type that the input is computed in. Values are expected in [0, 256).
        size: the target's spatial sizes, ``target.shape[1:]``, where the input tensor, ``(N, C, H,
            W)`` or ``(N, C, D, H, W)``, may have others. None: it has the same.
        align_corners: how it is interpolated, as for :func:`predictive_statistics`.
        from_probabilities: whether the input tensor holds probabilities instead of logits.
        num_classes: C, where neither the input nor the tables tell it.
        ignore_index: pixels with this target are in no count, whatever the input holds there.
        return_outcome: whether to return what became of each pixel.

    Returns:
        None, or the uint8 map ``(N, *)``: 0 wrong, 1 correct, 2 ignored.

    Raises:
        ValueError: shapes or devices that do not fit, or something that is missing.
        TypeError: types that do not fit.
        IndexError: a target outside [0, C) that is not `ignore_index`, or a prediction outside of
            [0, C); no table has changed. On CUDA by the next call of any operation (see
            :func:`segunc_ops.check`), that pixel being in no count.
    """
    if not isinstance(counts, SegmentationCounts):
        raise TypeError(f"counts: expected SegmentationCounts, got {describe(counts)}")
    ignore_index = check_int64("ignore_index", ignore_index)
    if num_classes is not None:
        num_classes = check_positive("num_classes", num_classes)
    check_bool("from_probabilities", from_probabilities)
    check_bool("return_outcome", return_outcome)
    values: Tensor | None = None
    statistics: PredictiveStatistics | None = None
    sizes: tuple[int, ...] | None = None
    if not isinstance(input, PredictiveStatistics):
        values = input
        check_class_scores("input", values)
        sizes = check_size("input", values, size, align_corners)
    elif size is not None or align_corners:
        raise ValueError(
            "size: expected none for PredictiveStatistics, whose maps are interpolated already, "
            f"got {size} with align_corners={align_corners}"
        )
    elif counts.scores is None:
        statistics = input
    else:
        if input.mean is None:
            raise ValueError(
                "input: expected statistics with their mean for the scores, got none; pass "
                "return_mean=True where they are made"
            )
        values, from_probabilities = input.mean, True
        check_class_scores("input.mean", values)
    if values is not None:
        dtype = accumulate_dtype(values.dtype)
        pixels, device, classes = pixel_shape(values, sizes), values.device, values.shape[1]
        check_target(
            values, target, size=sizes, takes_size=True, of_probabilities=from_probabilities
        )
    else:
        assert statistics is not None
        pixels, device = statistics.prediction.shape, statistics.prediction.device
        dtype = accumulate_dtype(statistics.confidence.dtype)
        _check_map_target(statistics, target)
        classes = _num_classes(counts, statistics, num_classes)
    if num_classes is not None and classes != num_classes:
        raise ValueError(f"input: expected {num_classes} classes, got {classes}")
    _check_counts(counts, classes, device)
    if uncertainty is not None:
        uncertainty = _check_uncertainty(uncertainty, pixels, device).to(dtype).contiguous()
    elif counts.uncertainty_sums is not None or counts.histogram is not None:
        raise ValueError("uncertainty: expected a map for these tables, got none")
    outcome = torch.empty(pixels, dtype=torch.uint8, device=device) if return_outcome else None

    run, target = implementation(device), target.contiguous()
    if values is not None:
        try:
            run.accumulate_counts(
                values,
                target,
                uncertainty,
                ignore_index,
                from_probabilities,
                align_corners,
                counts.confusion,
                counts.uncertainty_sums,
                counts.calibration,
                counts.scores,
                counts.histogram,
                outcome,
            )
        except IndexError as error:
            raise one_channel_error(error, values, of_probabilities=from_probabilities) from None
    else:
        assert statistics is not None
        confidence = None if counts.calibration is None else statistics.confidence
        run.accumulate_map_counts(
            statistics.prediction.contiguous(),
            None if confidence is None else confidence.to(dtype).contiguous(),
            target,
            uncertainty,
            classes,
            ignore_index,
            counts.confusion,
            counts.uncertainty_sums,
            counts.calibration,
            counts.histogram,
            outcome,
        )
    return outcome


@torch.no_grad()
def accumulate_patch_counts(
    counts: Tensor,
    outcome: Tensor,
    uncertainty: Tensor,
    thresholds: Tensor,
    *,
    window: int = 4,
    accuracy_threshold: float = 0.5,
) -> None:
    """Adds patches of pixels, accurate or not and certain or not, to their counts, in place.

    Patches of `window` x `window` pixels of the last two axes lie side by side; what is left of an
    image at its right and lower border is dropped, and so are patches without valid pixels. A patch
    is accurate if its share of correct pixels is above `accuracy_threshold`, and uncertain if its
    mean uncertainty is above the threshold; both strictly, over its valid pixels.

    Args:
        counts: int64 ``(K, 5)``, contiguous: per threshold the patches that are accurate and
            certain, accurate and uncertain, inaccurate and certain, inaccurate and uncertain; and
            those with an uncertainty that is not in [0, 256).
        outcome: uint8 ``(N, *, H, W)`` as :func:`accumulate_counts` returns it.
        uncertainty: of the same shape, any float type.
        thresholds: of the mean uncertainty, float64 ``(K,)`` with K <= 1024, on the same device.
        window: a patch's edge in pixels.
        accuracy_threshold: in [0, 1].

    Raises:
        ValueError: shapes, devices or numbers that do not fit.
        TypeError: types that do not fit.
    """
    if not isinstance(outcome, Tensor) or outcome.dtype != torch.uint8:
        raise TypeError(f"outcome: expected a uint8 tensor, got {describe(outcome)}")
    if outcome.dim() < 3:
        raise ValueError(f"outcome: expected shape (N, *, H, W), got {tuple(outcome.shape)}")
    window = check_positive("window", window)
    accuracy_threshold = check_share("accuracy_threshold", accuracy_threshold)
    device = outcome.device
    uncertainty = _check_uncertainty(uncertainty, outcome.shape, device)
    check_tensor("thresholds", thresholds)
    check_state(device, torch.float64, thresholds=(thresholds, thresholds.shape[:1]))
    if len(thresholds) > _MAX_THRESHOLDS:
        raise ValueError(f"thresholds: expected at most {_MAX_THRESHOLDS}, got {len(thresholds)}")
    check_state(device, torch.int64, counts=(counts, torch.Size((len(thresholds), 5))))
    implementation(device).accumulate_patch_counts(
        outcome.contiguous(),
        uncertainty.to(accumulate_dtype(uncertainty.dtype)).contiguous(),
        thresholds,
        window,
        accuracy_threshold,
        counts,
    )


def _check_map_target(statistics: PredictiveStatistics, target: Tensor) -> None:
    prediction, confidence = statistics.prediction, statistics.confidence
    check_target_dtype("input.prediction", prediction)
    check_logits("input.confidence", confidence)
    for name, values in (("input.confidence", confidence), ("target", target)):
        check_tensor(name, values)
        if values.shape != prediction.shape:
            raise ValueError(
                f"{name}: expected shape {tuple(prediction.shape)} like input.prediction, got "
                f"{tuple(values.shape)}"
            )
        check_device(name, values, prediction.device)
    check_target_dtype("target", target)


@torch.no_grad()
def class_sizes(target: Tensor, num_classes: int, *, ignore_index: int = -100) -> Tensor:
    """The number of pixels of each class in each image.

    Args:
        target: class indices, ``(N, *)``; int64, int32, int16 or uint8. Any that is no class counts
            nothing.
        num_classes: C.
        ignore_index: a class that counts nothing either.

    Returns:
        ``(N, C)``, int64.

    Raises:
        ValueError, TypeError: on arguments that do not fit.
    """
    check_tensor("target", target)
    check_target_dtype("target", target)
    if target.dim() < 1:
        raise ValueError("target: expected shape (N, *), got ()")
    num_classes = check_positive("num_classes", num_classes)
    ignore_index = check_int64("ignore_index", ignore_index)
    sizes: Tensor = implementation(target.device).class_sizes(target, num_classes, ignore_index)
    return sizes


def _num_classes(
    counts: SegmentationCounts, statistics: PredictiveStatistics, given: int | None
) -> int:
    if statistics.mean is not None:
        return statistics.mean.shape[1]
    if counts.confusion is not None:
        return counts.confusion.shape[0]
    if counts.uncertainty_sums is not None:
        return counts.uncertainty_sums.shape[1]
    if given is None:
        raise ValueError("num_classes: expected a number for statistics without mean, got none")
    return given


def _check_counts(counts: SegmentationCounts, classes: int, device: torch.device) -> None:
    wanted = {
        "confusion": (classes, classes),
        "uncertainty_sums": (2, classes, classes),
        "scores": (5,),
        "histogram": (2, UNCERTAINTY_BINS + 1),
    }
    for name, table in counts._asdict().items():
        if table is None:
            continue
        check_tensor(f"counts.{name}", table)
        shape = torch.Size(wanted[name]) if name in wanted else table.shape
        if name == "calibration" and (table.dim() != 2 or table.shape[1] != 3 or len(table) < 2):
            raise ValueError(
                f"counts.calibration: expected shape (B + 1, 3), got {tuple(table.shape)}"
            )
        check_state(device, torch.int64, **{f"counts.{name}": (table, shape)})


def _check_uncertainty(
    uncertainty: Tensor, pixels: tuple[int, ...], device: torch.device
) -> Tensor:
    check_floating("uncertainty", uncertainty)
    if uncertainty.shape != pixels:
        raise ValueError(
            f"uncertainty: expected shape {tuple(pixels)}, got {tuple(uncertainty.shape)}"
        )
    check_device("uncertainty", uncertainty, device)
    return uncertainty
