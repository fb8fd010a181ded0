"""What a loss is told beside its inputs, as one object from the modules down to the operators.

An option goes on to cross-entropy's function, reference and autograd (``_Settings``), there to the
operators' schema, and is a further positional argument wherever an operator is called.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from torch import Tensor

from ._checks import check_bool, check_choice, check_int64, check_share, check_upsample
from ._types import REDUCTIONS, Reduction, Upsample

_NUMBERS = (int, float)


class LossOptions(NamedTuple):
    """The arguments that all losses share: see :func:`segunc_ops.functional.cross_entropy`.

    None of them gets a gradient. What gets one is an input of the loss.
    """

    weight: Tensor | None = None
    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    upsample: Upsample | None = None
    align_corners: bool = False
    overwrite_input: bool = False


class LossArguments(TypedDict, total=False):
    """The fields of :class:`LossOptions` that are keyword arguments wherever there is one."""

    ignore_index: int
    reduction: Reduction
    label_smoothing: float
    upsample: Upsample | None
    align_corners: bool
    overwrite_input: bool


def check_interpolation(upsample: object, align_corners: object, overwrite_input: object) -> None:
    """Raises unless logits may be interpolated so, and written over."""
    check_upsample(upsample, align_corners)
    check_bool("overwrite_input", overwrite_input)
    if overwrite_input and upsample is not None:
        raise ValueError(
            "overwrite_input: expected False with upsample, which has nothing of that size, got "
            "True"
        )


def check_options(options: LossOptions) -> LossOptions:
    """The options, if they are valid apart from what they need of an input.

    Raises:
        ValueError, TypeError: they are not.
    """
    check_interpolation(options.upsample, options.align_corners, options.overwrite_input)
    reduction, smoothing = options.reduction, options.label_smoothing
    check_choice("reduction", reduction, REDUCTIONS)
    if not (isinstance(smoothing, _NUMBERS) and 0.0 <= smoothing <= 1.0):
        options = options._replace(label_smoothing=check_share("label_smoothing", smoothing))
    return options._replace(ignore_index=check_int64("ignore_index", options.ignore_index))
