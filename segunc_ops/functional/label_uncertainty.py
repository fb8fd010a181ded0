"""Losses of binary labels that are uncertain, by a mean and a variance of each pixel's logit."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import (
    check_bool,
    check_choice,
    check_class_scores,
    check_device,
    check_image_flags,
    check_int64,
    check_logits,
    check_number,
    check_pixel_weight,
    check_target,
    check_target_dtype,
    check_tensor,
    check_upsample,
    check_upsampled_input,
)
from .._dtypes import accumulate_dtype, result_dtype
from .._label_uncertainty import LabelUncertaintyOptions
from .._native.backend import implementation
from .._types import REDUCTIONS, Reduction, Upsample
from ..reference import interpolate

__all__ = [
    "bootstrap_targets",
    "bootstrapped_bce",
    "check_label_uncertainty",
    "label_uncertainty_bce",
    "label_uncertainty_with",
]


def label_uncertainty_bce(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    upsample: Upsample | None = None,
    align_corners: bool = False,
) -> Tensor:
    r"""Binary cross-entropy of the probability that is expected of an uncertain logit.

    Neven et al.: the logit of a pixel is :math:`N(\mu, \sigma^2)`. Its sigmoid is expected to be,
    in the closed form of MacKay (1992),

    .. math:: E[p] = \operatorname{sigmoid}\left(\frac{\mu}{\sqrt{1 + \pi \sigma^2 / 8}}\right),
        \qquad l = u \left[-y \log E[p] - (1 - y) \log (1 - E[p])\right]

    A network can lower the loss of a label that it does not believe by a larger variance. The
    closed form is within 0.018 of the true expectation, most where mean and variance are large.

    Args:
        mean: mu, ``(N, *)`` or, as a head of one channel gives it, ``(N, 1, *)``; float32,
            bfloat16, float16 or float64, of any strides.
        log_variance: log sigma^2, of mean's shape and type.
        target: 0 or 1, of mean's shape, or that without its channel; int64, int32, int16, uint8 or
            bool. With `upsample` its size may be any other than that of the mean.
        pixel_weight: u, of the target's shape or broadcast to it, any float type. It gets a
            gradient if it requires one.
        ignore_index: pixels with this target add nothing; whatever mean, log-variance and pixel
            weight hold there is never read and their gradient is 0.
        reduction: ``"none"``: the loss per pixel, 0 where ignored; ``"sum"``; ``"mean"``: the sum
            divided by the number of valid pixels (none of them gives NaN); ``"mean_all"``: the sum
            divided by the number of all pixels, ignored ones too.
        upsample: ``"bilinear"`` or, for volumes, ``"trilinear"``: mean and log-variance, of one
            channel, are interpolated to the target's size first. None: no interpolation.
        align_corners: as for :func:`torch.nn.functional.interpolate`.

    Returns:
        A scalar, or one of the target's shape for ``"none"``; of mean's type, float32 under
        autocast.

    Raises:
        ValueError: on shapes, devices, a reduction or an interpolation that do not fit.
        TypeError: on types that do not fit.
        IndexError: on a target that is neither 0, 1 nor `ignore_index`; on CUDA by the next call of
            any operation (see :func:`segunc_ops.check`), that pixel's loss being NaN.
    """
    options = check_label_uncertainty(
        LabelUncertaintyOptions(
            bootstrap_weight=0.0,
            ignore_index=ignore_index,
            reduction=reduction,
            upsample=upsample,
            align_corners=align_corners,
        )
    )
    return label_uncertainty_with(options, mean, log_variance, target, None, pixel_weight)


def bootstrapped_bce(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    threshold: float,
    bootstrap: Tensor | None = None,
    detach_weight: bool = True,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    upsample: Upsample | None = None,
    align_corners: bool = False,
) -> Tensor:
    r"""Binary cross-entropy whose label is flipped where its uncertainty is above a threshold.

    Neven et al.: with :math:`\sigma^2` = exp(log_variance) and the threshold :math:`\tau`

    .. math:: W = \operatorname{sigmoid}\left(\frac{\tau - \sigma^2}{0.2}\right), \qquad
        l = u \left[W\, \mathrm{BCE}(\mu, y) + (1 - W)\, \mathrm{BCE}(\mu, 1 - y)\right]

    Args:
        mean, log_variance, target, pixel_weight, ignore_index, reduction, upsample, align_corners:
            as for :func:`label_uncertainty_bce`.
        threshold: :math:`\tau`, at least 0.
        bootstrap: bool ``(N,)``: whether an image's labels may be flipped. Where it is False they
            are exact: W is 1. None: those of all images may.
        detach_weight: whether W is a constant to the gradient: the variance is then learned from
            :func:`label_uncertainty_bce` alone.

    Returns:
        As :func:`label_uncertainty_bce`.

    Raises:
        ValueError, TypeError, IndexError: as :func:`label_uncertainty_bce`; on a threshold below 0
            or not finite, on a `bootstrap` of another shape or type.
    """
    options = check_label_uncertainty(
        LabelUncertaintyOptions(
            threshold=threshold,
            uncertainty_weight=0.0,
            detach_weight=detach_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            upsample=upsample,
            align_corners=align_corners,
        )
    )
    return label_uncertainty_with(options, mean, log_variance, target, bootstrap, pixel_weight)


def check_label_uncertainty(options: LabelUncertaintyOptions) -> LabelUncertaintyOptions:
    """The options, if they are valid.

    Raises:
        ValueError, TypeError: they are not.
    """
    threshold, uncertainty_weight, bootstrap_weight = (
        check_number(name, getattr(options, name), at_least=0.0)
        for name in ("threshold", "uncertainty_weight", "bootstrap_weight")
    )
    if uncertainty_weight == bootstrap_weight == 0:
        raise ValueError("bootstrap_weight: expected it or uncertainty_weight above 0, got 0 and 0")
    check_bool("detach_weight", options.detach_weight)
    check_upsample(options.upsample, options.align_corners)
    check_choice("reduction", options.reduction, REDUCTIONS)
    options = options._replace(ignore_index=check_int64("ignore_index", options.ignore_index))
    return options._replace(
        threshold=threshold,
        uncertainty_weight=uncertainty_weight,
        bootstrap_weight=bootstrap_weight,
    )


def _check_like_mean(name: str, mean: Tensor, value: Tensor) -> None:
    """Raises unless it has a number for each of mean's, of the same type."""
    check_logits(name, value)
    if value.shape != mean.shape:
        raise ValueError(
            f"{name}: expected mean's shape {tuple(mean.shape)}, got {tuple(value.shape)}"
        )
    if value.dtype != mean.dtype:
        raise TypeError(f"{name}: expected mean's {mean.dtype}, got {value.dtype}")
    check_device(name, value, mean.device)


