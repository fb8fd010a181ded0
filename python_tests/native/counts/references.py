"""What the counting kernels compute, in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from python_tests.native.harness import Array

UNITS = 2.0**24  # of sums in fixed point
UNCERTAINTY_BINS = 4096


def uncertainty_bins(uncertainty: Array) -> Array:
    """128 bins an octave from 2^-24 to 2^8, each octave cut evenly; all below is in the first."""
    mantissa, exponent = np.frexp(uncertainty.astype(np.float32).astype(np.float64))
    bins = (exponent - 1 + 24) * 128 + np.floor((2 * mantissa - 1) * 128).astype(np.int64)
    return np.where(uncertainty < 2.0**-24, 0, bins)


class Counts(NamedTuple):
    """What :func:`counts` adds to the tables; sums are in units of 2^-24 before rounding."""

    confusion: Array  # [C, C]
    uncertainty_sums: Array | None  # [2, C, C]
    calibration: Array | None  # [B + 1, 3]
    histogram: Array | None  # [2, UNCERTAINTY_BINS + 1]
    outcome: Array  # of the pixels


def counts(
    prediction: Array,
    confidence: Array | None,
    target: Array,
    uncertainty: Array | None,
    classes: int,
    bins: int,
    ignore_index: int,
) -> Counts:
    """Counts of pixels, one after another; all arguments are flat."""
    confusion = np.zeros((classes, classes), np.int64)
    sums = np.zeros((2, classes, classes), np.int64)
    calibration = np.zeros((bins + 1, 3))
    histogram = np.zeros((2, UNCERTAINTY_BINS + 1), np.int64)
    outcome = np.full(target.shape, 2, np.uint8)
    for i, y in enumerate(target.tolist()):
        if y == ignore_index or not 0 <= y < classes:
            continue
        c = int(prediction[i])
        right = int(c == y)
        outcome[i] = right
        confusion[y, c] += 1
        if confidence is not None:
            p = float(confidence[i])
            if 0 <= p <= 1 + 2.0**-7:
                edges = np.arange(1, bins) / bins
                row = calibration[int(np.searchsorted(edges, p, side="left"))]
                row += (1, right, p * UNITS)
            else:
                calibration[-1] += (1, right, 0)
        if uncertainty is not None:
            u = float(uncertainty[i])
            if 0 <= u < 256:
                sums[0, y, c] += int(np.rint(u * UNITS))
                histogram[right, uncertainty_bins(np.array(u))] += 1
            else:
                sums[1, y, c] += 1
                histogram[right, -1] += 1
    return Counts(
        confusion,
        None if uncertainty is None else sums,
        None if confidence is None else calibration,
        None if uncertainty is None else histogram,
        outcome,
    )


def scores(probabilities: Array, negative_log: Array, target: Array) -> Array:
    """Pixels, Brier sum, likelihood sum, impossible and undefined pixels, of [n, C] rows that
    count."""
    one_hot = np.arange(probabilities.shape[1]) == target[:, None]
    brier = ((probabilities - one_hot) ** 2).sum(1)
    undefined = np.isnan(brier) | np.isnan(negative_log)
    impossible = ~undefined & (negative_log > 1024)
    likelihood = negative_log[~undefined & ~impossible].sum()
    return np.array(
        [
            len(target),
            brier[~undefined].sum() * UNITS,
            likelihood * UNITS,
            impossible.sum(),
            undefined.sum(),
        ]
    )


def patch_counts(
    outcome: Array, uncertainty: Array, thresholds: Array, window: int, accuracy_threshold: float
) -> Array:
    """[K, 5], patch by patch."""
    counts = np.zeros((len(thresholds), 5), np.int64)
    images, rows, columns = outcome.shape
    for image in range(images):
        for y in range(0, rows - window + 1, window):
            for x in range(0, columns - window + 1, window):
                here = (image, slice(y, y + window), slice(x, x + window))
                valid = outcome[here] != 2
                if not valid.any():
                    continue
                u = uncertainty[here][valid].astype(np.float64)
                accurate = (outcome[here][valid] == 1).mean() > accuracy_threshold
                if not ((u >= 0) & (u < 256)).all():
                    counts[:, 4] += 1
                    continue
                uncertain = (np.rint(u * UNITS) / UNITS).mean() > thresholds
                counts[np.arange(len(thresholds)), 2 * (not accurate) + uncertain] += 1
    return counts
