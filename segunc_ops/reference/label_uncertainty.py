"""Losses of uncertain binary labels; see :mod:`segunc_ops.functional.label_uncertainty`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._label_uncertainty import LabelUncertaintyOptions
from .common import reduce_loss, valid_labels

__all__ = ["label_uncertainty"]

_SOFTNESS = 0.2
# Variances this far above the threshold leave the label a weight of exp(-1000 / 0.2) = 0.
_FAR = 1000.0


def expected_logit(mean: Tensor, log_variance: Tensor) -> Tensor:
    """mu / sqrt(1 + pi sigma^2 / 8), the logit of E[sigmoid(z)] for z ~ N(mu, sigma^2)."""
    log_scale = log_variance + math.log(math.pi / 8)
    return mean * torch.exp(-0.5 * torch.logaddexp(log_scale, torch.zeros_like(log_scale)))


def label_weights(log_variance: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """W = sigmoid((tau - sigma^2) / 0.2), and 1 - W, exact where it is small."""
    # The derivative, too, is 0 beyond: of a variance that overflows it would be 0 * infinity.
    variance = log_variance.clamp(max=math.log(threshold + _FAR)).exp()
    margin = (threshold - variance) / _SOFTNESS
    # Through logarithms: the derivative of torch.sigmoid is not exact where it is near 1.
    return F.logsigmoid(margin).exp(), F.logsigmoid(-margin).exp()


def label_uncertainty(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    bootstrap: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    options: LabelUncertaintyOptions | None = None,
) -> Tensor:
    """The weighted sum of both losses; see :class:`segunc_ops.LabelUncertaintyLoss`.

    With sigma^2 = exp(log_variance), BCE(z, y) that of sigmoid(z), weights a and b::

        W = sigmoid((tau - sigma^2) / 0.2), or 1 in images that bootstrap says are exact
        l = a BCE(mu / sqrt(1 + pi sigma^2 / 8), y) + b (W BCE(mu, y) + (1 - W) BCE(mu, 1 - y))

    Args:
        mean, log_variance: ``(N, 1, *)``.
        target: ``(N, *)``.
        bootstrap: bool ``(N,)``.
        pixel_weight: ``(N, *)``.
        options: all other arguments.
    """
    options = options or LabelUncertaintyOptions()
    valid, labels = valid_labels(target, 2, options.ignore_index)
    dtype = accumulate_dtype(mean.dtype)
    # Whatever ignored pixels hold is never read: a NaN there would come back as 0 * NaN.
    mean, log_variance = (
        torch.where(valid, values.squeeze(1), 0).to(dtype) for values in (mean, log_variance)
    )
    sign = (2 * labels - 1).to(dtype)
    loss = torch.zeros_like(mean)
    if options.uncertainty_weight != 0:
        bce = -F.logsigmoid(sign * expected_logit(mean, log_variance))
        loss = loss + options.uncertainty_weight * bce
    if options.bootstrap_weight != 0:
        kept, flipped = label_weights(log_variance, options.threshold)
        if options.detach_weight:
            kept, flipped = kept.detach(), flipped.detach()
        if bootstrap is not None:
            may_flip = bootstrap.view(-1, *(1,) * (mean.dim() - 1))
            kept, flipped = torch.where(may_flip, kept, 1), torch.where(may_flip, flipped, 0)
        as_labelled, as_flipped = -F.logsigmoid(sign * mean), -F.logsigmoid(-sign * mean)
        loss = loss + options.bootstrap_weight * (kept * as_labelled + flipped * as_flipped)
    if pixel_weight is not None:
        loss = loss * torch.where(valid, pixel_weight.to(dtype), 0)
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return reduce_loss(loss, valid, None, options.reduction)
