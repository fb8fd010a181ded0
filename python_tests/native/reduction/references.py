"""What the kernels of sums compute, in float64 NumPy."""

from __future__ import annotations

import numpy as np

from python_tests.native.harness import Array


def normalizer(target: Array, weight: Array | None, ignore_index: int) -> float:
    """The valid pixels' class weights, summed; their number without weights."""
    valid = target[target != ignore_index].astype(np.int64)
    return float(valid.size if weight is None else weight.astype(np.float64)[valid].sum())
