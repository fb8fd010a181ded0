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
