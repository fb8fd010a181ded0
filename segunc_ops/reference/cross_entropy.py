"""Weighted cross-entropy; see :mod:`segunc_ops.functional.cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._options import LossOptions
from .common import interpolate, valid_labels

__all__ = ["cross_entropy"]


def reduce_loss(
    loss: Tensor, valid: Tensor, normalizer_terms: Tensor | None, reduction: str
) -> Tensor:
    """Reduces per-pixel losses that are 0 where ignored; the four reductions."""
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if reduction == "mean_all":
        return total / loss.numel()
    if normalizer_terms is None:
        return total / valid.sum()
    return total / torch.where(valid, normalizer_terms, 0).sum()


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    options: LossOptions | None = None,
    **others: Any,
) -> Tensor:
    """Weighted cross-entropy; see :func:`segunc_ops.functional.cross_entropy`.

    With p = softmax(z), label y, class weights w, smoothing e and pixel weight u::

        l = u * ((1 - e) * w_y * -log p_y + e / C * sum_c w_c * -log p_c)

    With `upsample` z is the input, interpolated to the target's size.

    Args:
        input, target, pixel_weight: as there.
        options: all other arguments of the loss.
        weight, others: the same one by one, where there are no `options`.
    """
    if options is None:
        options = LossOptions(weight, **others)
    if options.upsample is not None:
        size = target.shape[1:]
        input = interpolate(input, size, options.upsample, options.align_corners)
    num_classes, smoothing = input.shape[1], options.label_smoothing
    valid, labels = valid_labels(target, num_classes, options.ignore_index)
    dtype = accumulate_dtype(input.dtype)
    # Whatever ignored pixels hold is never read: a NaN there would come back as 0 * NaN.
    logits = torch.where(valid.unsqueeze(1), input, torch.zeros_like(input)).to(dtype)
    negative_log_p = -torch.log_softmax(logits, dim=1)
    loss = negative_log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    weight = target_weight = None
    if options.weight is not None:
        weight = options.weight.to(dtype)
        target_weight = weight[labels]
        loss = loss * target_weight
    if smoothing > 0:
        shape = (1, num_classes) + (1,) * (input.dim() - 2)
        spread = negative_log_p if weight is None else negative_log_p * weight.view(shape)
        loss = (1 - smoothing) * loss + smoothing / num_classes * spread.sum(1)
    if pixel_weight is not None:
        loss = loss * torch.where(valid, pixel_weight.to(dtype), 0)
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return reduce_loss(loss, valid, target_weight, options.reduction)
