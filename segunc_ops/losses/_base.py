"""What all losses share."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from ..functional import Reduction


class ClassWeightedLoss(nn.Module):
    """Holds class weights (a buffer), the ignored label, the reduction and label smoothing."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None,
        ignore_index: int,
        reduction: Reduction,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a tensor or None, got {type(weight).__name__}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction: expected one of {get_args(Reduction)}, got {reduction!r}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def extra_repr(self) -> str:
        classes = "" if self.weight is None else f"num_classes={self.weight.numel()}, "
        return (
            f"{classes}ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )
