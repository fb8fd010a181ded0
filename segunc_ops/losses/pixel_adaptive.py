"""Pixel-wise adaptive training for long tails (Do et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._variations import Curve, PixelAdaptive, Variation
from ..functional.modulated import check_pixel_adaptive, check_reduction
from ._base import ClassWeightedLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import LossArguments

__all__ = ["PixelAdaptiveCrossEntropyLoss"]


class PixelAdaptiveCrossEntropyLoss(ClassWeightedLoss):
    r"""Cross-entropy weighted by image-wise class sizes and by a pixel's own probability.

    "Pixel-wise Adaptive Training for Long-tailed Segmentation", Do et al. 2024, equations 4 and 5:

    .. math::
        L = \frac{1}{B} \sum_i \sum_j \frac{\beta_{ij}}{S_i^{y_{ij}}}\, \mathrm{CE}_{ij}, \qquad
        \beta = \exp\frac{1 - p_y - \epsilon}{T}

    S_i^l is the number of pixels of class l in image i: every class of an image counts alike,
    however few its pixels, so images that show K classes have about K times the loss of a pixel.
    Learning rates that were found for a mean over pixels may need to be lower.

    Args:
        temperature: T, above 0.
        epsilon: finite; a constant factor of all pixels.
        curve: ``"equation"``, or ``"table"`` for 1 / beta, which the paper's table 1 prints.
        size_normalized: whether losses are divided by S.
        detach_weight: whether beta is a constant for the gradient. The paper differentiates it.
        weight: class weights, ``(C,)``, of any float type; a buffer.
        reduction: ``"mean"`` is equation 4, divided by the number of images, if `size_normalized`,
            which has no ``"mean_all"``; ``"sum"`` or ``"none"``.
        ignore_index, label_smoothing, upsample, align_corners, overwrite_input: as for
            :class:`CrossEntropyLoss`.

    Shape:
        - input, target, pixel_weight, result: as for :class:`CrossEntropyLoss`.

    Raises:
        ValueError, TypeError, IndexError: as
            :func:`segunc_ops.functional.pixel_adaptive_cross_entropy`.

    Example:
        >>> loss = PixelAdaptiveCrossEntropyLoss(ignore_index=255)
        >>> loss(model(images), labels).backward()
    """

    def __init__(
        self,
        temperature: float = 20.0,
        weight: Tensor | None = None,
        *,
        epsilon: float = 0.0,
        curve: Curve = "equation",
        size_normalized: bool = True,
        detach_weight: bool = False,
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(weight, options)
        self.modulation: PixelAdaptive = check_pixel_adaptive(
            temperature, epsilon, curve, size_normalized, detach_weight
        )
        check_reduction(self.modulation, self.reduction)

    def forward(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        check_reduction(self.modulation, self.reduction)
        return self._cross_entropy(input, target, pixel_weight, Variation(self.modulation))

    def extra_repr(self) -> str:
        own = self.modulation
        return (
            f"temperature={own.temperature:g}, epsilon={own.epsilon:g}, curve={own.curve!r}, "
            f"size_normalized={own.size_normalized}, detach_weight={own.detached}, "
            f"{super().extra_repr()}"
        )
