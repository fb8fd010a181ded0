"""The overlap of classes or regions (Dice) together with cross-entropy, as most trainers combine
them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import (
    check_bool,
    check_choice,
    check_class_scores,
    check_device,
    check_logits,
    check_number,
    check_pixel_weight,
    check_target,
    check_tensor,
    check_upsampled_input,
    check_weight,
    describe,
    left_empty,
    pixel_shape,
)
from .._dtypes import BINARY_DTYPES, accumulate_dtype, result_dtype
from .._native.backend import implementation
from .._options import LossOptions, check_interpolation, check_options
from .._overlap import REGION_REDUCTIONS, Absent, Overlap, RegionOptions, RegionReduction
from .._overwriting import lend
from .._types import Reduction, Upsample
from ..reference import interpolate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "check_overlap",
    "check_region_options",
    "check_scalar_reduction",
    "dice_bce",
    "dice_bce_with",
    "dice_cross_entropy",
    "dice_cross_entropy_with",
]

_LARGEST = sys.float_info.max


def dice_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    batch: bool = False,
    include_background: bool = True,
    smooth_numerator: float = 1e-5,
    smooth_denominator: float = 1e-5,
    squared: bool = False,
    jaccard: bool = False,
    absent: Absent = "count",
    dice_offset: float = 1.0,
    group: ProcessGroup | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Cross-entropy and the Dice loss of the same logits, from one softmax.

    With p = softmax(z), label y, and sums over the valid pixels of an image, or of all images with
    `batch`:

    .. math::
        P_c = \sum p_c, \quad G_c = \sum [y = c], \quad I_c = \sum p_c [y = c], \qquad
        D_c = \frac{2 I_c + s_n}{P_c + G_c + s_d}

    .. math::
        L = \texttt{ce\_weight} \cdot \mathrm{CE} +
            \texttt{dice\_weight} \cdot \operatorname{mean}_c (\texttt{dice\_offset} - D_c)

    The probabilities are never in memory: the logits are read once for the sums and once for the
    gradient. Sums are made in a fixed order and in double precision.

    Args:
        input: logits, ``(N, C, *)`` or ``(N, C)`` with at least two classes; float32, bfloat16,
            float16 or float64, of any strides. A head z of one channel for a binary mask has the
            logits ``torch.cat([torch.zeros_like(z), z], 1)`` of two.
        target: class indices, ``(N, *)``; int64, int32, int16 or uint8. With `upsample` of any
            size.
        weight: class weights, ``(C,)``, of the cross-entropy alone.
        ce_weight, dice_weight: factors of the two parts, at least 0. 0 leaves the part out.
        batch: whether sums are over all images; else each has its own Dice, of which the mean is
            taken.
        include_background: whether class 0 has a part in the mean of Dice.
        smooth_numerator, smooth_denominator: s_n and s_d, at least 0. Denominators are at least
            1e-8.
        squared: whether P_c = sum p_c^2.
        jaccard: whether the denominator is 2 (P_c + G_c - I_c) + s_d.
        absent: what a class without target pixels is, in its image or with `batch` in the batch:
            ``"count"``: like any other; ``"skip"``: no part of the mean; ``"zero"``: a loss of 0
            that is counted.
        dice_offset: what Dice is subtracted from. It changes the loss by a constant: with 0 the
            loss is minus Dice, as nnU-Net has it.
        group: the ranks of this process group add their sums, those of the cross-entropy too, so
            that each has the loss of all images together. Its gradient is that loss's times the
            number of ranks: after the mean over ranks that DistributedDataParallel takes, it is
            that of one process. None: each rank by itself.
        pixel_weight: of the target's shape or broadcast to it, any float type: factors of the
            cross-entropy alone. It gets a gradient if it requires one.
        ignore_index: pixels with this target count nothing anywhere; whatever logits and pixel
            weights hold there is never read and their gradient is 0.
        reduction: of the cross-entropy: ``"mean"``, ``"mean_all"`` or ``"sum"``, as for
            :func:`cross_entropy`. There is no loss of a pixel, hence no ``"none"``.
        label_smoothing: of the cross-entropy alone.
        upsample, align_corners, overwrite_input: as for :func:`cross_entropy`.

    Returns:
        A scalar of the input's type, float32 under autocast.

    Raises:
        ValueError, TypeError, IndexError: as :func:`cross_entropy`; on options out of range and on
            logits of one channel.
        RuntimeError: on a group where no process group is initialised.
    """
    overlap = Overlap(
        ce_weight,
        dice_weight,
        batch,
        include_background,
        smooth_numerator,
        smooth_denominator,
        squared,
        jaccard,
        absent,
        dice_offset,
        group,
    )
    options = LossOptions(
        weight, ignore_index, reduction, label_smoothing, upsample, align_corners, overwrite_input
    )
    return dice_cross_entropy_with(options, check_overlap(overlap), input, target, pixel_weight)


