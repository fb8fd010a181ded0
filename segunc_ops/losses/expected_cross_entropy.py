"""Label uncertainty of many classes: cross-entropy of what a distribution of logits expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._options import LossOptions
from ..functional.expected_cross_entropy import check_draws, expected_cross_entropy_with
from ._base import ClassWeightedLoss

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import LossArguments

__all__ = ["ExpectedCrossEntropyLoss"]


class ExpectedCrossEntropyLoss(ClassWeightedLoss):
    r"""Cross-entropy of the probabilities that a normal distribution of logits has on average.

    With S draws of standard normal numbers eps for each pixel and class, label y, class weights w
    and pixel weight u the loss of a pixel is

    .. math::
        l = u\, w_y \left(-\log \frac1S \sum_{s=1}^S \mathrm{softmax}(\mu + A \epsilon_s)_y\right)

    Draws are made by torch's generator of the mean's device, where they are used, and take no
    memory.

    Args:
        weight: class weights w, ``(C,)``, of any float type; a buffer.
        num_draws: S, at least 1.
        antithetic: whether draws come in pairs of eps and -eps, for an even number of them.
        ignore_index, reduction, upsample, align_corners: as for
            :func:`segunc_ops.functional.expected_cross_entropy`.

    Shape:
        - mean: ``(N, C, *)`` with at least 2 classes; float32, bfloat16, float16 or float64.
        - scale: ``(N, C, *)`` standard deviations, or ``(N, C (C + 1) / 2, *)`` rows of the lower
          triangle of a Cholesky factor; of the mean's type.
        - target, pixel_weight, result: as for :class:`CrossEntropyLoss`.

    Raises:
        ValueError, TypeError, IndexError: as :func:`segunc_ops.functional.expected_cross_entropy`;
            arguments of the constructor that are out of range there.

    Example:
        >>> loss = ExpectedCrossEntropyLoss(ignore_index=255)
        >>> mean, scale = head(features).chunk(2, 1)
        >>> loss(mean, scale, labels).backward()
    """

    without = ("label_smoothing", "overwrite_input")

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        num_draws: int = 16,
        antithetic: bool = False,
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(weight, options)
        self.num_draws, self.antithetic = check_draws(num_draws, antithetic), antithetic

    def forward(
        self, mean: Tensor, scale: Tensor, target: Tensor, pixel_weight: Tensor | None = None
    ) -> Tensor:
        options = LossOptions(*[getattr(self, name) for name in LossOptions._fields])
        return expected_cross_entropy_with(
            options, mean, scale, target, pixel_weight, self.num_draws, self.antithetic
        )

    def extra_repr(self) -> str:
        draws = f"num_draws={self.num_draws}, antithetic={self.antithetic}"
        return f"{draws}, {super().extra_repr()}"
