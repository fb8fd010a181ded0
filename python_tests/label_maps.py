"""Label maps that are hard on connected components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def noise(
    shape: tuple[int, ...], classes: int, share: float | None = None, dtype: type = np.uint8
) -> Array:
    """Independent pixels. share: that of class 0; equal shares without."""
    generator = np.random.default_rng([*shape, classes])
    labels = generator.integers(0, classes, shape)
    if share is not None:
        labels = np.where(generator.random(shape) < share, 0, np.maximum(labels, 1))
    return labels.astype(dtype)


def constant(height: int, width: int) -> Array:
    return np.full((height, width), 7, np.uint8)


def checkerboard(height: int, width: int) -> Array:
    return (np.indices((height, width)).sum(0) % 2).astype(np.uint8)


def spiral(height: int, width: int) -> Array:
    """Two arms around each other, through every tile."""
    y, x = np.indices((height, width))
    y, x = y - height / 2, x - width / 2
    return ((np.hypot(y, x) / 8 - np.arctan2(y, x) / (2 * np.pi)) % 1 < 0.5).astype(np.uint8)


def comb(height: int, width: int) -> Array:
    """Teeth that meet in the last row only, and their gaps in the first."""
    labels = np.zeros((height, width), np.uint8)
    labels[1:, ::2] = 1
    labels[-1] = 1
    return labels


def serpentine(height: int, width: int) -> Array:
    """A path of one pixel's width through every tile."""
    labels = np.zeros((height, width), np.uint8)
    labels[::2] = 1
    labels[1::4, -1] = 1
    labels[3::4, 0] = 1
    return labels


def diagonals(height: int, width: int) -> Array:
    """Lines that only corners connect, crossing the corners of tiles in both directions."""
    y, x = np.indices((height, width))
    return (((y + x) % 32 == 0) * 1 + ((y - x) % 32 == 0) * 2).astype(np.uint8)


def blobs(height: int, width: int) -> Array:
    """Regions as in a segmentation: few of them, curved borders."""
    generator = np.random.default_rng(height + width)
    y, x = np.indices((height, width))
    waves = [
        np.sin(x * a + y * b + phase)
        for a, b, phase in generator.normal(size=(6, 3)) * (0.1, 0.1, 3)
    ]
    return np.argmax(waves, 0).astype(np.uint8)


PATTERNS: dict[str, Callable[[int, int], Array]] = {
    "constant": constant,
    "checkerboard": checkerboard,
    "spiral": spiral,
    "comb": comb,
    "rotated comb": lambda height, width: comb(width, height).T,
    "serpentine": serpentine,
    "rotated serpentine": lambda height, width: serpentine(width, height).T,
    "diagonals": diagonals,
    "blobs": blobs,
}
