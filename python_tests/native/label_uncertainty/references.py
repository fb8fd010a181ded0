"""What the kernels of uncertain binary labels compute, in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from python_tests.native.harness import Array


class Options(NamedTuple):
    threshold: float = 1.0
    uncertainty_weight: float = 1.0
    bootstrap_weight: float = 1.0
    detach_weight: bool = True


class Loss(NamedTuple):
    """Per pixel [N, P], without the pixels' weights; and of each, what its rounding errors are
    relative to."""

    loss: Array
    by_mean: Array
    by_log_variance: Array
    loss_size: Array
    by_mean_size: Array
    by_log_variance_size: Array


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def _sigmoid(x: Array) -> Array:
    return np.exp(-_softplus(-x))


def label_uncertainty(
    mean: Array, log_variance: Array, positive: Array, may_flip: Array, options: Options
) -> Loss:
    """All [N, P], finite; may_flip and positive are truth values."""
    a, b = options.uncertainty_weight, options.bootstrap_weight
    sign = np.where(positive, 1.0, -1.0)
    t = sign * mean
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # 1 + pi / 8 sigma^2 by its logarithm.
        spread = _softplus(log_variance + np.log(np.pi / 8))
        scale = np.exp(-spread / 2)
        share = np.exp(log_variance + np.log(np.pi / 8) - spread)
        z = t * scale
        variance = np.exp(np.minimum(log_variance, 80))
        margin = np.where(may_flip, (options.threshold - variance) * 5, np.inf)
        kept, flipped = _sigmoid(margin), _sigmoid(-margin)
        slope = kept * flipped * 5 * variance
        loss = a * _softplus(-z) + b * (kept * _softplus(-t) + flipped * _softplus(t))
        by_t = -a * scale * _sigmoid(-z) + b * (flipped * _sigmoid(t) - kept * _sigmoid(-t))
        by_log_variance = a * _sigmoid(-z) * z * share / 2
        if not options.detach_weight:
            by_log_variance = by_log_variance + b * t * slope
        # Errors of W: of its argument, and of the variance in it.
        finite = np.where(may_flip, np.abs(margin), 0)
        error = kept * flipped * finite + slope * (2 + np.abs(log_variance))
        relative = 2 + finite + np.where(slope > 0, 5 * variance * (2 + np.abs(log_variance)), 0)
        of_slope = 0 if options.detach_weight else b * np.abs(t) * slope * relative
    size = 1 + np.abs(t)
    return Loss(
        loss,
        sign * by_t,
        by_log_variance,
        (a + b) * size + b * np.abs(t) * error,
        a + b + b * error,
        a * np.abs(z) + of_slope,
    )
