"""Expected cross-entropy: gradients are made while draws are in cache, or by drawing again."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .._options import LossOptions
from .common import REDUCTIONS
from .spread import SpreadLoss, loss_of, register

__all__ = ["expected_cross_entropy"]


class _Settings(NamedTuple):
    """The options that are no tensors, as the operators take them and in their order."""

    ignore_index: int
    reduction: int
    num_draws: int
    antithetic: bool


# Mean, scale, target, weight, pixel weight and seed.
_LOSS = SpreadLoss("expected_cross_entropy", num_tensors=6, pixel_weight=4)
register(_LOSS)


def expected_cross_entropy(
    mean: Tensor,
    scale: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    num_draws: int,
    antithetic: bool,
    seed: Tensor,
    options: LossOptions,
) -> Tensor:
    """Expected cross-entropy; see :func:`segunc_ops.functional.expected_cross_entropy`."""
    others = options.weight, pixel_weight, seed
    settings = _Settings(options.ignore_index, REDUCTIONS[options.reduction], num_draws, antithetic)
    return loss_of(_LOSS, mean, scale, target, others, settings)
