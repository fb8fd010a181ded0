"""Cross-entropy of expected probabilities; see :mod:`segunc_ops.functional`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._options import LossOptions
from .common import reduce_loss, valid_labels
from .philox import class_normals

__all__ = ["expected_cross_entropy", "normal_draws"]

_DRAWS_AT_ONCE = 4


def normal_draws(
    shape: tuple[int, ...], num_classes: int, num_draws: int, antithetic: bool, seed: Tensor
) -> Tensor:
    """Standard normal numbers of each draw, pixel of ``(N, *)`` and class: ``(S, N, C, *)``.

    float64. Antithetic draws 2k and 2k + 1 are a number and its negative.
    """
    numbers = num_draws // 2 if antithetic else num_draws
    groups = (numbers + _DRAWS_AT_ONCE - 1) // _DRAWS_AT_ONCE
    normals = [
        normal
        for group in range(groups)
        for normal in class_normals(shape, num_classes, group, seed)
    ][:numbers]
    if antithetic:
        normals = [signed for normal in normals for signed in (normal, -normal)]
    return torch.stack(normals)


def lower_triangle(packed: Tensor, num_classes: int) -> Tensor:
    """The factors ``(N, C, C, *)`` of packed rows ``(N, C (C + 1) / 2, *)``."""
    row, column = torch.tril_indices(num_classes, num_classes, device=packed.device)
    full = packed.new_zeros(len(packed), num_classes, num_classes, *packed.shape[2:])
    full[:, row, column] = packed
    return full


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
    """Cross-entropy of expected probabilities.

    With eps_s of N(0, 1) for each pixel, class and draw s of S, and A the diagonal or the triangle
    that `scale` holds::

        l = u * w_y * -log(1 / S * sum_s softmax(mean + A eps_s)_y)

    Args:
        mean, scale, target, pixel_weight, num_draws, antithetic: as for
            :func:`segunc_ops.functional.expected_cross_entropy`, of the target's size.
        seed: int64, ``()``.
        options: all other arguments of the loss.
    """
    num_classes = mean.shape[1]
    valid, labels = valid_labels(target, num_classes, options.ignore_index)
    dtype = accumulate_dtype(mean.dtype)
    # Whatever ignored pixels hold is never read: a NaN there would come back as 0 * NaN.
    counts = valid.unsqueeze(1)
    mean = torch.where(counts, mean, torch.zeros_like(mean)).to(dtype)
    scale = torch.where(counts, scale, torch.zeros_like(scale)).to(dtype)
    if scale.shape[1] != num_classes:
        scale = lower_triangle(scale, num_classes)
    draws = normal_draws(tuple(target.shape), num_classes, num_draws, antithetic, seed)
    log_p = []
    for normals in draws.to(dtype):
        if scale.dim() == mean.dim():
            offset = scale * normals
        else:
            offset = torch.einsum("nij...,nj...->ni...", scale, normals)
        of_classes = torch.log_softmax(mean + offset, 1)
        log_p.append(of_classes.gather(1, labels.unsqueeze(1)).squeeze(1))
    loss = math.log(num_draws) - torch.logsumexp(torch.stack(log_p), 0)
    target_weight = None
    if options.weight is not None:
        target_weight = options.weight.to(dtype)[labels]
        loss = loss * target_weight
    if pixel_weight is not None:
        loss = loss * torch.where(valid, pixel_weight.to(dtype), 0)
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return reduce_loss(loss, valid, target_weight, options.reduction)
