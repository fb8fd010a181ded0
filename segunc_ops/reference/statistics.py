"""Statistics of samples; see :mod:`segunc_ops.functional.statistics`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .common import at_size

__all__ = ["accumulate_statistics", "finalize_statistics", "predictive_statistics"]


def _entropy(p: Tensor, dim: int) -> Tensor:
    return torch.special.entr(p).sum(dim)


def _maps(
    mean: Tensor, variance_at: Tensor, prediction: Tensor, expected_entropy: Tensor
) -> tuple[Tensor, ...]:
    entropy = _entropy(mean, 1)
    confidence = mean.gather(1, prediction.unsqueeze(1)).squeeze(1)
    # Jensen's inequality makes it non-negative; rounding alone would not.
    mutual_information = (entropy - expected_entropy).clamp(min=0)
    return (
        prediction,
        confidence,
        variance_at.sqrt(),
        entropy,
        expected_entropy,
        mutual_information,
    )


def predictive_statistics(
    samples: Tensor | Sequence[Tensor],
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    return_mean: bool = False,
) -> tuple[Tensor, ...]:
    """Statistics of S samples; see :func:`segunc_ops.functional.predictive_statistics`.

    Returns prediction, confidence, std, entropy, expected entropy and mutual information, then
    the mean if asked.
    """
    if size is not None:
        samples = [at_size(sample, size, align_corners) for sample in samples]
    stacked = samples if isinstance(samples, Tensor) else torch.stack(list(samples))
    p = stacked.to(accumulate_dtype(stacked.dtype)).softmax(2)
    mean = p.mean(0)
    prediction = mean.argmax(1)
    chosen = p.gather(
        2, prediction[None, :, None].expand(p.shape[0], -1, -1, *prediction.shape[1:])
    )
    chosen = chosen.squeeze(2)
    squares = (chosen - chosen.mean(0)).square().sum(0)
    # Divided as tensors: a single sample gives 0 / 0 = NaN, as in torch.std.
    variance = squares / squares.new_tensor(p.shape[0] - 1)
    maps = _maps(mean, variance, prediction, _entropy(p, 2).mean(0))
    return (*maps, mean) if return_mean else maps


def accumulate_statistics(
    mean: Tensor,
    squared_deviations: Tensor,
    entropy_sum: Tensor,
    logits: Tensor,
    count: int,
    align_corners: bool = False,
) -> None:
    """Updates a running state in place by the ``count``-th sample (Welford's recurrence).

    Logits of another size than the state's are interpolated to it.
    """
    p = at_size(logits, mean.shape[2:], align_corners).to(mean.dtype).softmax(1)
    entropy = _entropy(p, 1)
    if count == 1:
        mean.copy_(p)
        squared_deviations.zero_()
        entropy_sum.copy_(entropy)
        return
    delta = p - mean
    mean.add_(delta / count)
    squared_deviations.add_(delta * (p - mean))
    entropy_sum.add_(entropy)


def finalize_statistics(
    mean: Tensor, squared_deviations: Tensor, entropy_sum: Tensor, count: int
) -> tuple[Tensor, ...]:
    """The maps of :func:`predictive_statistics` from a running state."""
    prediction = mean.argmax(1)
    squares = squared_deviations.gather(1, prediction.unsqueeze(1)).squeeze(1)
    variance = squares / squares.new_tensor(count - 1)
    return _maps(mean, variance, prediction, entropy_sum / count)
