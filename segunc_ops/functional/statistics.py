"""Statistics of the class probabilities of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._arrays import accepts_arrays
from .._checks import (
    AXES,
    check_bool,
    check_class_scores,
    check_device,
    check_logits,
    check_positive,
    check_size,
    check_state,
    check_tensor,
    describe,
)
from .._dtypes import accumulate_dtype
from .._native.backend import implementation
from .._types import PredictiveStatistics

__all__ = [
    "PredictiveStatistics",
    "accumulate_statistics",
    "finalize_statistics",
    "predictive_statistics",
]


def _check_samples(samples: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Samples that fit together, at least one: a tensor, or a list of them."""
    if isinstance(samples, Tensor):
        check_logits("samples", samples)
        if samples.dim() < 3:
            raise ValueError(f"samples: expected shape (S, N, C, *), got {tuple(samples.shape)}")
        if samples.shape[2] == 0:
            raise ValueError(f"samples: expected C > 0, got shape {tuple(samples.shape)}")
    else:
        try:
            samples = list(samples)
        except TypeError:
            raise TypeError(
                f"samples: expected a tensor or a sequence of them, got {describe(samples)}"
            ) from None
        for i, sample in enumerate(samples):
            name = f"samples[{i}]"
            check_class_scores(name, sample)
            if sample.shape != samples[0].shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(samples[0].shape)} like the first, got "
                    f"{tuple(sample.shape)}"
                )
            if sample.dtype != samples[0].dtype:
                raise TypeError(
                    f"{name}: expected {samples[0].dtype} like the first, got {sample.dtype}"
                )
            check_device(name, sample, samples[0].device)
    if len(samples) == 0:
        raise ValueError("samples: expected at least one sample, got none")
    return samples


@accepts_arrays
@torch.no_grad()
def predictive_statistics(
    samples: Tensor | Sequence[Tensor],
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    return_mean: bool = False,
) -> PredictiveStatistics:
    """Statistics of the class probabilities of S samples, in one pass over the logits.

    The samples are stochastic forward passes (Monte-Carlo dropout) or the members of an
    ensemble. Never differentiable. Maps are float32 (float64 for float64 logits) even for
    half-precision logits: a standard deviation of 1e-3 would lose most of its digits there.

    With `size`, statistics are those of the logits interpolated to it, as by
    :func:`torch.nn.functional.interpolate`, but these are never in memory.

    Args:
        samples: logits, ``(S, N, C, *)`` or a sequence of S tensors ``(N, C, *)``; float32,
            bfloat16, float16 or float64. NaN logits give NaN maps. NumPy and CuPy arrays are
            read in place and give such arrays.
        size: the spatial sizes of the maps, such as ``labels.shape[1:]``, smaller or larger than
            those of the logits: ``(H, W)`` for logits ``(N, C, H, W)`` (bilinear), ``(D, H, W)``
            for ``(N, C, D, H, W)`` (trilinear). Interpolated in float32 (float64), under autocast
            too; a NaN reaches the pixels that it has a share in. None, or the logits' own: no
            interpolation.
        align_corners: whether the centres of the corner pixels, instead of the corners, of logits
            and maps coincide. As for torch, False in most models.
        return_mean: whether to return the mean probabilities, ``(N, C, *)``, too.

    Returns:
        :class:`PredictiveStatistics` of ``(N, *)`` maps.

    Raises:
        ValueError: no sample, or shapes, devices or a size that do not fit.
        TypeError: types that do not fit.
    """
    each = _check_samples(samples)
    check_bool("return_mean", return_mean)
    sizes = check_size("samples", each[0], size, align_corners)
    maps = implementation(each[0].device).predictive_statistics(
        each, size=sizes, align_corners=align_corners, return_mean=return_mean
    )
    return PredictiveStatistics(*maps)


@torch.no_grad()
def accumulate_statistics(
    mean: Tensor,
    squared_deviations: Tensor,
    entropy_sum: Tensor,
    logits: Tensor,
    count: int,
    *,
    align_corners: bool = False,
) -> None:
    """Adds one sample's softmax to a running state, in place.

    Logits ``(N, C, H, W)`` or ``(N, C, D, H, W)`` of another size than the state's are interpolated
    to it, as by :func:`predictive_statistics`.

    Args:
        mean: running mean of the probabilities, ``(N, C, *)``, contiguous, float32 (float64 for
            float64 logits).
        squared_deviations: their running sum of squared deviations from the mean, likewise.
        entropy_sum: the sum of the samples' entropies in nats, ``(N, *)``, likewise.
        logits: the sample, ``(N, C, *)``, of any float type and strides.
        count: the number of samples including this one. At 1 the state is overwritten unread.
        align_corners: how logits of another size are interpolated.

    Raises:
        ValueError: shapes, devices or a count that do not fit.
        TypeError: types that do not fit.
    """
    check_class_scores("logits", logits)
    count = check_positive("count", count)
    check_tensor("mean", mean)
    check_bool("align_corners", align_corners)
    shape = logits.shape
    fits = mean.dim() == logits.dim() and mean.shape[:2] == shape[:2]
    if fits and logits.dim() in AXES and 0 not in (*mean.shape[2:], *shape[2:]):
        shape = mean.shape
    check_state(
        logits.device,
        accumulate_dtype(logits.dtype),
        mean=(mean, shape),
        squared_deviations=(squared_deviations, shape),
        entropy_sum=(entropy_sum, shape[:1] + shape[2:]),
    )
    implementation(logits.device).accumulate_statistics(
        mean, squared_deviations, entropy_sum, logits, count, align_corners
    )


@torch.no_grad()
def finalize_statistics(
    mean: Tensor,
    squared_deviations: Tensor,
    entropy_sum: Tensor,
    count: int,
    *,
    return_mean: bool = False,
) -> PredictiveStatistics:
    """The statistics of a state that :func:`accumulate_statistics` has filled.

    Args:
        mean, squared_deviations, entropy_sum: the state.
        count: the number of samples in it.
        return_mean: whether to return a copy of the mean probabilities too.

    Returns:
        :class:`PredictiveStatistics` of ``(N, *)`` maps.

    Raises:
        ValueError: shapes, devices or a count that do not fit.
        TypeError: types that do not fit.
    """
    count = check_positive("count", count)
    check_bool("return_mean", return_mean)
    check_tensor("mean", mean)
    if mean.dim() < 2 or mean.shape[1] == 0:
        raise ValueError(f"mean: expected shape (N, C, *) with C > 0, got {tuple(mean.shape)}")
    pixels = mean.shape[:1] + mean.shape[2:]
    check_state(
        mean.device,
        accumulate_dtype(mean.dtype),
        mean=(mean, mean.shape),
        squared_deviations=(squared_deviations, mean.shape),
        entropy_sum=(entropy_sum, pixels),
    )
    maps = implementation(mean.device).finalize_statistics(
        mean, squared_deviations, entropy_sum, count
    )
    return PredictiveStatistics._make([*maps, mean.clone() if return_mean else None])
