"""What makes one Dice loss of another: the options of the overlap of classes, as one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["FLOOR", "Absent", "Overlap"]

Absent = Literal["count", "skip", "zero"]

FLOOR = 1e-8
"""What a denominator is at least: below it Dice does not depend on it any more."""


class Overlap(NamedTuple):
    """The arguments of :func:`segunc_ops.functional.dice_cross_entropy` that are its own."""

    ce_weight: float = 1.0
    dice_weight: float = 1.0
    batch: bool = False
    include_background: bool = True
    smooth_numerator: float = 1e-5
    smooth_denominator: float = 1e-5
    squared: bool = False
    jaccard: bool = False
    absent: Absent = "count"
    dice_offset: float = 1.0
    group: ProcessGroup | None = None
