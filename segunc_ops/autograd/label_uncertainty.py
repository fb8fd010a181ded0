"""Losses of uncertain binary labels, both in one pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .._label_uncertainty import LabelUncertaintyOptions
from .common import REDUCTIONS
from .spread import SpreadLoss, loss_of, register

__all__ = ["label_uncertainty"]


class _Settings(NamedTuple):
    """The options, as the operators take them and in their order."""

    ignore_index: int
    reduction: int
    threshold: float
    uncertainty_weight: float
    bootstrap_weight: float
    detach_weight: bool


# Mean, log-variance, target, pixel weight and which images may be bootstrapped.
_LOSS = SpreadLoss("label_uncertainty", num_tensors=5, pixel_weight=3)
register(_LOSS)


def label_uncertainty(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    bootstrap: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    options: LabelUncertaintyOptions,
) -> Tensor:
    """The weighted sum of both losses; see :class:`segunc_ops.LabelUncertaintyLoss`."""
    learns_variance = options.uncertainty_weight != 0 or not options.detach_weight
    if not learns_variance:
        log_variance = log_variance.detach()
    others = pixel_weight, None if bootstrap is None else bootstrap.contiguous()
    settings = _Settings(
        options.ignore_index,
        REDUCTIONS[options.reduction],
        options.threshold,
        options.uncertainty_weight,
        options.bootstrap_weight,
        options.detach_weight,
    )
    return loss_of(_LOSS, mean, log_variance, target, others, settings)
