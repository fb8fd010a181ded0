"""Dice and cross-entropy, of classes and of regions; see :mod:`segunc_ops.functional.dice`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._options import LossOptions
from .._overlap import FLOOR, Overlap, RegionOptions
from .common import interpolate, valid_labels

__all__ = ["dice_bce", "dice_cross_entropy"]


class _AllReduce(torch.autograd.Function):
    """The sum over ranks. All of them depend on each one's values: so does the gradient."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, values: Tensor) -> Tensor:
        ctx.group = group
        added = values.clone()
        dist.all_reduce(added, group=group)
        return added

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, _AllReduce.apply(ctx.group, grads[0])


def _added(values: Tensor, overlap: Overlap) -> Tensor:
    """The sums of all ranks; each rank's gradient is that of all their losses together."""
    if overlap.group is None:
        return values
    added: Tensor = _AllReduce.apply(overlap.group, values)
    return added


def _dice_loss(p: Tensor, one_hot: Tensor, overlap: Overlap) -> Tensor:
    """The mean over classes, and images unless `batch`, of offset - dice.

    Args:
        p, one_hot: ``(N, C, pixels)``, 0 where ignored.
    """
    axes = (0, 2) if overlap.batch else (2,)
    masses = p.square() if overlap.squared else p
    sums = [values.sum(axes, dtype=torch.float64) for values in (masses, one_hot, p * one_hot)]
    stacked = torch.stack(sums)[..., 0 if overlap.include_background else 1 :]
    if overlap.batch:
        stacked = _added(stacked, overlap)
    predicted, labelled, common = stacked
    total = predicted + labelled
    if overlap.jaccard:
        total = 2 * (total - common)
    denominator = (total + overlap.smooth_denominator).clamp(min=FLOOR)
    loss = overlap.dice_offset - (2 * common + overlap.smooth_numerator) / denominator
    number = torch.full_like(loss.sum(), loss.numel())
    if overlap.absent != "count":
        present = labelled > 0
        loss = torch.where(present, loss, 0)
        number = present.sum().to(loss.dtype) if overlap.absent == "skip" else number
    terms = torch.stack([loss.sum(), number])
    if not overlap.batch:
        terms = _added(terms, overlap)
    return terms[0] / (terms[1].clamp(min=1) if overlap.absent == "skip" else terms[1])


def _cross_entropy(
    log_p: Tensor,
    labels: Tensor,
    valid: Tensor,
    pixel_weight: Tensor | None,
    options: LossOptions,
    overlap: Overlap,
) -> Tensor:
    """Of ``(N, C, pixels)`` and ``(N, pixels)``, reduced."""
    num_classes, smoothing = log_p.shape[1], options.label_smoothing
    weight = torch.ones(num_classes, dtype=log_p.dtype, device=log_p.device)
    if options.weight is not None:
        weight = options.weight.to(log_p.dtype)
    of_target = weight[labels]
    loss = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1) * of_target
    if smoothing > 0:
        spread = -(log_p * weight.view(1, -1, 1)).sum(1)
        loss = (1 - smoothing) * loss + smoothing / num_classes * spread
    if pixel_weight is not None:
        loss = loss * torch.where(valid, pixel_weight.to(loss.dtype), 0)
    total = torch.where(valid, loss, 0).sum(dtype=torch.float64)
    if options.reduction == "mean":
        number = torch.where(valid, of_target, 0).sum(dtype=torch.float64)
    elif options.reduction == "mean_all":
        number = torch.full_like(total, valid.numel())
    else:
        return _added(total, overlap)
    total, number = _added(torch.stack([total, number]), overlap)
    return total / number


