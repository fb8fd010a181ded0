"""What the kernels compute, in float64 NumPy and written independently of csrc/math."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import skimage.measure
from numpy.typing import NDArray

Array = NDArray[Any]


def log_softmax(logits: Array) -> Array:
    """Over axis 1. As in torch, an infinite logit gives NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = logits - logits.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


class CrossEntropy(NamedTuple):
    """Results of :func:`cross_entropy`, per pixel [N, P] or per logit [N, C, P]."""

    loss: Array  # with the pixel weight
    unweighted: Array  # without it
    gradient: Array  # of the loss with respect to the logits
    magnitude: Array  # [N, P]: what rounding errors of the gradient are relative to
    valid: Array
    bad: Array


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    pixel_weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
) -> CrossEntropy:
    """torch's cross-entropy with a weight per pixel.

    Args:
        logits: [N, C, P].
        target: [N, P], integer.
        weight: [C] or None.
        pixel_weight: [N, P] or None.
        ignore_index: the target of pixels that count nothing.
        label_smoothing: in [0, 1].
    """
    classes = logits.shape[1]
    target = target.astype(np.int64)
    valid = target != ignore_index
    bad = valid & ((target < 0) | (target >= classes))
    index = np.where(valid & ~bad, target, 0)
    weight = np.ones(classes) if weight is None else weight.astype(np.float64)
    pixel_weight = np.ones(target.shape) if pixel_weight is None else pixel_weight.astype(float)

    one_hot = np.arange(classes)[None, :, None] == index[:, None]
    soft = ((1 - label_smoothing) * one_hot + label_smoothing / classes) * weight[None, :, None]
    log_probability = log_softmax(logits)
    with np.errstate(invalid="ignore", over="ignore"):
        # A class without mass in the target counts nothing, however improbable it is.
        terms = np.where((soft == 0) & ~np.isnan(log_probability), 0, -soft * log_probability)
        unweighted = np.where(valid, terms.sum(1), 0.0)
        unweighted = np.where(bad, np.nan, unweighted)
        total = soft.sum(1, keepdims=True)
        gradient = (total * np.exp(log_probability) - soft) * pixel_weight[:, None]
        loss = np.where(valid, unweighted * pixel_weight, 0.0)
    gradient = np.where(valid[:, None], gradient, 0.0)
    magnitude = np.where(valid, total[:, 0] * np.abs(pixel_weight), 0.0)
    return CrossEntropy(loss, unweighted, gradient, magnitude, valid, bad)


def interpolation_matrix(
    source: int, size: int, align_corners: bool, dtype: type[np.floating[Any]]
) -> Array:
    """The shares [size, source] that source positions have in an interpolated axis.

    Args:
        source: positions given.
        size: positions wanted.
        align_corners: torch's.
        dtype: the type that coordinates are rounded to, once.
    """
    if align_corners:
        scale = dtype(source - 1) / dtype(size - 1) if size > 1 else dtype(0)
        at = (np.arange(size) * np.longdouble(scale)).astype(dtype)
    else:
        scale = dtype(source) / dtype(size)
        at = ((np.arange(size) + 0.5) * np.longdouble(scale) - 0.5).astype(dtype)
    at = np.clip(at, 0, source - 1)
    lower = np.floor(at).astype(np.int64)
    weight = (at - lower.astype(dtype)).astype(np.float64)
    matrix = np.zeros((size, source))
    np.add.at(matrix, (np.arange(size), lower), 1 - weight)
    np.add.at(matrix, (np.arange(size), np.minimum(lower + 1, source - 1)), weight)
    return matrix


def interpolate(values: Array, matrices: list[Array]) -> Array:
    """[N, C, *source] to [N, C, *size] by a matrix per axis; transposed ones are the adjoint. What
    has a share of 0 counts nothing, not even if it is not finite."""
    for axis, matrix in enumerate(matrices, 2):
        moved = np.moveaxis(values, axis, -1)
        with np.errstate(invalid="ignore"):
            blended = np.nan_to_num(moved, nan=0, posinf=0, neginf=0) @ matrix.T
            # Infinities and NaN by hand: 0 times one of them is NaN in a product of matrices.
            share = matrix.T > 0
            above, below = (moved == np.inf) @ share, (moved == -np.inf) @ share
            unknown = (np.isnan(moved) @ share) | (above & below)
        blended = np.where(above, np.inf, np.where(below, -np.inf, blended))
        values = np.moveaxis(np.where(unknown, np.nan, blended), -1, axis)
    return values


