"""Cross-entropy between logits and class indices."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import (
    check_device,
    check_logits,
    check_pixel_weight,
    check_target,
    check_upsampled_input,
    check_weight,
    left_empty,
    one_channel_error,
)
from .._dtypes import accumulate_dtype, result_dtype
from .._native.backend import implementation
from .._options import LossOptions, check_options
from .._overwriting import lend
from .._types import Reduction, Upsample
from .._variations import PLAIN, Adjustment, Variation

__all__ = ["cross_entropy", "cross_entropy_with"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Cross-entropy between logits and class indices, weighted by class and by pixel.

    With p = softmax(z), label y, class weights w, pixel weight u and smoothing e the loss of a
    pixel is torch's, times u:

    .. math:: l = u \left[(1 - e)\, w_y (-\log p_y) + \tfrac{e}{C} \sum_c w_c (-\log p_c)\right]

    With `upsample`, z are the logits interpolated to the target's size, as by
    :func:`torch.nn.functional.interpolate`, but these are never in memory, nor is their gradient.

    Args:
        input: logits, ``(N, C, *)``, ``(N, C)`` or ``(C,)``; float32, bfloat16, float16 or
            float64, of any strides (contiguous and ``channels_last`` are fastest). One channel is
            one class, whose loss is 0: a head z of one channel for a binary mask has the logits
            ``torch.cat([torch.zeros_like(z), z], 1)`` of two.
        target: class indices, ``(N, *)`` (``()`` for ``(C,)``); int64, int32, int16 or uint8. With
            `upsample` its size may be any other than that of the logits, larger or smaller.
        weight: class weights w, ``(C,)``, without gradient.
        pixel_weight: u, of the target's shape or broadcast to it, any float type. It gets a
            gradient if it requires one.
        ignore_index: pixels with this target add nothing; whatever logits and pixel weights
            hold there is never read and their gradient is 0.
        reduction: ``"none"``: the loss per pixel, 0 where ignored; ``"sum"``; ``"mean"``: the sum
            divided by the sum of w_y over the valid pixels, as in torch (without `weight` their
            number; u is not in the denominator; no valid pixel gives NaN); ``"mean_all"``: the
            sum divided by the number of all pixels, ignored ones too.
        label_smoothing: e, in [0, 1].
        upsample: ``"bilinear"`` for logits ``(N, C, H, W)``, ``"trilinear"`` for
            ``(N, C, D, H, W)``; computed in float32 (float64), under autocast too. A NaN reaches
            the pixels that it has a share in. None: no interpolation.
        align_corners: whether the centres of the corner pixels, instead of the corners, of logits
            and target coincide. As for torch, False in most models.
        overwrite_input: whether the gradient is written over the logits, so that nothing of their
            size is allocated. For logits that only this loss reads: they are empty afterwards,
            of shape ``(0,)``. A leaf, a view and logits kept by what made them (ReLU, softmax) are
            an error, the last in the backward pass. Logits stay as they are where no gradient of
            them is wanted, and where torch compiles or transforms the call. Not with `upsample`.

    Returns:
        A scalar, or the target's ``(N, *)`` for ``"none"``; of the input's type, float32 under
        autocast.

    Raises:
        ValueError: on shapes, devices, a reduction, a smoothing or an interpolation that do not
            fit.
        TypeError: on types that do not fit.
        IndexError: on a target outside [0, C) that is not `ignore_index`; on CUDA by the next
            call of any operation (see :func:`segunc_ops.check`), that pixel's loss being NaN.
    """
    options = LossOptions(
        weight, ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input
    )
    return cross_entropy_with(options, input, target, pixel_weight)


def cross_entropy_with(
    options: LossOptions,
    input: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None = None,
    variation: Variation = PLAIN,
) -> Tensor:
    """:func:`cross_entropy` of options that travel together, as losses have them, or a variation.

    The variation is valid but for what its tensor needs of the input.
    """
    check_logits("input", input)
    if input.dim() < 1 or (input.dim() > 1 and input.shape[1] == 0) or input.shape == (0,):
        raise ValueError(
            f"input: expected shape (N, C, *) or (C,) with C > 0, got {tuple(input.shape)}"
            f"{left_empty(input)}"
        )
    options = check_options(options)
    if options.upsample is not None:
        check_upsampled_input(input, options.upsample)
    check_target(input, target, options.upsample)
    dtype = accumulate_dtype(input.dtype)
    if options.weight is not None:
        options = options._replace(weight=check_weight(input, options.weight, dtype))
    if pixel_weight is not None:
        pixel_weight = check_pixel_weight(target, pixel_weight, dtype)
    if variation.adjustment is not None:
        variation = variation._replace(adjustment=_fitting(variation.adjustment, input, dtype))
    result = result_dtype(input)

    single = input.dim() == 1
    if single:
        target = target.unsqueeze(0)
        pixel_weight = None if pixel_weight is None else pixel_weight.unsqueeze(0)

    def loss_of(logits: Tensor) -> Tensor:
        if single:
            logits = logits.unsqueeze(0)
        try:
            loss: Tensor = implementation(input.device).cross_entropy(
                logits, target, pixel_weight=pixel_weight, options=options, variation=variation
            )
        except IndexError as error:
            if single:
                raise
            raise one_channel_error(error, logits) from None
        return loss

    loss = lend(input, options.overwrite_input, loss_of)
    if single and options.reduction == "none":
        loss = loss.squeeze(0)
    return loss if loss.dtype == result else loss.to(result)


def _fitting(adjustment: Adjustment, input: Tensor, dtype: torch.dtype) -> Adjustment:
    """As kernels read it, of a number for each class of the input."""
    offset = adjustment.offset
    num_classes = input.shape[1] if input.dim() > 1 else input.shape[0]
    if offset.shape != (num_classes,):
        raise ValueError(
            f"counts: expected shape ({num_classes},), one per class of input, got "
            f"{tuple(offset.shape)}"
        )
    check_device("counts", offset, input.device)
    return adjustment._replace(offset=offset.to(dtype).contiguous())