def dice_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    options: LossOptions | None = None,
    overlap: Overlap | None = None,
) -> Tensor:
    """Dice and cross-entropy; see :func:`segunc_ops.functional.dice_cross_entropy`.

    With p = softmax(z) and sums over the valid pixels, of an image or of the batch::

        P_c = sum p_c,  G_c = sum [y = c],  I_c = sum p_c [y = c]
        dice_c = (2 I_c + n) / max(P_c + G_c + d, 1e-8)
        loss = ce_weight * CE + dice_weight * mean(dice_offset - dice_c)

    Args:
        input, target, pixel_weight: as there.
        options: the arguments that all losses share.
        overlap: the others.
    """
    options, overlap = options or LossOptions(), overlap or Overlap()
    if options.upsample is not None:
        input = interpolate(input, target.shape[1:], options.upsample, options.align_corners)
    valid, labels = valid_labels(target, input.shape[1], options.ignore_index)
    pixels = (*target.shape[:1], math.prod(target.shape[1:]))
    valid, labels = valid.reshape(pixels), labels.reshape(pixels)
    # Whatever ignored pixels hold is never read: a NaN there would come back as 0 * NaN.
    logits = input.reshape(*input.shape[:2], pixels[1])
    logits = torch.where(valid.unsqueeze(1), logits, 0)
    log_p = torch.log_softmax(logits.to(accumulate_dtype(input.dtype)), dim=1)
    loss = torch.zeros((), dtype=torch.float64, device=input.device)
    if overlap.dice_weight != 0:
        classes = torch.arange(input.shape[1], device=input.device).view(1, -1, 1)
        one_hot = ((classes == labels.unsqueeze(1)) & valid.unsqueeze(1)).to(log_p.dtype)
        p = torch.where(valid.unsqueeze(1), log_p.exp(), 0)
        loss = loss + overlap.dice_weight * _dice_loss(p, one_hot, overlap)
    if overlap.ce_weight != 0:
        if pixel_weight is not None:
            pixel_weight = pixel_weight.reshape(pixels)
        ce = _cross_entropy(log_p, labels, valid, pixel_weight, options, overlap)
        loss = loss + overlap.ce_weight * ce
    return loss.to(log_p.dtype)


def _binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    pixel_weight: Tensor | None,
    options: RegionOptions,
    overlap: Overlap,
) -> Tensor:
    """Of ``(N, C, pixels)`` and valid pixels ``(N, 1, pixels)``, reduced."""
    pos_weight = None
    if options.pos_weight is not None:
        pos_weight = options.pos_weight.to(logits.dtype).view(1, -1, 1)
    loss = F.binary_cross_entropy_with_logits(
        logits, target, reduction="none", pos_weight=pos_weight
    )
    if pixel_weight is not None:
        loss = loss * torch.where(valid, pixel_weight.to(loss.dtype), 0)
    total = torch.where(valid, loss, 0).sum(dtype=torch.float64)
    if options.reduction == "sum":
        return _added(total, overlap)
    counts = torch.ones_like(valid) if options.reduction == "mean_all" else valid
    number = counts.sum(dtype=torch.float64)
    if options.reduction != "mean_pixels":
        number = number * logits.shape[1]
    total, number = _added(torch.stack([total, number]), overlap)
    return total / number


def _check_binary(target: Tensor, valid: Tensor) -> None:
    # Reading the values would synchronise a GPU or break a compiled graph.
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = valid & (target != 0) & (target != 1)
    if outside.any():
        raise ValueError(f"target: expected 0 or 1, got {target[outside][0].item():g}")


def dice_bce(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    mask: Tensor | None = None,
    options: RegionOptions | None = None,
    overlap: Overlap | None = None,
) -> Tensor:
    """Dice and binary cross-entropy; see :func:`segunc_ops.functional.dice_bce`.

    With p = sigmoid(z), y in {0, 1} and sums over the valid pixels, of an image or of the batch::

        P_c = sum p_c,  G_c = sum y_c,  I_c = sum p_c y_c
        dice_c = (2 I_c + n) / max(P_c + G_c + d, 1e-8)
        loss = ce_weight * BCE + dice_weight * mean(dice_offset - dice_c)

    Args:
        input, target, pixel_weight, mask: as there.
        options, overlap: the other arguments.
    """
    options, overlap = options or RegionOptions(), overlap or Overlap()
    shape = (*input.shape[:2], math.prod(input.shape[2:]))
    valid = torch.ones(shape[0], 1, shape[2], dtype=torch.bool, device=input.device)
    if mask is not None:
        valid = mask.reshape(valid.shape)
    target = target.reshape(shape)
    _check_binary(target, valid)
    # Whatever other pixels hold is never read: a NaN there would come back as 0 * NaN.
    logits = torch.where(valid, input.reshape(shape), 0).to(accumulate_dtype(input.dtype))
    target = torch.where(valid, target, 0).to(logits.dtype)
    loss = torch.zeros((), dtype=torch.float64, device=input.device)
    if overlap.dice_weight != 0:
        p = torch.where(valid, torch.sigmoid(logits), 0)
        loss = loss + overlap.dice_weight * _dice_loss(p, target, overlap)
    if overlap.ce_weight != 0:
        if pixel_weight is not None:
            pixel_weight = pixel_weight.reshape(valid.shape)
        bce = _binary_cross_entropy(logits, target, valid, pixel_weight, options, overlap)
        loss = loss + overlap.ce_weight * bce
    return loss.to(logits.dtype)
