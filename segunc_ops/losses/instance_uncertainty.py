"""Cross-entropy weighted by instance-wise uncertainty (Almeida et al.)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from torch import Tensor

from .._checks import check_choice, check_tensor
from .._dtypes import accumulate_dtype
from ..functional import PredictiveStatistics, component_mean
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

__all__ = ["Components", "InstanceUncertaintyCrossEntropyLoss", "instance_uncertainty"]

Components = Literal["target", "prediction"]

# By so much may rounding lift an entropy of C classes above ln C.
_ROUNDING = 1e-5


def instance_uncertainty(
    entropy: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None,
    connectivity: int | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """The mean of an entropy over each pixel's component of a label map (equation 7).

    Args:
        entropy: the predictive entropy in nats, ``(N, H, W)`` or ``(N, D, H, W)``; any float type.
        labels: the map whose components count, of the same shape and any integer type.
        num_classes: the C that the entropy is of, at most ln C then; None if it may be anything.
        connectivity, ignore_index: as for :func:`segunc_ops.functional.component_mean`.

    Returns:
        IU in nats, of the shape of `entropy`, float32 (float64 for float64); 0 where ignored.

    Raises:
        ValueError, TypeError: as :func:`segunc_ops.functional.component_mean`.
    """
    bounded = num_classes is not None and num_classes > 1
    return component_mean(
        entropy.to(accumulate_dtype(entropy.dtype)),
        labels,
        connectivity=connectivity,
        ignore_index=ignore_index,
        bound=math.log(num_classes) * (1 + _ROUNDING) if num_classes and bounded else None,
    )


class _Observed(NamedTuple):
    """What an uncertainty comes down to."""

    values: Tensor
    """Without gradient."""
    kind: Literal["entropy", "map", "mask"]
    """An entropy as the library computes it, a caller's map, or a map that is averaged already."""
    prediction: Tensor | None


