"""What kernels of several families compute, in float64 NumPy and written
independently of csrc/math.

What one family alone needs stands in its folder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def log_softmax(logits: Array) -> Array:
    """Over axis 1. As in torch, an infinite logit gives NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = logits - logits.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def philox(counter: list[Any], key: int) -> Array:
    """Philox4x32-7: [groups, 4, N] words of counters that broadcast to [groups, N]."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [np.asarray(word, np.uint64) for word in np.broadcast_arrays(*counter)]
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(7):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (second >> shift) ^ c[1] ^ np.uint64(low),
            second & mask,
            (first >> shift) ^ c[3] ^ np.uint64(high),
            first & mask,
        ]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1)


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
