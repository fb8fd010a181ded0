"""What all losses share."""

from __future__ import annotations

import inspect
import math
from numbers import Real
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_device, check_target, check_upsampled_input, pixel_shape
from .._dtypes import accumulate_dtype
from .._options import LossArguments, LossOptions, check_options
from .._variations import PLAIN, Variation
from ..functional import PredictiveStatistics, Reduction, Upsample
from ..functional.cross_entropy import cross_entropy_with
from ..sampling import PredictiveAccumulator

Missing = Literal["error", "plain"]
Uncertainty = Tensor | PredictiveStatistics | PredictiveAccumulator
Observation = TypeVar("Observation")

OR_STATISTICS = ", PredictiveStatistics or PredictiveAccumulator"
"""What else than a tensor an uncertainty may be, for messages."""

_OPTIONS = LossOptions._fields


class ClassWeightedLoss(nn.Module):
    """Holds the options that every loss has: class weights as a buffer, the others as they are.

    Constructors take them as ``**options``, by whatever names :class:`LossOptions` has. What shows
    as the signature of a loss names them all.
    """

    __signature__: ClassVar[inspect.Signature]
    default_reduction: ClassVar[Reduction] = "mean"
    without: ClassVar[tuple[str, ...]] = ()
    """Options that a loss's formula leaves no room for."""
    weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    label_smoothing: float
    upsample: Upsample | None
    align_corners: bool
    overwrite_input: bool

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.__signature__ = _explicit(
            inspect.signature(cls.__init__), cls.default_reduction, cls.without
        )

    def __init__(self, weight: Tensor | None, options: LossArguments) -> None:
        super().__init__()
        for name in options:
            if name not in _OPTIONS or name in self.without:
                raise TypeError(
                    f"{type(self).__name__}() got an unexpected keyword argument {name!r}"
                )
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a tensor or None, got {type(weight).__name__}")
        given: LossArguments = {"reduction": self.default_reduction, **options}
        checked = check_options(LossOptions(weight, **given))
        self.register_buffer("weight", weight)
        for name in _OPTIONS:
            if name != "weight":
                setattr(self, name, getattr(checked, name))

    def _cross_entropy(
        self,
        input: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None,
        variation: Variation = PLAIN,
    ) -> Tensor:
        options = LossOptions(*[getattr(self, name) for name in _OPTIONS])
        return cross_entropy_with(options, input, target, pixel_weight, variation)

    def _check_maps(self, input: Tensor, target: Tensor, **maps: Tensor) -> None:
        """Raises unless maps have a number for each pixel of a target that fits `input`.

        Without `upsample` the input says how many, and maps are checked first: where neither they
        nor the target fit it, they are what is told of.
        """
        if self.upsample is None:
            _check_maps(input, pixel_shape(input), maps)
            check_target(input, target)
        else:
            check_upsampled_input(input, self.upsample)
            check_target(input, target, self.upsample)
            _check_maps(input, target.shape, maps)

    def extra_repr(self) -> str:
        classes = "" if self.weight is None else f"num_classes={self.weight.numel()}, "
        corners = f", align_corners={self.align_corners}"
        upsample = "" if self.upsample is None else f", upsample={self.upsample!r}{corners}"
        taken = "label_smoothing" not in self.without
        smoothing = f", label_smoothing={self.label_smoothing}" if taken else ""
        return (
            f"{classes}ignore_index={self.ignore_index}, reduction={self.reduction!r}"
            f"{smoothing}{upsample}{', overwrite_input=True' if self.overwrite_input else ''}"
        )


def _explicit(
    signature: inspect.Signature, reduction: Reduction, without: tuple[str, ...]
) -> inspect.Signature:
    """The signature of a constructor for users: without self, with the options by name."""
    _, *parameters = signature.parameters.values()
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return signature.replace(parameters=parameters)
    own = {parameter.name for parameter in parameters}
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=LossOptions.__annotations__[name],
        )
        for name, default in (LossOptions._field_defaults | {"reduction": reduction}).items()
        if name not in own and name not in without
    ]
    return signature.replace(parameters=[*parameters[:-1], *options])


def _check_maps(input: Tensor, pixels: tuple[int, ...], maps: dict[str, Tensor]) -> None:
    for name, value in maps.items():
        if value.shape != pixels:
            raise ValueError(
                f"{name}: expected the target's shape {tuple(pixels)} for input of shape "
                f"{tuple(input.shape)}, got {tuple(value.shape)}"
            )
        check_device(name, value, input.device)


class UncertaintyWeightedLoss(ClassWeightedLoss, Generic[Observation]):
    """A loss whose pixels weigh (1 + uncertainty)^exponent, by what comes with a call or before it.

    A subclass says what an observation is, and makes the uncertainty map of it.
    """

    default_reduction: ClassVar[Reduction] = "mean_all"

    def __init__(self, weight: Tensor | None, missing: Missing, options: LossArguments) -> None:
        super().__init__(weight, options)
        check_choice("missing", missing, get_args(Missing))
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
                "observe(uncertainty) before, or let segunc_ops.Observer or what is made for your "
                "trainer in segunc_ops.integrations draw it in every step (missing='plain' would "
                "train plain cross-entropy)"
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