def check_overlap(overlap: Overlap) -> Overlap:
    """The options, if they are valid apart from what they need of an input.

    Raises:
        ValueError, TypeError: they are not.
    """
    numbers: dict[str, Any] = {}
    for name in ("ce_weight", "dice_weight", "smooth_numerator", "smooth_denominator"):
        value = getattr(overlap, name)
        # As a comparison first, which a compiled graph can guard.
        fits = type(value) is float and 0.0 <= value <= _LARGEST
        numbers[name] = value if fits else check_number(name, value, at_least=0.0)
    for name in ("batch", "include_background", "squared", "jaccard"):
        check_bool(name, getattr(overlap, name))
    check_choice("absent", overlap.absent, get_args(Absent))
    offset = overlap.dice_offset
    if not (type(offset) is float and -_LARGEST <= offset <= _LARGEST):
        offset = check_number("dice_offset", offset)
    return overlap._replace(dice_offset=offset, **numbers)


def check_scalar_reduction(reduction: str) -> None:
    """Raises unless the loss is to be one number."""
    if reduction == "none":
        raise ValueError(
            "reduction: expected 'mean', 'mean_all' or 'sum' of the cross-entropy, got 'none': "
            "Dice has no loss of a pixel; add cross_entropy(..., reduction='none') and "
            "dice_cross_entropy(..., ce_weight=0) yourself"
        )


