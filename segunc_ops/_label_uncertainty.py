"""What makes one loss of uncertain binary labels of another, as one object."""

from __future__ import annotations

from typing import NamedTuple

from ._types import Reduction, Upsample

__all__ = ["LabelUncertaintyOptions"]


class LabelUncertaintyOptions(NamedTuple):
    """The arguments of :class:`segunc_ops.LabelUncertaintyLoss`."""

    threshold: float = 0.0
    uncertainty_weight: float = 1.0
    bootstrap_weight: float = 1.0
    detach_weight: bool = True
    ignore_index: int = -100
    reduction: Reduction = "mean"
    upsample: Upsample | None = None
    align_corners: bool = False
