"""Interpolated logits in float64, and random calls that interpolate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from python_tests.support import LAYOUTS, LOGITS_DTYPES
from segunc_ops import reference

# Spatial sizes of logits and targets, ragged against strips of 32 and 64 columns: one pixel, ratios
# of 1, whole numbers and none, enlarged and reduced, in volumes too.
SIZES = (1, 2, 3, 5, 8, 13, 31, 32, 33, 64, 65, 97)
VOLUME_SIZES = (1, 2, 3, 5, 8, 11)


def random_sizes(choose: random.Random, volume: bool) -> tuple[list[int], list[int]]:
    """Of logits and of what they are interpolated to: 1x1 to 97x131 in and out."""
    if volume:
        source, size = ([choose.choice(VOLUME_SIZES) for _ in range(3)] for _ in range(2))
    elif choose.random() < 0.5:
        source, size = ([choose.choice(SIZES) for _ in range(2)] for _ in range(2))
    else:
        source, size = ([choose.randint(1, 97), choose.randint(1, 131)] for _ in range(2))
    ratio = choose.choice((None, None, 1, 2, 4))
    if ratio is not None:
        source = [min(n, 131 // ratio) for n in source]
        size = [ratio * n for n in source]
    return source, size


def interpolation_matrix(
    source: int, size: int, align_corners: bool, coordinates: torch.dtype
) -> Tensor:
    """The share, float64, that each of `source` positions (columns) has in each of `size` (rows);
    torch's formula in the type of the coordinates."""
    number = np.float64 if coordinates == torch.float64 else np.float32
    if align_corners:
        scale = number(source - 1) / number(size - 1) if size > 1 else number(0)
        offset = 0.0
    else:
        scale, offset = number(source) / number(size), 0.5
    # Products are exact in the longer type, so each coordinate is rounded once.
    exact = (np.arange(size) + offset) * np.longdouble(scale) - offset
    at = exact.astype(number).clip(0)
    lower = np.minimum(at.astype(np.int64), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    share = np.where(upper > lower, at - lower, 0).astype(number)
    matrix = np.zeros((size, source))
    matrix[np.arange(size), lower] += number(1) - share
    matrix[np.arange(size), upper] += share
    return torch.from_numpy(matrix)


def interpolation_matrices(
    logits: Tensor, size: Sequence[int], align_corners: bool
) -> list[Tensor]:
    """Of the spatial axes, with coordinates in the type that logits are computed in."""
    coordinates = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sizes = zip(logits.shape[2:], size, strict=True)
    return [interpolation_matrix(n, m, align_corners, coordinates) for n, m in sizes]


def interpolate(logits: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """float64 logits, interpolated along each spatial axis."""
    for axis, matrix in enumerate(matrices, 2):
        logits = (logits.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return logits


# (N, C, *source) and the size, for a GPU: larger, smaller, both, volumes, several tiles.
TILED = (
    ((2, 19, 33, 35), (131, 140)),
    ((1, 3, 65, 67), (20, 31)),
    ((1, 5, 40, 9), (33, 300)),
    ((1, 150, 9, 10), (72, 80)),
    ((1, 21, 48, 50), (190, 260)),
    ((2, 4, 5, 9, 8), (10, 20, 30)),
)
# More classes than a thread has registers for, more than a block has, fewer pixels than a warp.
FEW_PIXELS = (((1, 300, 5, 6), (17, 19)), ((3, 2, 9, 9), (4, 5)))


class Call(NamedTuple):
    """Samples, and the size that they are interpolated to."""

    samples: list[Tensor]
    size: tuple[int, ...]
    align_corners: bool
    name: str

    @property
    def options(self) -> dict[str, object]:
        return {"size": self.size, "align_corners": self.align_corners}

    def truth(self) -> Tensor:
        """The interpolated samples in float64."""
        logits = self.samples[0]
        matrices = interpolation_matrices(logits, self.size, self.align_corners)
        return torch.stack([interpolate(z.double(), matrices) for z in self.samples])


def interpolated(logits: Tensor, size: tuple[int, ...], align_corners: bool = False) -> Tensor:
    """By torch, in memory, in the type that logits are computed in."""
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return reference.interpolate(logits, size, mode, align_corners)


def random_call(seed: int, dtype: torch.dtype | None = None) -> Call:
    """The call of this number: every type, layout and size, 1, 3 or 10 samples."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    source, size = random_sizes(choose, volume=choose.random() < 1 / 3)
    images, classes = choose.choice((1, 2, 3)), choose.choice((1, 2, 5, 19, 40))
    if math.prod(size) > 2000:
        images, classes = 1, min(classes, 5)
    dtype = dtype or choose.choice(LOGITS_DTYPES)
    layout = choose.choice([*LAYOUTS])
    shape = (choose.choice((1, 3, 10)), images, classes, *source)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    logits = (choose.choice((0.1, 2.0, 8.0)) * logits).to(dtype)
    return Call(
        samples=[LAYOUTS[layout].make(sample) for sample in logits],
        size=tuple(size),
        align_corners=choose.random() < 0.5,
        name=f"call {seed} ({tuple(logits.shape)} to {size}, {dtype}, {layout})",
    )
