"""What makes another loss of cross-entropy: a factor of each pixel's loss, or adjusted logits.

A variation is data: all of them are computed by the same kernels, and travel as one object.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Curve = Literal["equation", "table"]
Margins = Literal["target", "all"]
Distribution = Literal["normal", "uniform"]


class Focal(NamedTuple):
    """The factor (1 - p_y)^gamma."""

    gamma: float


class PixelAdaptive(NamedTuple):
    """The factor exp((1 - p_y - epsilon) / temperature), or its inverse for the table's curve.

    `size_normalized`: divided by the number of the image's pixels of class y, too.
    """

    temperature: float
    epsilon: float
    curve: Curve
    detached: bool
    size_normalized: bool


class Noise(NamedTuple):
    """A random number delta in [-1, 1] for each pixel and class."""

    distribution: Distribution
    sigma: float
    """Of the normal distribution, or the largest number of the uniform one."""
    seed: Tensor | None = None
    """int64, ``()``; None before a call has drawn it."""


class Adjustment(NamedTuple):
    """The logits scale * z_c + offset_c, or with the offset of the labelled class alone.

    With noise they are z_c + offset_c |delta|.
    """

    offset: Tensor
    """``(C,)``, of any float type."""
    scale: float = 1.0
    on_target: bool = False
    noise: Noise | None = None


class Variation(NamedTuple):
    """What is done to the loss and to the logits."""

    modulation: Focal | PixelAdaptive | None = None
    adjustment: Adjustment | None = None


def is_size_normalized(variation: Variation) -> bool:
    """Whether what each image adds is divided by its own sizes."""
    # No property: torch.compile of torch 2.10 does not follow those of a named tuple.
    modulation = variation.modulation
    return isinstance(modulation, PixelAdaptive) and modulation.size_normalized


PLAIN = Variation()
