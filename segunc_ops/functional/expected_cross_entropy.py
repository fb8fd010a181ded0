"""Cross-entropy of the probabilities that logits have on average, of a normal distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import (
    check_bool,
    check_device,
    check_logits,
    check_pixel_weight,
    check_positive,
    check_target,
    check_upsampled_input,
    check_weight,
)
from .._dtypes import accumulate_dtype, result_dtype
from .._native.backend import implementation
from .._options import LossOptions, check_options
from .._types import Reduction, Upsample
from ..reference import interpolate
from .seeds import seed_tensor

__all__ = ["check_draws", "expected_cross_entropy", "expected_cross_entropy_with"]


def check_draws(num_draws: object, antithetic: object) -> int:
    """The number of draws.

    Raises:
        ValueError, TypeError: it is none, or odd where draws are antithetic.
    """
    count = check_positive("num_draws", num_draws)
    check_bool("antithetic", antithetic)
    if antithetic and count % 2:
        raise ValueError(f"num_draws: expected an even number with antithetic draws, got {count}")
    return count


def expected_cross_entropy(
    mean: Tensor,
    scale: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    num_draws: int = 16,
    antithetic: bool = False,
    seed: int | Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    upsample: Upsample | None = None,
    align_corners: bool = False,
) -> Tensor:
    r"""Cross-entropy of the probabilities that a normal distribution of logits has on average.

    Label uncertainty (Neven et al.) for any number of classes: a network gives the mean and the
    spread of its logits, and learns to be unsure where labels contradict each other. With S draws
    of independent standard normal numbers eps for each pixel and class, label y, class weights w
    and pixel weight u the loss of a pixel is

    .. math::
        l = u\, w_y \left(-\log \frac1S \sum_{s=1}^S \mathrm{softmax}(\mu + A \epsilon_s)_y\right)

    where A is a diagonal of standard deviations or a lower triangle, a Cholesky factor of the
    logits' covariance A A^T. Draws are made where they are used, forward and backward, and take no
    memory: a counter-based generator gives the same number for the same seed, pixel of the target,
    class and draw. The loss is a random number, on average a little above that of infinitely many
    draws; its error falls as the root of their number.

    Args:
        mean: mu, ``(N, C, *)`` or ``(N, C)`` with C of at least 2; float32, bfloat16, float16 or
            float64, of any strides.
        scale: of the mean's type. ``(N, C, *)``: standard deviations, the diagonal of A. Numbers
            below 0 stand for their absolute values: the sign of a normal number means nothing, so a
            head needs no activation (one that keeps away from 0, such as softplus, learns more
            steadily: at 0 the gradient is 0 on average). ``(N, C (C + 1) / 2, *)``: A by rows,
            A_00, A_10, A_11, A_20, ..., with a diagonal of any sign.
        target: class indices, ``(N, *)``; int64, int32, int16 or uint8. With `upsample` its size
            may be any other than that of the mean.
        weight: class weights w, ``(C,)``, without gradient.
        num_draws: S, at least 1. The loss and its gradients are those of this very sum. A GPU takes
            at most 512, in float64 256.
        antithetic: whether draws come in pairs of eps and -eps, for an even number of them. What
            is odd in eps then cancels: see docs/methods.md for how much less draws are needed.
        seed: of the draws, an integer or an int64 tensor ``()``; None draws one by torch's
            generator of the device, which ``torch.manual_seed`` sets and checkpointing restores.
        pixel_weight: u, of the target's shape or broadcast to it, any float type. It gets a
            gradient if it requires one.
        ignore_index: pixels with this target add nothing; whatever mean, scale and pixel weights
            hold there is never read and their gradient is 0.
        reduction: ``"none"``, ``"sum"``, ``"mean"`` (divided by the sum of w_y over the valid
            pixels) or ``"mean_all"`` (divided by the number of all pixels), as for
            :func:`cross_entropy`.
        upsample: ``"bilinear"`` or, for volumes, ``"trilinear"``: mean and scale are interpolated
            to the target's size, where they take memory. None: no interpolation.
        align_corners: as for :func:`torch.nn.functional.interpolate`.

    Returns:
        A scalar, or the target's ``(N, *)`` for ``"none"``; of the mean's type, float32 under
        autocast.

    Raises:
        ValueError: on shapes, devices, a number of draws, a reduction or an interpolation that do
            not fit.
        TypeError: on types that do not fit.
        IndexError: on a target outside [0, C) that is not `ignore_index`; on CUDA by the next
            call of any operation (see :func:`segunc_ops.check`), that pixel's loss being NaN.
    """
    options = LossOptions(
        weight, ignore_index, reduction, upsample=upsample, align_corners=align_corners
    )
    return expected_cross_entropy_with(
        options, mean, scale, target, pixel_weight, num_draws, antithetic, seed
    )


def _check_scale(mean: Tensor, scale: Tensor) -> None:
    check_logits("scale", scale)
    if scale.dtype != mean.dtype:
        raise TypeError(f"scale: expected {mean.dtype} like mean, got {scale.dtype}")
    check_device("scale", scale, mean.device)
    images, num_classes, *spatial = mean.shape
    triangle = num_classes * (num_classes + 1) // 2
    if tuple(scale.shape) not in (
        (images, num_classes, *spatial),
        (images, triangle, *spatial),
    ):
        raise ValueError(
            f"scale: expected shape {(images, num_classes, *spatial)}, or "
            f"{(images, triangle, *spatial)} for a Cholesky factor, got {tuple(scale.shape)}"
        )


def expected_cross_entropy_with(
    options: LossOptions,
    mean: Tensor,
    scale: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None,
    num_draws: object,
    antithetic: bool,
    seed: int | Tensor | None = None,
) -> Tensor:
    """:func:`expected_cross_entropy` of options that travel together, as losses have them."""
    check_logits("mean", mean)
    if mean.dim() < 2 or mean.shape[1] < 2:
        raise ValueError(
            f"mean: expected shape (N, C, *) with at least 2 classes, got {tuple(mean.shape)}"
        )
    _check_scale(mean, scale)
    count = check_draws(num_draws, antithetic)
    options = check_options(options)
    if options.upsample is not None:
        check_upsampled_input(mean, options.upsample, "mean")
    check_target(mean, target, options.upsample)
    dtype = accumulate_dtype(mean.dtype)
    if options.weight is not None:
        options = options._replace(weight=check_weight(mean, options.weight, dtype))
    if pixel_weight is not None:
        pixel_weight = check_pixel_weight(target, pixel_weight, dtype)
    drawn = seed_tensor(seed, mean.device)
    result: torch.dtype = result_dtype(mean)
    if options.upsample is not None:
        mean, scale = (
            interpolate(x, target.shape[1:], options.upsample, options.align_corners)
            for x in (mean, scale)
        )
        options = options._replace(upsample=None, align_corners=False)
    loss: Tensor = implementation(mean.device).expected_cross_entropy(
        mean,
        scale,
        target,
        pixel_weight=pixel_weight,
        num_draws=count,
        antithetic=antithetic,
        seed=drawn,
        options=options,
    )
    return loss if loss.dtype == result else loss.to(result)
