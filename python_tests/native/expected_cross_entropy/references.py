"""What the kernels of expected cross-entropy compute, in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from python_tests.native.harness import Array
from python_tests.native.references import log_softmax, philox


def normal_draws(shape: tuple[int, ...], draws: int, antithetic: bool, seed: int) -> Array:
    """[S, N, C, P] standard normal numbers."""
    images, classes, pixels = shape
    numbers = draws // 2 if antithetic else draws
    index = np.arange(images * pixels, dtype=np.uint64)
    groups, one = (numbers + 3) // 4, np.uint64(1)
    counted = np.arange(classes * groups, dtype=np.uint64)[:, None]
    of_class, group = counted // np.uint64(groups), counted % np.uint64(groups)
    words = philox([index & np.uint64(0xFFFFFFFF), index >> np.uint64(32), of_class, group], seed)
    # [classes, draws, pixels]
    words = words.reshape(classes, groups * 4, images * pixels)
    u, v = ((words[:, i::2] >> np.uint64(8)).astype(np.float64) * 2.0**-24 for i in (0, 1))
    radius, angle = np.sqrt(-2 * np.log1p(-u)), np.pi / 2 * v
    sizes = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2).reshape(words.shape)
    normal = np.where(words & one, -sizes, sizes)[:, :numbers]
    if antithetic:
        normal = np.stack([normal, -normal], 2).reshape(classes, draws, images * pixels)
    normal = normal.reshape(classes, draws, images, pixels)
    result: Array = np.moveaxis(normal, (1, 2, 0), (0, 1, 2))
    return result


class ExpectedCrossEntropy(NamedTuple):
    """Results per pixel [N, P], or per logit [N, C, P] and element of the scale [N, K, P]."""

    loss: Array  # with the pixel weight
    unweighted: Array  # without it
    of_mean: Array  # derivatives of the loss
    of_scale: Array
    valid: Array
    bad: Array


def expected_cross_entropy(
    mean: Array,
    scale: Array,
    target: Array,
    weight: Array | None,
    pixel_weight: Array | None,
    ignore_index: int,
    draws: int,
    antithetic: bool,
    seed: int,
) -> ExpectedCrossEntropy:
    """The negative logarithm of what softmax gives the label on average."""
    classes = mean.shape[1]
    target = target.astype(np.int64)
    valid = target != ignore_index
    bad = valid & ((target < 0) | (target >= classes))
    index = np.where(valid & ~bad, target, 0)
    mean = np.where(valid[:, None], mean, 0)
    scale = np.where(valid[:, None], scale, 0)
    normal = normal_draws(mean.shape, draws, antithetic, seed)
    rows, columns = np.arange(classes), np.arange(classes)
    if scale.shape[1] != classes:
        rows, columns = np.tril_indices(classes)
    logits = np.repeat(mean[None], draws, 0)
    for k, (row, column) in enumerate(zip(rows, columns, strict=True)):
        logits[:, :, row] += scale[:, k] * normal[:, :, column]
    log_p = log_softmax(np.moveaxis(logits, 2, 1).reshape(draws, classes, -1))
    log_p = np.moveaxis(log_p.reshape(draws, classes, *target.shape), 1, 2)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        of_label = np.take_along_axis(log_p, index[None, :, None], 2)[:, :, 0]
        largest = np.maximum(of_label.max(0), -1e300)
        shares = np.exp(of_label - largest)
        mass = shares.sum(0)
        unweighted = np.log(draws) - largest - np.log(mass)
        one_hot = np.arange(classes)[None, :, None] == index[:, None]
        by_logit = (shares / mass)[:, :, None] * (np.exp(log_p) - one_hot)
    w = np.ones(target.shape) if weight is None else weight.astype(np.float64)[index]
    u = np.ones(target.shape) if pixel_weight is None else pixel_weight.astype(np.float64)
    unweighted = np.where(bad, np.nan, np.where(valid, w * unweighted, 0))
    factor = np.where(valid, w * u, 0)[:, None]
    of_mean = factor * by_logit.sum(0)
    of_scale = factor * np.stack(
        [
            (by_logit[:, :, row] * normal[:, :, column]).sum(0)
            for row, column in zip(rows, columns, strict=True)
        ],
        1,
    )
    return ExpectedCrossEntropy(
        np.where(valid, unweighted * u, 0.0),
        unweighted,
        *(np.where(bad[:, None], np.nan, g) for g in (of_mean, of_scale)),
        valid,
        bad,
    )
