"""What the cross-entropy kernels compute, in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from python_tests.native.harness import Array
from python_tests.native.references import log_softmax


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
