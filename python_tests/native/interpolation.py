"""Cases and references of kernels whose results have another size than the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from python_tests.native import references
from python_tests.native.harness import DTYPES, LAYOUTS, Array, accumulate_type


@dataclass(frozen=True)
class Interpolated:
    """The spatial size of results that is not the logits'."""

    size: tuple[int, ...]
    align_corners: bool

    def __str__(self) -> str:
        corners = "corners" if self.align_corners else "centres"
        return f"-{'x'.join(map(str, self.size))}-{corners}"


def interpolation_matrices(spatial: tuple[int, ...], to: Interpolated, dtype: str) -> list[Array]:
    """One per axis."""
    return [
        references.interpolation_matrix(source, size, to.align_corners, accumulate_type(dtype))
        for source, size in zip(spatial, to.size, strict=True)
    ]


def interpolated(values: Array, to: Interpolated | None, dtype: str) -> Array:
    """[N, C, *spatial] as the results have them: [N, C, *size], float64."""
    if to is None:
        return values
    return references.interpolate(values, interpolation_matrices(values.shape[2:], to, dtype))


# (source, size): enlarged by whole numbers and others, along one axis alone, reduced, both, none;
# of fewer pixels than a warp has lanes, and of several warps.
SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 1), (5, 7)),
    ((4, 5), (16, 20)),
    ((6, 7), (6, 7)),
    ((7, 9), (7, 31)),
    ((13, 6), (5, 4)),
    ((13, 29), (7, 11)),
    ((2, 30), (9, 8)),
    ((6, 9), (21, 33)),
    ((2, 3, 4), (4, 6, 8)),
    ((5, 4, 3), (2, 9, 7)),
)
# Around what a thread, a warp's and all warps' threads hold.
CLASSES = (1, 4, 8, 16, 19, 21, 32, 33, 72, 150, 256, 257)


def drawn_shape(
    generator: np.random.Generator, most_pixels: int
) -> tuple[tuple[int, ...], Interpolated]:
    fitting = [(s, t) for s, t in SHAPES if math.prod(t) <= most_pixels]
    source, size = fitting[int(generator.integers(len(fitting)))]
    return source, Interpolated(size, bool(generator.random() < 0.5))


# Every dtype with every number of classes, and each of these with half of the layouts.
GRID = [
    (dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for i, classes in enumerate(CLASSES)
    for j, layout in enumerate(LAYOUTS)
    if (i + j + seed) % 2 == 0
]

# More tiles than blocks, of one warp a team and of several.
MANY_TILES = (
    (3, (9, 20), Interpolated((29, 43), False)),
    (40, (12, 9), Interpolated((23, 25), True)),
    (100, (5, 30), Interpolated((17, 19), False)),
)
