"""What all losses share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Generic, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from ..functional import (
    PredictiveStatistics,
    Reduction,
    Upsample,
    _check_target,
    _check_upsample,
    _check_upsampled_input,
    cross_entropy,
)
from ..reference import accumulate_dtype
from ..sampling import PredictiveAccumulator

Missing = Literal["error", "plain"]
Uncertainty = Tensor | PredictiveStatistics | PredictiveAccumulator
Observation = TypeVar("Observation")

OR_STATISTICS = ", PredictiveStatistics or PredictiveAccumulator"
"""What else than a tensor an uncertainty may be, for messages."""


class ClassWeightedLoss(nn.Module):
    """Holds class weights (a buffer) and the options that every loss has."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None,
        ignore_index: int,
        reduction: Reduction,
        label_smoothing: float,
        upsample: Upsample | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a tensor or None, got {type(weight).__name__}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction: expected one of {get_args(Reduction)}, got {reduction!r}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
        _check_upsample(upsample, align_corners)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.upsample = upsample
        self.align_corners = align_corners

    def _cross_entropy(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> Tensor:
        return cross_entropy(
            input,
            target,
            self.weight,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            upsample=self.upsample,
            align_corners=self.align_corners,
        )

    def _check_map(self, name: str, value: Tensor, input: Tensor, target: Tensor) -> None:
        """Raises unless `value` has a number for each pixel of the target, and lies with `input`.

        Without `upsample` the input says how many: a target that does not fit it is told of as
        such.
        """
        if self.upsample is not None:
            _check_upsampled_input(input, self.upsample)
            _check_target(input, target, self.upsample)
            pixels = target.shape
        else:
            pixels = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
        if value.shape != pixels:
            raise ValueError(
                f"{name}: expected the target's shape {tuple(pixels)} for input of shape "
                f"{tuple(input.shape)}, got {tuple(value.shape)}"
            )
        if value.device != input.device:
            raise ValueError(
                f"{name}: expected device {input.device} like input, got {value.device}"
            )

    def extra_repr(self) -> str:
        classes = "" if self.weight is None else f"num_classes={self.weight.numel()}, "
        corners = f", align_corners={self.align_corners}"
        upsample = "" if self.upsample is None else f", upsample={self.upsample!r}{corners}"
        return (
            f"{classes}ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}{upsample}"
        )


class UncertaintyWeightedLoss(ClassWeightedLoss, Generic[Observation]):
    """A loss whose pixels weigh (1 + uncertainty)^exponent, by what comes with a call or before it.

    A subclass says what an observation is, and makes the uncertainty map of it.
    """

    def __init__(
        self,
        weight: Tensor | None,
        ignore_index: int,
        reduction: Reduction,
        label_smoothing: float,
        missing: Missing,
        upsample: Upsample | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, upsample, align_corners)
        if missing not in get_args(Missing):
            raise ValueError(f"missing: expected one of {get_args(Missing)}, got {missing!r}")
        self.missing = missing
        self._observed: Observation | None = None

    def _consume(self, given: Observation | None) -> Observation | None:
        """What weights this call: what was given, else in training mode what was observed."""
        if not self.training:
            return given
        if given is None:
            given = self._observed
        self._observed = None
        if given is None and self.missing == "error":
            raise ValueError(
                "uncertainty: expected one in training mode, got none; pass it, call "
                "observe(uncertainty) before, or construct the loss with missing='plain'"
            )
        return given

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, missing={self.missing!r}"


def check_exponent(name: str, value: float) -> float:
    """A finite exponent of at least 0."""
    if not isinstance(cast(object, value), Real):
        raise TypeError(
            f"{name}: expected a number, got {type(value).__name__}; class weights go to weight="
        )
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
    return float(value)


def check_uncertainty(
    value: object, what: str, *, name: str = "uncertainty", accepted: str = ""
) -> Tensor:
    """A map of floating-point uncertainty, without its gradient."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor{accepted}, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point {what}, got {value.dtype}")
    return value.detach()


def power_weight(uncertainty: Tensor, exponent: float) -> Tensor:
    """(1 + uncertainty)^exponent, in float32 at least."""
    return torch.pow(1 + uncertainty.to(accumulate_dtype(uncertainty.dtype)), exponent)