class InstanceUncertaintyCrossEntropyLoss(UncertaintyWeightedLoss[_Observed]):
    r"""Cross-entropy whose pixels count more where an ensemble is uncertain about their instance.

    Almeida et al., equations 7 and 8: with H the predictive entropy in nats of an ensemble (M = 3
    in the paper) and C(p) the connected component that pixel p belongs to,

    .. math::
        L = \frac{1}{|\mathrm{pixels}|} \sum_p (1 + \mathrm{IU}_p)^2 \, \mathrm{CE}_p, \qquad
        \mathrm{IU}_p = \frac{1}{|C(p)|} \sum_{q \in C(p)} H_q

    IU is a constant for the gradient. The sum is divided by the number of all pixels. Components
    are those of the label map, as in the paper's Figure 2, where ignored pixels belong to none; or,
    as in the authors' code, those of the ensemble's prediction, which knows of no ignored pixels.

    The uncertainty comes with the call. A trainer that passes ``(input, target)`` alone calls
    :meth:`observe` before the call instead:

    ==============  ======================  ======================  ===========================
    mode            given with the call     observed before         neither
    ==============  ======================  ======================  ===========================
    training        weighted by it          weighted, consumed      error, or plain CE with
                                                                    ``missing="plain"``
    eval            weighted by it          plain CE, kept          plain CE
    ==============  ======================  ======================  ===========================

    In training mode every call uses an observation up, so that none is ever applied to another
    batch. Values are not checked, which would wait for the device: a NaN or an infinity makes the
    loss of its whole component NaN. What a map holds at ignored pixels is never read where
    components are those of the label map.

    Args:
        exponent: of the weight, at least 0; 0 is plain cross-entropy.
        weight: class weights, ``(C,)``, of any float type; a buffer.
        components: ``"target"`` or ``"prediction"``.
        connectivity: 4 or 8 neighbours, in volumes 6 or 26; None is the larger.
        ignore_index: pixels with this target add nothing and get no gradient.
        reduction: ``"mean_all"`` (divided by the number of all pixels), ``"mean"`` (by the sum of
            the valid pixels' class weights, without them their number), ``"sum"`` or ``"none"``.
        label_smoothing: in [0, 1].
        upsample, align_corners: how logits are interpolated to the target's size within the loss,
            as :func:`segunc_ops.functional.cross_entropy` does.
        overwrite_input: whether the gradient is written over the logits: see there.
        missing: what a call in training mode without uncertainty is: ``"error"`` or ``"plain"``.

    Shape:
        - input: ``(N, C, H, W)`` or ``(N, C, D, H, W)`` logits, with `instance_uncertainty` also
          ``(N, C, *)`` and ``(C,)``; float32, bfloat16, float16 or float64.
        - target: ``(N, *)`` class indices; int64, int32, int16 or uint8.
        - uncertainty: H, of the target's shape and any float type; or
          :class:`~segunc_ops.PredictiveStatistics` or
          :class:`~segunc_ops.PredictiveAccumulator` with such an `entropy`.
        - prediction: the ensemble's class per pixel, of the target's shape and any integer type;
          for ``components="prediction"`` with an uncertainty that is a tensor.
        - instance_uncertainty: in place of `uncertainty` IU itself, as `segunc masks` writes it; of
          the target's shape and any float type.
        - result: a scalar, or that of the target for ``"none"``.

    Raises:
        ValueError: if uncertainty is missing, given twice, has another shape or device than the
            target, or is an empty accumulator; if the prediction is missing, or given where
            components are those of the target; arguments of the constructor out of range.
        TypeError: if they are something else.
        ValueError, TypeError, IndexError: as :func:`segunc_ops.functional.cross_entropy`.

    Example:
        >>> loss = InstanceUncertaintyCrossEntropyLoss(ignore_index=255)
        >>> statistics = ensemble_statistics(members, images)
        >>> loss(members[0](images), labels, statistics).backward()
    """

    def __init__(
        self,
        exponent: float = 2.0,
        weight: Tensor | None = None,
        *,
        components: Components = "target",
        connectivity: int | None = None,
        missing: Missing = "error",
        **options: Unpack[LossArguments],
    ) -> None:
        super().__init__(weight, missing, options)
        self.exponent = check_exponent("exponent", exponent)
        check_choice("components", components, get_args(Components))
        if connectivity not in (None, 4, 8, 6, 26):
            raise ValueError(
                f"connectivity: expected 4 or 8, for volumes 6 or 26, or None, got {connectivity!r}"
            )
        self.components = components
        self.connectivity = connectivity

    def observe(
        self,
        uncertainty: Uncertainty | None = None,
        prediction: Tensor | None = None,
        *,
        instance_uncertainty: Tensor | None = None,
    ) -> None:
        """Keeps the uncertainty for the next call in training mode, in place of an older one.

        Args:
            uncertainty, prediction, instance_uncertainty: as for the call; of an accumulator its
                samples so far.

        Raises:
            ValueError, TypeError: if they do not fit each other, or are of no fitting type.
        """
        observed = self._understand(uncertainty, prediction, instance_uncertainty)
        if observed is None:
            raise ValueError("uncertainty: expected one to observe, got none")
        self._observed = observed

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        uncertainty: Uncertainty | None = None,
        prediction: Tensor | None = None,
        *,
        instance_uncertainty: Tensor | None = None,
    ) -> Tensor:
        given = self._understand(uncertainty, prediction, instance_uncertainty)
        observed = self._consume(given)
        if observed is None:
            return self._cross_entropy(input, target, None)
        mean = self._average(observed, input, target)
        return self._cross_entropy(input, target, power_weight(mean, self.exponent))

    def _understand(
        self,
        uncertainty: Uncertainty | None,
        prediction: Tensor | None,
        mask: Tensor | None,
    ) -> _Observed | None:
        if prediction is not None and (self.components == "target" or uncertainty is None):
            raise ValueError(
                "prediction: expected none without uncertainty and components='prediction', got one"
            )
        if mask is not None:
            if uncertainty is not None:
                raise ValueError(
                    "instance_uncertainty: expected it or uncertainty, got both; it is the "
                    "component mean of one"
                )
            values = check_uncertainty(mask, "map", name="instance_uncertainty")
            return _Observed(values, "mask", None)
        if uncertainty is None:
            return None
        kind: Literal["entropy", "map"] = "entropy"
        if isinstance(uncertainty, PredictiveAccumulator):
            if not uncertainty.count:
                raise ValueError("uncertainty: expected an accumulator with samples, got none")
            uncertainty = uncertainty.compute()
        if isinstance(uncertainty, PredictiveStatistics):
            prediction = uncertainty.prediction if prediction is None else prediction
            uncertainty = uncertainty.entropy
        else:
            kind = "map"
        values = check_uncertainty(uncertainty, "entropy", accepted=OR_STATISTICS)
        if self.components == "target":
            return _Observed(values, kind, None)
        if prediction is None:
            raise ValueError(
                "prediction: expected the ensemble's, whose components are asked for, got none; "
                "pass it or PredictiveStatistics"
            )
        check_tensor("prediction", prediction)
        if prediction.is_floating_point() or prediction.is_complex():
            raise TypeError(
                f"prediction: expected class indices of an integer type, got {prediction.dtype}"
            )
        return _Observed(values, kind, prediction)

    def _average(self, observed: _Observed, input: Tensor, target: Tensor) -> Tensor:
        if observed.kind == "mask":
            self._check_maps(input, target, instance_uncertainty=observed.values)
            return observed.values
        if observed.prediction is None:
            self._check_maps(input, target, uncertainty=observed.values)
            labels, ignore_index = target, self.ignore_index
        else:
            labels, ignore_index = observed.prediction, None
            self._check_maps(input, target, uncertainty=observed.values, prediction=labels)
        if input.dim() not in (4, 5):
            raise ValueError(
                "input: expected shape (N, C, H, W) or (N, C, D, H, W), whose pixels have "
                f"components, got {tuple(input.shape)}; pass instance_uncertainty= for others"
            )
        return instance_uncertainty(
            observed.values,
            labels,
            num_classes=input.shape[1] if observed.kind == "entropy" else None,
            connectivity=self.connectivity,
            ignore_index=ignore_index,
        )

    def extra_repr(self) -> str:
        connectivity = "" if self.connectivity is None else f"connectivity={self.connectivity}, "
        return (
            f"exponent={self.exponent:g}, components={self.components!r}, {connectivity}"
            f"{super().extra_repr()}"
        )
