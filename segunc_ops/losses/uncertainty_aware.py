"""U-CE: cross-entropy weighted by predictive uncertainty (Landgraf et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..functional import PredictiveStatistics
from ..sampling import PredictiveAccumulator
from ._base import (
    OR_STATISTICS,
    Missing,
    Uncertainty,
    UncertaintyWeightedLoss,
    check_exponent,
    check_uncertainty,
    power_weight,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import LossArguments

__all__ = ["UncertaintyAwareCrossEntropyLoss"]


def _standard_deviation(uncertainty: Uncertainty) -> Tensor:
    """The sigma map of any form of uncertainty, without its gradient."""
    if isinstance(uncertainty, PredictiveStatistics):
        uncertainty = uncertainty.std
    elif isinstance(uncertainty, PredictiveAccumulator):
        if uncertainty.count < 2:
            raise ValueError(
                "uncertainty: expected an accumulator of at least 2 samples, without which there "
                f"is no standard deviation, got {uncertainty.count}"
            )
        uncertainty = uncertainty.compute().std
    return check_uncertainty(uncertainty, "standard deviation", accepted=OR_STATISTICS)


class UncertaintyAwareCrossEntropyLoss(UncertaintyWeightedLoss[Tensor]):
    r"""Cross-entropy whose pixels count more where the model is uncertain.

    "U-CE: Uncertainty-aware Cross-Entropy for Semantic Segmentation", Landgraf et al. 2023:

    .. math::
        L = \frac{1}{|\mathrm{pixels}|} \sum_i w_i \, \mathrm{CE}_i, \qquad
        w_i = (1 + \sigma_i)^\alpha

    sigma is the standard deviation, over S Monte-Carlo dropout samples drawn just before, of the
    probability of the class that the mean of the samples predicts (Algorithm 1, with S = 10). It
    is a constant for the gradient. The sum is divided by the number of all pixels as in the paper;
    its code divides by that of the valid ones, which is ``reduction="mean"``.

    sigma comes with the call. A trainer that passes ``(input, target)`` alone calls
    :meth:`observe` before the call instead:

    ==============  ======================  ======================  ===========================
    mode            `uncertainty` given     observed before         neither
    ==============  ======================  ======================  ===========================
    training        U-CE with it            U-CE, consumed          error, or plain CE with
                                                                    ``missing="plain"``
    eval            U-CE with it            plain CE, kept          plain CE
    ==============  ======================  ======================  ===========================

    In training mode every call uses an observation up, so that none is ever applied to another
    batch. Values of sigma are not checked, which would wait for the device: on pixels that are
    not ignored, NaN (the std of a single sample) and infinity make the loss NaN or infinite, and
    negative values, which no standard deviation has, lower the weight. At ignored pixels sigma
    is never read.

    Args:
        alpha: the exponent, at least 0; 0 is plain cross-entropy.
        weight: class weights, ``(C,)``, of any float type; a buffer.
        ignore_index: pixels with this target add nothing and get no gradient.
        reduction: ``"mean_all"`` (divided by the number of all pixels), ``"mean"`` (by the sum of
            the valid pixels' class weights, without them their number), ``"sum"`` or ``"none"``.
        label_smoothing: in [0, 1].
        upsample, align_corners: how logits are interpolated to the target's size within the loss,
            as :func:`segunc_ops.functional.cross_entropy` does.
        overwrite_input: whether the gradient is written over the logits: see there.
        missing: what a call in training mode without uncertainty is: ``"error"`` or ``"plain"``.

    Shape:
        - input: ``(N, C, *)``, ``(N, C)`` or ``(C,)`` logits; float32, bfloat16, float16 or
          float64.
        - target: ``(N, *)`` (``()`` for ``(C,)``) class indices; int64, int32, int16 or uint8.
        - uncertainty: sigma, of the target's shape and any float type; or
          :class:`~segunc_ops.PredictiveStatistics` or
          :class:`~segunc_ops.PredictiveAccumulator` with such a `std`. The weight is computed in
          float32, or float64 if sigma is.
        - result: a scalar, or that of the target for ``"none"``.

    Raises:
        ValueError: if uncertainty is missing, has another shape or device than the target, or is
            an accumulator of fewer than two samples; arguments of the constructor out of range.
        TypeError: if it is something else.
        ValueError, TypeError, IndexError: as :func:`segunc_ops.functional.cross_entropy`.

    Example:
        >>> loss = UncertaintyAwareCrossEntropyLoss(ignore_index=255)
        >>> statistics = sample_statistics(model, images, 10)
        >>> loss(model(images), labels, statistics).backward()
    """

    def __init__(
        self,
        alpha: float = 10.0,
        weight: Tensor | None = None,
        *,
        missing: Missing = "error",
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(weight, missing, options)
        self.alpha = check_exponent("alpha", alpha)

    def observe(self, uncertainty: Uncertainty) -> None:
        """Keeps the uncertainty for the next call in training mode, in place of an older one.

        Args:
            uncertainty: as for the call; of an accumulator its samples so far.

        Raises:
            ValueError: if it is an accumulator of fewer than two samples.
            TypeError: if it is of no fitting type.
        """
        self._observed = _standard_deviation(uncertainty)

    def forward(
        self, input: Tensor, target: Tensor, uncertainty: Uncertainty | None = None
    ) -> Tensor:
        sigma = None if uncertainty is None else _standard_deviation(uncertainty)
        sigma = self._consume(sigma)
        if sigma is None:
            return self._cross_entropy(input, target, None)
        self._check_maps(input, target, uncertainty=sigma)
        return self._cross_entropy(input, target, power_weight(sigma, self.alpha))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, {super().extra_repr()}"
