"""U-CE: cross-entropy weighted by predictive uncertainty (Landgraf et al. 2023)."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from ..functional import PredictiveStatistics, Reduction, cross_entropy
from ..reference import accumulate_dtype
from ..sampling import PredictiveAccumulator
from ._base import ClassWeightedLoss

__all__ = ["UncertaintyAwareCrossEntropyLoss"]

Missing = Literal["error", "plain"]
Uncertainty = Tensor | PredictiveStatistics | PredictiveAccumulator


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
    if not isinstance(uncertainty, Tensor):
        raise TypeError(
            "uncertainty: expected a tensor, PredictiveStatistics or PredictiveAccumulator, got "
            f"{type(uncertainty).__name__}"
        )
    if not uncertainty.is_floating_point():
        raise TypeError(
            f"uncertainty: expected a floating-point standard deviation, got {uncertainty.dtype}"
        )
    return uncertainty.detach()


class UncertaintyAwareCrossEntropyLoss(ClassWeightedLoss):
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
        missing: what a call in training mode without uncertainty is: ``"error"`` or ``"plain"``.

    Shape:
        - input: ``(N, C, *)``, ``(N, C)`` or ``(C,)`` logits; float32, bfloat16, float16 or
          float64.
        - target: ``(N, *)`` (``()`` for ``(C,)``) class indices; int64, int32 or uint8.
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
        ignore_index: int = -100,
        reduction: Reduction = "mean_all",
        label_smoothing: float = 0.0,
        missing: Missing = "error",
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing)
        if not isinstance(cast(object, alpha), Real):
            raise TypeError(
                f"alpha: expected a number, got {type(alpha).__name__}; class weights go to weight="
            )
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha: expected a finite number of at least 0, got {alpha}")
        if missing not in get_args(Missing):
            raise ValueError(f"missing: expected one of {get_args(Missing)}, got {missing!r}")
        self.alpha = float(alpha)
        self.missing = missing
        self._observed: Tensor | None = None

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
        if self.training:
            if sigma is None:
                sigma = self._observed
            self._observed = None
            if sigma is None and self.missing == "error":
                raise ValueError(
                    "uncertainty: expected one in training mode, got none; pass it, call "
                    "observe(uncertainty) before, or construct the loss with missing='plain'"
                )
        return cross_entropy(
            input,
            target,
            self.weight,
            pixel_weight=None if sigma is None else self._pixel_weight(sigma, input),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def _pixel_weight(self, sigma: Tensor, input: Tensor) -> Tensor:
        # By the input: a target that does not fit it is told of as such.
        pixels = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
        if sigma.shape != pixels:
            raise ValueError(
                f"uncertainty: expected the target's shape {tuple(pixels)} for input of shape "
                f"{tuple(input.shape)}, got {tuple(sigma.shape)}"
            )
        if sigma.device != input.device:
            raise ValueError(
                f"uncertainty: expected device {input.device} like input, got {sigma.device}"
            )
        return torch.pow(1 + sigma.to(accumulate_dtype(sigma.dtype)), self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, {super().extra_repr()}, missing={self.missing!r}"
