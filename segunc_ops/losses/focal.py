"""Focal loss (Lin et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._variations import Variation
from ..functional.modulated import check_focal
from ._base import ClassWeightedLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import LossArguments

__all__ = ["FocalCrossEntropyLoss"]


class FocalCrossEntropyLoss(ClassWeightedLoss):
    r"""Cross-entropy whose pixels count less the more certain they are of their class.

    "Focal Loss for Dense Object Detection", Lin et al. 2017, equation 5, for any number of classes:

    .. math:: l = u\, w_y\, (1 - p_y)^\gamma\, (-\log p_y)

    With ``weight=class_balanced_weights(counts)`` it is the class-balanced focal loss of Cui et al.
    2019.

    Args:
        gamma: the exponent, at least 0; 0 is cross-entropy.
        weight: class weights w, ``(C,)``, of any float type; a buffer.
        ignore_index, reduction, upsample, align_corners, overwrite_input: as for
            :class:`CrossEntropyLoss`. Labels cannot be smoothed: the formula has no other class
            than the labelled one.

    Shape:
        - input, target, pixel_weight, result: as for :class:`CrossEntropyLoss`.

    Raises:
        ValueError, TypeError, IndexError: as :func:`segunc_ops.functional.focal_cross_entropy`.

    Example:
        >>> loss = FocalCrossEntropyLoss(2.0, ignore_index=255)
        >>> loss(model(images), labels).backward()
    """

    without = ("label_smoothing",)

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(weight, options)
        self.gamma = check_focal(gamma).gamma

    def forward(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        variation = Variation(check_focal(self.gamma))
        return self._cross_entropy(input, target, pixel_weight, variation)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, {super().extra_repr()}"
