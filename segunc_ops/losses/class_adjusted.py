"""Losses of logits that are adjusted by how often classes occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .._variations import Adjustment, Distribution, Margins, Noise, Variation
from ..functional.adjusted import (
    balanced_adjustment,
    ldam_adjustment,
    seeded,
    variation_adjustment,
)
from ._base import ClassWeightedLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import LossArguments

__all__ = [
    "BalancedSoftmaxCrossEntropyLoss",
    "LDAMCrossEntropyLoss",
    "LogitVariationCrossEntropyLoss",
]


class _AdjustedLoss(ClassWeightedLoss):
    """Keeps what logits are adjusted by as a buffer, which moves with the module."""

    offset: Tensor

    def __init__(
        self, adjustment: Adjustment, weight: Tensor | None, options: LossArguments
    ) -> None:
        super().__init__(weight, options)
        self.register_buffer("offset", adjustment.offset.float())
        self._logit_scale, self._on_target = adjustment.scale, adjustment.on_target

    def _adjustment(self, input: Tensor) -> Adjustment | None:
        return Adjustment(self.offset, self._logit_scale, self._on_target)

    def forward(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        variation = Variation(adjustment=self._adjustment(input))
        return self._cross_entropy(input, target, pixel_weight, variation)

    def extra_repr(self) -> str:
        # Class weights name the number of classes themselves.
        classes = f"num_classes={self.offset.numel()}, " if self.weight is None else ""
        return f"{classes}{super().extra_repr()}"


class BalancedSoftmaxCrossEntropyLoss(_AdjustedLoss):
    r"""Cross-entropy of logits that have the classes' prior added, which prediction leaves out.

    "Balanced Meta-Softmax for Long-Tailed Visual Recognition", Ren et al. 2020, equation 4: with
    n_c the number of pixels, instances or images of class c in the training set,

    .. math:: l = u\, w_y \left(-\log \frac{n_y e^{z_y}}{\sum_c n_c e^{z_c}}\right)

    Args:
        counts: n, a positive number for each class; log n less its largest is kept as the buffer
            ``offset``.
        weight: class weights w, ``(C,)``, of any float type; a buffer.
        ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input:
            as for :class:`CrossEntropyLoss`.

    Shape:
        - input, target, pixel_weight, result: as for :class:`CrossEntropyLoss`.

    Raises:
        ValueError, TypeError, IndexError: as
            :func:`segunc_ops.functional.balanced_softmax_cross_entropy`.

    Example:
        >>> loss = BalancedSoftmaxCrossEntropyLoss(counts, ignore_index=255)
        >>> loss(model(images), labels).backward()
    """

    def __init__(
        self,
        counts: Tensor | Sequence[float],
        weight: Tensor | None = None,
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(balanced_adjustment(counts), weight, options)


class LDAMCrossEntropyLoss(_AdjustedLoss):
    r"""Cross-entropy that asks of rare classes to be ahead by a larger margin.

    "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", Cao et al. 2019,
    equations 13 and 14: with margins m_c = max_margin (n_c / min_k n_k)^(-1/4),

    .. math:: l = u\, w_y \left(-\log
        \frac{e^{s (z_y - m_y)}}{e^{s (z_y - m_y)} + \sum_{c \ne y} e^{s z_c}}\right)

    Args:
        counts: n, a positive number for each class; -s m is kept as the buffer ``offset``.
        weight: class weights w, ``(C,)``, of any float type; a buffer.
        max_margin: the margin of the rarest class, at least 0.
        scale: s, above 0. Logits are multiplied by it, and so are their gradients.
        margin_on: ``"target"``, or ``"all"`` for margins off every logit, as the comparison in
            "Pixel-wise Adaptive Training" (Do et al. 2024, table 2) has it.
        ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input:
            as for :class:`CrossEntropyLoss`.

    Shape:
        - input, target, pixel_weight, result: as for :class:`CrossEntropyLoss`.

    Raises:
        ValueError, TypeError, IndexError: as :func:`segunc_ops.functional.ldam_cross_entropy`.

    Example:
        >>> loss = LDAMCrossEntropyLoss(counts, ignore_index=255)
        >>> loss(model(images), labels).backward()
    """

    def __init__(
        self,
        counts: Tensor | Sequence[float],
        weight: Tensor | None = None,
        *,
        max_margin: float = 0.5,
        scale: float = 20.0,
        margin_on: Margins = "target",
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(ldam_adjustment(counts, max_margin, scale, margin_on), weight, options)
        self.max_margin, self.scale, self.margin_on = float(max_margin), float(scale), margin_on

    def extra_repr(self) -> str:
        return (
            f"max_margin={self.max_margin:g}, scale={self.scale:g}, margin_on={self.margin_on!r}, "
            f"{super().extra_repr()}"
        )


class LogitVariationCrossEntropyLoss(_AdjustedLoss):
    r"""Cross-entropy of logits with noise, which is larger the rarer their class is.

    "Balancing Logit Variation for Long-tailed Semantic Segmentation", Wang et al. 2023, equations 3
    and 4: with a random number delta for each pixel and class,

    .. math::
        l = u\, w_y\, \mathrm{CE}(z_c + c_c |\delta|), \qquad
        c_c = \frac{\log \sum_k n_k - \log n_c}{\max_j (\log \sum_k n_k - \log n_j)}, \qquad
        \delta \sim N(0, \sigma) \text{ clamped to } [-1, 1]

    The noise is drawn in training mode alone, by torch's generator of the input's device; in
    ``eval()`` the loss is plain cross-entropy. It is made where it is used and takes no memory.

    Args:
        counts: n, a positive number for each class; c is kept as the buffer ``offset``.
        weight: class weights w, ``(C,)``, of any float type; a buffer.
        sigma: of the normal distribution, or the largest size of the uniform one; at least 0.
        distribution: ``"normal"``, or ``"uniform"`` on [-sigma, sigma].
        ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input:
            as for :class:`CrossEntropyLoss`.

    Shape:
        - input, target, pixel_weight, result: as for :class:`CrossEntropyLoss`.

    Raises:
        ValueError, TypeError, IndexError: as
            :func:`segunc_ops.functional.logit_variation_cross_entropy`.

    Example:
        >>> loss = LogitVariationCrossEntropyLoss(counts, ignore_index=255)
        >>> loss(model(images), labels).backward()
    """

    def __init__(
        self,
        counts: Tensor | Sequence[float],
        weight: Tensor | None = None,
        *,
        sigma: float = 0.5,
        distribution: Distribution = "normal",
        **options: Unpack[LossArguments],
    ) -> None:
        adjustment = variation_adjustment(counts, sigma, distribution)
        super().__init__(adjustment, weight, options)
        self.sigma, self.distribution = float(sigma), distribution

    def _adjustment(self, input: Tensor) -> Adjustment | None:
        if not self.training:
            return None
        noise = Noise(self.distribution, self.sigma)
        return seeded(Adjustment(self.offset, noise=noise), None, input.device)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, distribution={self.distribution!r}, {super().extra_repr()}"
