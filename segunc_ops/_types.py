"""Public types that more than one family of operations names."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from torch import Tensor

__all__ = ["REDUCTIONS", "PredictiveStatistics", "Reduction", "Upsample"]

Reduction = Literal["none", "mean", "sum", "mean_all"]
Upsample = Literal["bilinear", "trilinear"]

REDUCTIONS: tuple[str, ...] = get_args(Reduction)


class PredictiveStatistics(NamedTuple):
    """Per-pixel statistics of S samples' class probabilities; entropies in nats.

    With p_s = softmax(z_s) and m = mean_s p_s, each of shape ``(N, *)``:
    """

    prediction: Tensor
    """argmax_c m, the lowest class on ties (int64)."""
    confidence: Tensor
    """m at the prediction."""
    std: Tensor
    """Unbiased standard deviation over the samples of p_s at the prediction; NaN for S = 1."""
    entropy: Tensor
    """H[m], the predictive entropy."""
    expected_entropy: Tensor
    """mean_s H[p_s]."""
    mutual_information: Tensor
    """H[m] - mean_s H[p_s]."""
    mean: Tensor | None = None
    """m, of shape ``(N, C, *)``, if asked for."""