def _check_binary_target(mean: Tensor, target: Tensor) -> bool:
    """Raises unless it has a label for each pixel. Returns whether mean has a channel beside it."""
    check_tensor("target", target)
    without_channel = (*mean.shape[:1], *mean.shape[2:])
    has_channel = mean.dim() > 1 and mean.shape[1] == 1
    fits = target.shape == mean.shape or (has_channel and target.shape == without_channel)
    if not fits:
        advice = ""
        if mean.dim() > 1 and target.shape in (
            without_channel,
            (*mean.shape[:1], 1, *mean.shape[2:]),
        ):
            advice = (
                f"; of {mean.shape[1]} channels one is expected: split a head of mean and "
                "log-variance by output.chunk(2, 1)"
            )
        expected = without_channel if has_channel else tuple(mean.shape)
        raise ValueError(
            f"target: expected shape {expected} for mean of shape {tuple(mean.shape)}, got "
            f"{tuple(target.shape)}{advice}"
        )
    if target.dtype != torch.bool:
        check_target_dtype("target", target)
    check_device("target", target, mean.device)
    return has_channel


def label_uncertainty_with(
    options: LabelUncertaintyOptions,
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    bootstrap: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """The weighted sum of both losses, of options that travel together. They are valid."""
    check_logits("mean", mean)
    if mean.dim() == 0:
        raise ValueError("mean: expected shape (N, *) or (N, 1, *), got ()")
    _check_like_mean("log_variance", mean, log_variance)
    result = result_dtype(mean)
    if options.upsample is not None:
        check_tensor("target", target)
        check_upsampled_input(mean, options.upsample, "mean")
        size = target.shape[2:] if target.dim() == mean.dim() else target.shape[1:]
        if len(size) == mean.dim() - 2 and 0 not in size:
            mean, log_variance = (
                interpolate(x, size, options.upsample, options.align_corners)
                for x in (mean, log_variance)
            )
        options = options._replace(upsample=None, align_corners=False)
    has_channel = _check_binary_target(mean, target)
    if bootstrap is not None:
        check_image_flags("bootstrap", bootstrap, mean)
    if pixel_weight is not None:
        pixel_weight = check_pixel_weight(target, pixel_weight, accumulate_dtype(mean.dtype))
    if target.dtype == torch.bool:
        target = target.view(torch.uint8)
    with_channel = has_channel and target.dim() == mean.dim()
    if with_channel:
        target = target.squeeze(1)
        pixel_weight = None if pixel_weight is None else pixel_weight.squeeze(1)
    elif not has_channel:
        mean, log_variance = mean.unsqueeze(1), log_variance.unsqueeze(1)
    loss: Tensor = implementation(mean.device).label_uncertainty(
        mean,
        log_variance,
        target,
        bootstrap=bootstrap,
        pixel_weight=pixel_weight,
        options=options,
    )
    if with_channel and options.reduction == "none":
        loss = loss.unsqueeze(1)
    return loss if loss.dtype == result else loss.to(result)


def bootstrap_targets(
    mean: Tensor,
    variance: Tensor,
    target: Tensor,
    *,
    threshold: float,
    bootstrap: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Class indices that are the network's own where these are too uncertain.

    Neven et al., for several classes: the label of a pixel with
    :math:`\max_c \sigma_c^2 > \tau` becomes :math:`\operatorname{argmax}_c \mu_c`, the lowest class
    on ties. Nothing is differentiated.

    Args:
        mean: mu, the logits' means ``(N, C, *)`` of at least two classes. Of one channel
            :func:`bootstrapped_bce` flips labels by itself.
        variance: sigma^2, of mean's shape. Where it is NaN labels stay as they are.
        target: class indices ``(N, *)``; int64, int32, int16 or uint8.
        threshold: :math:`\tau`, at least 0.
        bootstrap: bool ``(N,)``: whether an image's labels may change. None: those of all images.
        ignore_index: pixels with this target keep it.

    Returns:
        Class indices ``(N, *)`` of the target's type.

    Raises:
        ValueError: on shapes, devices, or a threshold that do not fit; on classes that the target's
            type cannot tell apart.
        TypeError: on types that do not fit.
    """
    check_class_scores("mean", mean)
    if mean.shape[1] == 1:
        raise ValueError(
            f"mean: expected at least two classes, got shape {tuple(mean.shape)}: for one channel "
            "there is bootstrapped_bce, which flips labels by itself; two classes have the means "
            "torch.cat([torch.zeros_like(mean), mean], 1)"
        )
    _check_like_mean("variance", mean, variance)
    check_target(mean, target)
    threshold = check_number("threshold", threshold, at_least=0.0)
    ignore_index = check_int64("ignore_index", ignore_index)
    if mean.shape[1] - 1 > torch.iinfo(target.dtype).max:
        raise ValueError(
            f"target: expected a type that holds {mean.shape[1]} classes, got {target.dtype}"
        )
    changes = (variance.detach().amax(1) > threshold) & (target != ignore_index)
    if bootstrap is not None:
        check_image_flags("bootstrap", bootstrap, mean)
        changes &= bootstrap.view(-1, *(1,) * (target.dim() - 1))
    return torch.where(changes, mean.detach().argmax(1).to(target.dtype), target)
