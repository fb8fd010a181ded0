"""What the statistics kernels compute, in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from python_tests.native.harness import Array
from python_tests.native.references import log_softmax


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