def _check_group(group: Any) -> None:
    """Raises unless this process is one of the group's ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "group: expected None without an initialised process group; call "
            "torch.distributed.init_process_group first"
        )
    outside = group == dist.GroupMember.NON_GROUP_MEMBER  # what new_group gives to other ranks
    if not (outside or isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group: expected a torch.distributed process group, got {describe(group)}")
    if outside or dist.get_rank(group) < 0:
        raise ValueError(f"group: expected one that rank {dist.get_rank()} is in, got another")


def dice_cross_entropy_with(
    options: LossOptions,
    overlap: Overlap,
    input: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """:func:`dice_cross_entropy` of options that travel together, as losses have them.

    The overlap's are valid.
    """
    check_logits("input", input)
    if input.dim() < 2 or input.shape[1] == 0:
        raise ValueError(
            f"input: expected shape (N, C, *) with C > 1, got {tuple(input.shape)}"
            f"{left_empty(input)}"
        )
    if input.shape[1] == 1:
        raise ValueError(
            f"input: expected logits of at least two classes, got shape {tuple(input.shape)}: the "
            "softmax of one channel is 1 everywhere; for a binary mask pass "
            "torch.cat([torch.zeros_like(input), input], 1)"
        )
    options = check_options(options)
    check_scalar_reduction(options.reduction)
    if options.upsample is not None:
        check_upsampled_input(input, options.upsample)
    check_target(input, target, options.upsample)
    if overlap.group is not None:
        _check_group(overlap.group)
    dtype = accumulate_dtype(input.dtype)
    if options.weight is not None:
        options = options._replace(weight=check_weight(input, options.weight, dtype))
    if pixel_weight is not None:
        pixel_weight = check_pixel_weight(target, pixel_weight, dtype)
    result = result_dtype(input)

    def loss_of(logits: Tensor) -> Tensor:
        loss: Tensor = implementation(input.device).dice_cross_entropy(
            logits, target, pixel_weight=pixel_weight, options=options, overlap=overlap
        )
        return loss

    loss = lend(input, options.overwrite_input, loss_of)
    return loss if loss.dtype == result else loss.to(result)


def dice_bce(
    input: Tensor,
    target: Tensor,
    pos_weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    batch: bool = False,
    include_background: bool = True,
    smooth_numerator: float = 1e-5,
    smooth_denominator: float = 1e-5,
    squared: bool = False,
    jaccard: bool = False,
    absent: Absent = "count",
    dice_offset: float = 1.0,
    group: ProcessGroup | None = None,
    reduction: RegionReduction = "mean",
    ignore_channel: bool = False,
    upsample: Upsample | None = None,
    align_corners: bool = False,
    overwrite_input: bool = False,
) -> Tensor:
    r"""Binary cross-entropy and the Dice loss of regions, each with a sigmoid of its own.

    For labels that overlap (multi-label; nnU-Net's regions). With p = sigmoid(z), y in {0, 1},
    weights w of positives, pixel weight u, and sums over the valid pixels of an image, or of all
    images with `batch`:

    .. math::
        P_c = \sum p_c, \quad G_c = \sum y_c, \quad I_c = \sum p_c y_c, \qquad
        D_c = \frac{2 I_c + s_n}{P_c + G_c + s_d}

    .. math::
        l_c = u \left[w_c\, y_c (-\log p_c) + (1 - y_c) (-\log(1 - p_c))\right]

    .. math::
        L = \texttt{ce\_weight} \cdot \operatorname{mean} l_c +
            \texttt{dice\_weight} \cdot \operatorname{mean}_c (\texttt{dice\_offset} - D_c)

    The probabilities are never in memory: the logits are read once for the sums and once for the
    gradient. Sums are made in a fixed order and in double precision.

    Args:
        input: logits, ``(N, C, *)`` or ``(N, C)`` of any number of regions, one too; float32,
            bfloat16, float16 or float64, of any strides.
        target: 0 or 1 for each region and pixel, of the input's shape; bool, an integer type that
            targets have, or any of the input's types. Images that are not contiguous are copied.
            With `upsample` of any size.
        pos_weight: w, ``(C,)``, without gradient; as for
            :func:`torch.nn.functional.binary_cross_entropy_with_logits`.
        mask: bool ``(N, *)``; pixels where it is False count nothing anywhere: whatever logits,
            targets and weights hold there is never read, and their gradient is 0.
        pixel_weight: u, ``(N, *)`` or broadcast to it, any float type: factors of the
            cross-entropy alone. It gets a gradient if it requires one.
        ce_weight, dice_weight, batch, include_background: as for :func:`dice_cross_entropy`, region
            0 being what `include_background` says of; it stays in the cross-entropy.
        smooth_numerator, smooth_denominator, squared, jaccard, absent: as there.
        dice_offset, group: as there.
        reduction: of the cross-entropy: ``"mean"``: the sum divided by the number of valid pixels
            and of regions; ``"mean_pixels"``: by that of valid pixels alone; ``"mean_all"``: by
            that of all pixels and regions; ``"sum"``. Weights are in no denominator; no valid
            pixel gives NaN.
        ignore_channel: whether the target has one channel more than the input, which is 1 where
            pixels are to be ignored, as nnU-Net's; in place of `mask`.
        upsample: ``"bilinear"`` or, for volumes, ``"trilinear"``: logits are interpolated to the
            target's size, where they take memory. None: no interpolation.
        align_corners: as for :func:`torch.nn.functional.interpolate`.
        overwrite_input: as for :func:`cross_entropy`.

    Returns:
        A scalar of the input's type, float32 under autocast.

    Raises:
        ValueError: on shapes, devices or options that do not fit; on a target that is neither 0
            nor 1, on CUDA by the next call of any operation (see :func:`segunc_ops.check`), that
            pixel's loss being NaN.
        TypeError: on types that do not fit.
        RuntimeError: on a group where no process group is initialised.
    """
    overlap = Overlap(
        ce_weight,
        dice_weight,
        batch,
        include_background,
        smooth_numerator,
        smooth_denominator,
        squared,
        jaccard,
        absent,
        dice_offset,
        group,
    )
    options = check_region_options(
        RegionOptions(
            pos_weight, reduction, ignore_channel, upsample, align_corners, overwrite_input
        )
    )
    return dice_bce_with(options, check_overlap(overlap), input, target, mask, pixel_weight)


def check_region_options(options: RegionOptions) -> RegionOptions:
    """The options, if they are valid apart from what they need of an input.

    Raises:
        ValueError, TypeError: they are not.
    """
    check_bool("ignore_channel", options.ignore_channel)
    check_interpolation(options.upsample, options.align_corners, options.overwrite_input)
    check_choice("reduction", options.reduction, REGION_REDUCTIONS)
    return options


def _check_regions(input: Tensor, target: Tensor, ignore_channel: bool) -> None:
    """Raises unless the target has a number for each region and pixel."""
    check_tensor("target", target)
    regions = input.shape[1] + (1 if ignore_channel else 0)
    shape = (input.shape[0], regions, *input.shape[2:])
    if target.shape != shape:
        advice = ""
        if target.shape == pixel_shape(input) and input.shape[1] == 1 and not ignore_channel:
            advice = "; pass target.unsqueeze(1)"
        elif target.shape in (pixel_shape(input), (input.shape[0], 1, *input.shape[2:])):
            advice = "; for class indices there is dice_cross_entropy"
        elif target.shape == (input.shape[0], input.shape[1] + 1, *input.shape[2:]):
            advice = "; if its last channel says what to ignore, pass ignore_channel=True"
        raise ValueError(
            f"target: expected shape {shape} for input of shape {tuple(input.shape)}"
            f"{' and ignore_channel=True' if ignore_channel else ''}, got "
            f"{tuple(target.shape)}{advice}"
        )
    if target.dtype not in BINARY_DTYPES:
        advice = "" if target.is_complex() else "; pass target.bool()"
        raise TypeError(
            "target: expected bool, int64, int32, int16, uint8 or a type of logits, got "
            f"{target.dtype}{advice}"
        )
    check_device("target", target, input.device)
    if target.requires_grad:
        raise ValueError("target: expected one that needs no gradient; pass target.detach()")


def _check_mask(input: Tensor, mask: Tensor) -> None:
    """Raises unless it is a bool for each pixel."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool tensor, got {describe(mask)}")
    if mask.shape != pixel_shape(input):
        channel = mask.shape == (input.shape[0], 1, *input.shape[2:])
        raise ValueError(
            f"mask: expected shape {pixel_shape(input)} for input of shape {tuple(input.shape)}, "
            f"got {tuple(mask.shape)}{'; pass mask.squeeze(1)' if channel else ''}"
        )
    check_device("mask", mask, input.device)