def normalizer(target: Array, weight: Array | None, ignore_index: int) -> float:
    """The valid pixels' class weights, summed; their number without weights."""
    valid = target[target != ignore_index].astype(np.int64)
    return float(valid.size if weight is None else weight.astype(np.float64)[valid].sum())


class Statistics(NamedTuple):
    """Results of :func:`statistics`."""

    mean: Array  # [N, C, P]
    probabilities: Array  # [S, N, C, P]
    entropy: Array  # [N, P]
    expected_entropy: Array  # [N, P]


def _entropy(probabilities: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = probabilities * np.log(probabilities)
    return -np.where(probabilities == 0, 0.0, terms).sum(1)


def statistics(samples: list[Array]) -> Statistics:
    """Predictive statistics of samples, each [N, C, P]; what follows from the predicted class is
    left to the caller, since rounding may decide a near tie either way."""
    probabilities = np.stack([np.exp(log_softmax(sample)) for sample in samples])
    mean = probabilities.mean(0)
    expected = np.stack([_entropy(p) for p in probabilities]).mean(0)
    return Statistics(mean, probabilities, _entropy(mean), expected)


def numbered_in_raster_order(partition: Array) -> Array:
    """Any numbers of components to 1..K by their first pixel; 0 stays."""
    values, first, inverse = np.unique(partition, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values == 0, -1, first))
    rank = np.empty(len(values), np.int32)
    rank[order] = np.arange(len(values)) + (values[order[0]] != 0)
    return rank[inverse].reshape(partition.shape)


def components(labels: Array, diagonal: bool, ignored: int | None) -> tuple[Array, Array]:
    """scikit-image's numbering of each image's components, and their number.

    Args:
        labels: [N, H, W] or [N, D, H, W], integer.
        diagonal: whether pixels that share a corner or an edge alone are neighbours.
        ignored: the label of pixels without a component, as a value of the labels' type.
    """
    # Any integers to small ones: an image library has its own idea of large or negative labels.
    _, flat = np.unique(labels, return_inverse=True)
    small = flat.reshape(labels.shape).astype(np.int64)
    if ignored is not None:
        small[labels == labels.dtype.type(ignored)] = -1
    ids = np.zeros(labels.shape, np.int32)
    counts = np.zeros(len(labels), np.int64)
    for i, image in enumerate(small):
        if image.size:
            ids[i], counts[i] = skimage.measure.label(
                image, background=-1, return_num=True, connectivity=image.ndim if diagonal else 1
            )
            if image.ndim > 2:  # there it may number along another axis first
                ids[i] = numbered_in_raster_order(ids[i])
    return ids, counts


def component_mean(values: Array, ids: Array) -> Array:
    """Each pixel's mean over its component, 0 outside; NaN with a value that is no finite number.

    Args:
        values: [N, *spatial], float64.
        ids: [N, *spatial], from 1 on in each image, 0 outside.
    """
    means = np.zeros(values.shape)
    for i in range(len(values)):
        flat = ids[i].ravel()
        finite = np.isfinite(values[i].ravel())
        summed = np.where(finite, values[i].ravel(), np.nan)
        sums = np.bincount(flat, np.where(flat > 0, summed, 0.0), minlength=1)
        means[i] = (sums / np.maximum(np.bincount(flat, minlength=1), 1))[ids[i]]
    return means


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
                for k, threshold in enumerate(thresholds):
                    if ((u >= 0) & (u < 256)).all():
                        uncertain = (np.rint(u * UNITS) / UNITS).mean() > threshold
                        counts[k, 2 * (not accurate) + uncertain] += 1
                    else:
                        counts[k, 4] += 1
    return counts
