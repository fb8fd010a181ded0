"""Weighted cross-entropy; see :mod:`segunc_ops.functional.cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._options import LossOptions
from .._variations import (
    PLAIN,
    Adjustment,
    Focal,
    Noise,
    PixelAdaptive,
    Variation,
    is_size_normalized,
)
from .common import class_sizes, interpolate, reduce_loss, valid_labels
from .philox import class_words, half_normals, uniform

__all__ = ["cross_entropy"]


def adjusted(logits: Tensor, labels: Tensor, adjustment: Adjustment) -> Tensor:
    """The logits ``(N, C, *)`` that a loss is of."""
    shape = (1, -1) + (1,) * (logits.dim() - 2)
    offset = adjustment.offset.to(logits.dtype).view(shape)
    if adjustment.noise is not None:
        return logits + offset * noise_sizes(adjustment.noise, logits)
    if adjustment.on_target:
        classes = torch.arange(logits.shape[1], device=logits.device).view(shape)
        offset = torch.where(classes == labels.unsqueeze(1), offset, 0)
    return adjustment.scale * logits + offset


def noise_sizes(noise: Noise, logits: Tensor) -> Tensor:
    """|delta| of each pixel and class, ``(N, C, *)``.

    Balancing Logit Variation, equation 4: delta ~ N(0, sigma), clamped to [-1, 1].
    """
    assert noise.seed is not None
    pixels, num_classes = (logits.shape[0], *logits.shape[2:]), logits.shape[1]
    words = class_words(pixels, num_classes + num_classes % 2, noise.seed)
    size = uniform(words)
    if noise.distribution == "normal":
        size = torch.stack(half_normals(size[:, ::2], size[:, 1::2]), 2).flatten(1, 2)
    return (noise.sigma * size[:, :num_classes]).clamp(max=1).to(logits.dtype)


def modulation_factor(modulation: Focal | PixelAdaptive, log_p: Tensor) -> Tensor:
    """The factor of pixels whose class has probability p.

    Focal loss, equation 4: (1 - p)^gamma. PAT, equation 5: exp((1 - p - epsilon) / T), or the
    inverse, of which its table 1 has the numbers.
    """
    if isinstance(modulation, Focal):
        others = -torch.expm1(log_p)
        # Where p is 1 an exponent below 1 has an infinite slope, which autograd would multiply by
        # the loss of 0: there neither the loss nor its gradient is anything but 0.
        safe = torch.where(others > 0, others, 1)
        return torch.where(others > 0, safe**modulation.gamma, float(modulation.gamma == 0))
    p = log_p.detach().exp() if modulation.detached else log_p.exp()
    sign = 1 if modulation.curve == "equation" else -1
    return torch.exp(sign * (1 - p - modulation.epsilon) / modulation.temperature)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    options: LossOptions | None = None,
    variation: Variation = PLAIN,
    **others: Any,
) -> Tensor:
    """Weighted cross-entropy; see :func:`segunc_ops.functional.cross_entropy`.

    With p = softmax(z), label y, class weights w, smoothing e and pixel weight u::

        l = u * ((1 - e) * w_y * -log p_y + e / C * sum_c w_c * -log p_c)

    With `upsample` z is the input, interpolated to the target's size. A variation's adjusted logits
    take the place of z, its factor multiplies l.

    Args:
        input, target, pixel_weight: as there.
        options: all other arguments of the loss.
        variation: what makes another loss of it.
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
    if variation.adjustment is not None:
        logits = adjusted(logits, labels, variation.adjustment)
    negative_log_p = -torch.log_softmax(logits, dim=1)
    target_surprise = loss = negative_log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    weight = target_weight = None
    if options.weight is not None:
        weight = options.weight.to(dtype)
        target_weight = weight[labels]
        loss = loss * target_weight
    if smoothing > 0:
        shape = (1, num_classes) + (1,) * (input.dim() - 2)
        spread = negative_log_p if weight is None else negative_log_p * weight.view(shape)
        loss = (1 - smoothing) * loss + smoothing / num_classes * spread.sum(1)
    if variation.modulation is not None:
        loss = loss * modulation_factor(variation.modulation, -target_surprise)
    reduction: str = options.reduction
    if is_size_normalized(variation):
        sizes = class_sizes(target, num_classes, options.ignore_index).clamp(min=1)
        loss = loss / sizes.gather(1, labels.unsqueeze(-1).flatten(1)).view_as(labels)
        reduction = "mean_images" if reduction == "mean" else reduction
    if pixel_weight is not None:
        loss = loss * torch.where(valid, pixel_weight.to(dtype), 0)
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return reduce_loss(loss, valid, target_weight, reduction)