def dice_bce_with(
    options: RegionOptions,
    overlap: Overlap,
    input: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """:func:`dice_bce` of options that travel together, as losses have them. They are valid."""
    check_class_scores("input", input)
    if input.shape[1] == 1 and not overlap.include_background:
        raise ValueError("include_background: expected True for an input of one channel, got False")
    result = result_dtype(input)
    if options.upsample is not None:
        check_tensor("target", target)
        check_upsampled_input(input, options.upsample)
        size = target.shape[2:]
        if target.dim() == input.dim() and 0 not in size:
            input = interpolate(input, size, options.upsample, options.align_corners)
        options = options._replace(upsample=None, align_corners=False)
    _check_regions(input, target, options.ignore_channel)
    if options.ignore_channel:
        if mask is not None:
            raise ValueError("mask: expected none with ignore_channel=True, got one")
        target, mask = target[:, :-1], target[:, -1] == 0
    elif mask is not None:
        _check_mask(input, mask)
    if overlap.group is not None:
        _check_group(overlap.group)
    dtype = accumulate_dtype(input.dtype)
    if options.pos_weight is not None:
        pos_weight = check_weight(input, options.pos_weight, dtype, "pos_weight")
        options = options._replace(pos_weight=pos_weight)
    if pixel_weight is not None:
        pixel_weight = check_pixel_weight(target[:, 0], pixel_weight, dtype, "a number a pixel")

    def loss_of(logits: Tensor) -> Tensor:
        loss: Tensor = implementation(input.device).dice_bce(
            logits, target, pixel_weight=pixel_weight, mask=mask, options=options, overlap=overlap
        )
        return loss

    loss = lend(input, options.overwrite_input, loss_of)
    return loss if loss.dtype == result else loss.to(result)
