"""What makes one Dice loss of another: the options of the overlap of classes, as one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from ._types import Upsample

__all__ = ["FLOOR", "REGION_REDUCTIONS", "Absent", "Overlap", "RegionOptions", "RegionReduction"]

Absent = Literal["count", "skip", "zero"]
RegionReduction = Literal["mean", "mean_pixels", "mean_all", "sum"]

REGION_REDUCTIONS: tuple[str, ...] = get_args(RegionReduction)

FLOOR = 1e-8
"""What a denominator is at least: below it Dice does not depend on it any more."""


class Overlap(NamedTuple):
    """The arguments of :func:`segunc_ops.functional.dice_cross_entropy` that are its own.

    :func:`segunc_ops.functional.dice_bce` has them too.
    """

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


class RegionOptions(NamedTuple):
    """The other arguments of :func:`segunc_ops.functional.dice_bce` that are no inputs."""

    pos_weight: Tensor | None = None
    reduction: RegionReduction = "mean"
    ignore_channel: bool = False
    upsample: Upsample | None = None
    align_corners: bool = False
    overwrite_input: bool = False
