"""Statistics of samples, which are never differentiated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._native.library import fake, ops, returns_nothing
from .common import addressable

__all__ = ["accumulate_statistics", "finalize_statistics", "predictive_statistics"]

# A GPU kernel takes so many unrelated addresses; more samples than that are copied together.
_MAX_SCATTERED = 128

fake("accumulate_statistics_")(returns_nothing)


def _maps(like: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    dtype = accumulate_dtype(like.dtype)
    return [like.new_empty(shape, dtype=torch.int64)] + [
        like.new_empty(shape, dtype=dtype) for _ in range(5)
    ]


@fake("predictive_statistics")
def _statistics(
    samples: list[Tensor], size: list[int], align_corners: bool, return_mean: bool
) -> tuple[Tensor, ...]:
    first = samples[0]
    images, classes, *pixels = first.shape
    pixels = list(size) or pixels
    mean = first.new_empty(
        (images, classes, *pixels) if return_mean else (0,),
        dtype=accumulate_dtype(first.dtype),
    )
    return (*_maps(first, (images, *pixels)), mean)


@fake("finalize_statistics")
def _final(
    mean: Tensor, squared_deviations: Tensor, entropy_sum: Tensor, count: int
) -> tuple[Tensor, ...]:
    return tuple(_maps(mean, tuple(entropy_sum.shape)))


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
    scattered = not isinstance(samples, Tensor)
    each = [*samples]
    if any(sample.stride() != each[0].stride() for sample in each):
        each = [sample.contiguous() for sample in each]
    if scattered and len(each) > _MAX_SCATTERED and each[0].is_cuda:
        each = list(torch.stack(each).unbind(0))
    *maps, mean = ops.predictive_statistics(
        [addressable(sample) for sample in each], size or (), align_corners, return_mean
    )
    return (*maps, mean) if return_mean else tuple(maps)


def accumulate_statistics(
    mean: Tensor,
    squared_deviations: Tensor,
    entropy_sum: Tensor,
    logits: Tensor,
    count: int,
    align_corners: bool = False,
) -> None:
    """Updates a running state in place by the ``count``-th sample.

    Logits of another size than the state's are interpolated to it.
    """
    ops.accumulate_statistics_(
        mean, squared_deviations, entropy_sum, addressable(logits), count, align_corners
    )


def finalize_statistics(
    mean: Tensor, squared_deviations: Tensor, entropy_sum: Tensor, count: int
) -> tuple[Tensor, ...]:
    """The maps of :func:`predictive_statistics` from a running state."""
    maps: tuple[Tensor, ...] = ops.finalize_statistics(mean, squared_deviations, entropy_sum, count)
    return maps
