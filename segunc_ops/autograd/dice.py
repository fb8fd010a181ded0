"""Dice and cross-entropy, of classes and of regions: sums over pixels, the loss of these, and the
gradient that follows."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import pixel_shape
from .._dtypes import accumulate_dtype
from .._native.library import fake, ops, refuse_gradient
from .._options import LossOptions
from .._overlap import FLOOR, Overlap, RegionOptions
from .._torch import eager_apply, is_eager, is_exporting, keeps_graph
from .common import addressable, call, first_derivatives, taken_over

__all__ = ["dice_bce", "dice_cross_entropy"]


class _Settings(NamedTuple):
    """The options that are no tensors, as the operators of classes take them and in their order."""

    ignore_index: int
    label_smoothing: float
    interpolate: bool
    align_corners: bool
    by_image: bool
    squared: bool


class _RegionSettings(NamedTuple):
    """The same of the operators of regions."""

    by_image: bool
    squared: bool


class _Wanted(NamedTuple):
    """Which gradients there are to be, the operator's last arguments."""

    grad_input: bool
    grad_pixel_weight: bool


_WANTED = len(_Wanted._fields)
# Of the Function: name, wanted, settings, reduction, overlap, whether logits are overwritten, and
# then the operators' tensors: input, target, class weight, pixel weight, and of regions the mask.
_BEFORE_TENSORS = 6
_NAMES = ("dice_cross_entropy", "dice_bce")


@fake(*[f"{name}_forward" for name in _NAMES])
def _forward(input: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, by_image, _squared, _cross_entropy = others
    return (
        input.new_empty(
            (input.shape[0] if by_image else 1, 3, input.shape[1]), dtype=torch.float64
        ),
        input.new_empty((), dtype=torch.float64),
    )


def _gradients_like(
    input: Tensor, pixels: tuple[int, ...], wanted: _Wanted
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(input.dtype)
    return (
        torch.empty_like(input) if wanted.grad_input else input.new_empty((0,)),
        input.new_empty(pixels if wanted.grad_pixel_weight else (0,), dtype=dtype),
    )


@fake("dice_cross_entropy_backward")
def _backward(
    grad_output: Tensor, input: Tensor, target: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return _gradients_like(input, target.shape, _Wanted(*others[-_WANTED:]))


@fake("dice_bce_backward")
def _region_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return _gradients_like(input, pixel_shape(input), _Wanted(*others[-_WANTED:]))


@fake("dice_cross_entropy_backward_")
def _overwriting_backward(
    grad_output: Tensor, input: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return input.new_empty((0,)), _backward(grad_output, input, *others)[1]


@fake("dice_bce_backward_")
def _overwriting_region_backward(
    grad_output: Tensor, input: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return input.new_empty((0,)), _region_backward(grad_output, input, *others)[1]


refuse_gradient(*[f"{name}_{way}" for name in _NAMES for way in ("forward", "backward")])


class _Loss(NamedTuple):
    """A loss, and what the gradient is made of.

    At a pixel of label y the gradient of the probability of class c is
    a_c + b_c [y = c], with 2 a_c p_c for a_c if probabilities are squared.
    """

    value: Tensor
    coefficients: Tensor
    """a and b, ``(N or 1, 2, C)``."""
    factor: Tensor
    """Of the gradient of the pixels' cross-entropies."""


class _DiceSums(NamedTuple):
    total: Tensor
    """Of offset - dice, over the classes that count."""
    number: Tensor | int
    """Of these."""
    slopes: Tensor
    """Of `total`: by P and by I, ``(N or 1, 2, C)``."""


def _dice_of(sums: Tensor, overlap: Overlap) -> _DiceSums:
    """Of P, G and I, ``(N or 1, 3, C)``.

    With A = 2 I + s_n and B = P + G + s_d, or 2 (P + G - I) + s_d, and D = A / B the derivative of
    -D by P is D / B (twice that for the latter B), by I it is -2 / B (less 2 D / B).
    """
    predicted, labelled, common = sums.unbind(1)
    denominator = predicted + labelled
    if overlap.jaccard:
        denominator = (denominator - common) * 2
    denominator = denominator + overlap.smooth_denominator
    floored: Tensor | None = None
    if overlap.smooth_denominator < FLOOR:
        floored = denominator < FLOOR
        denominator = denominator.clamp(min=FLOOR)
    dice = (2 * common + overlap.smooth_numerator) / denominator
    by_total = dice / denominator
    if floored is not None:  # it does not depend on P
        by_total = torch.where(floored, 0, by_total)
    by_common = -2 / denominator
    if overlap.jaccard:
        by_total = 2 * by_total
        by_common = by_common - by_total
    loss, slopes = overlap.dice_offset - dice, torch.stack([by_total, by_common], 1)
    number: Tensor | int = loss.shape[0] * (
        loss.shape[1] - (0 if overlap.include_background else 1)
    )
    if overlap.absent != "count" or not overlap.include_background:
        counts = labelled > 0 if overlap.absent != "count" else torch.ones_like(labelled).bool()
        if not overlap.include_background:
            counts[:, 0] = False
        loss = torch.where(counts, loss, 0)
        slopes = torch.where(counts.unsqueeze(1), slopes, 0)
        if overlap.absent == "skip":
            number = counts.sum(dtype=loss.dtype)
    return _DiceSums(loss.sum(), number, slopes)


def _normalizer(
    sums: Tensor, target: Tensor, weight: Tensor | None, reduction: str
) -> Tensor | int:
    """What the cross-entropy is divided by, of the images of this process."""
    if reduction == "mean":
        labelled = sums[:, 1]
        return (labelled if weight is None else labelled * weight).sum()
    return target.numel() if reduction == "mean_all" else 1


def _loss_of(
    sums: Tensor,
    surprise: Tensor,
    normalizer: Tensor | int,
    overlap: Overlap,
    adds_up: bool,
) -> _Loss:
    """The loss of an operator's sums, those of all ranks if there is a group.

    Args:
        sums: P, G and I, ``(N or 1, 3, C)``.
        surprise: the sum of the pixels' cross-entropies.
        normalizer: what this is divided by.
        adds_up: whether all ranks together are divided by the sum of normalizers.
    """
    group, ranks = overlap.group, 1
    if group is not None:
        ranks = dist.get_world_size(group)
        if overlap.batch:
            flat = torch.cat([sums.flatten(), _vector(sums, surprise, normalizer)])
            dist.all_reduce(flat, group=group)
            sums, (surprise, normalizer) = flat[:-2].view_as(sums), flat[-2:].unbind()
    total, number, slopes = _dice_of(sums, overlap)
    if group is not None and not overlap.batch:
        flat = _vector(sums, total, number, surprise, normalizer)
        dist.all_reduce(flat, group=group)
        total, number, surprise, normalizer = flat.unbind()
    if not adds_up:
        normalizer = 1
    if isinstance(number, Tensor) and overlap.absent == "skip":
        number = number.clamp(min=1)
    # Weights of 0 leave parts out, be they NaN.
    value: Tensor | None = None
    if overlap.dice_weight != 0:
        value = total * overlap.dice_weight / number
        slopes = slopes * (overlap.dice_weight * ranks) / number
    else:
        slopes = torch.zeros_like(slopes)
    factor = torch.zeros_like(surprise)
    if overlap.ce_weight != 0:
        ce = surprise * overlap.ce_weight / normalizer
        value = ce if value is None else value + ce
        factor = torch.full_like(surprise, overlap.ce_weight * ranks) / normalizer
    return _Loss(torch.zeros_like(surprise) if value is None else value, slopes, factor)


def _vector(like: Tensor, *numbers: Tensor | int) -> Tensor:
    """Of scalars."""
    each = [n if isinstance(n, Tensor) else like.new_full((), n) for n in numbers]
    return torch.stack(each)


def _region_normalizer(target: Tensor, mask: Tensor | None, reduction: str) -> Tensor | int:
    """What the cross-entropy of regions is divided by."""
    if reduction == "sum":
        return 1
    regions = target.shape[1]
    if mask is None or reduction == "mean_all":
        pixels: Tensor | int = target.numel() // regions
    else:
        pixels = mask.sum(dtype=torch.float64)
    return pixels if reduction == "mean_pixels" else pixels * regions


def _forward_call(
    name: str,
    settings: _Settings | _RegionSettings,
    reduction: str,
    overlap: Overlap,
    *tensors: Any,
) -> _Loss:
    input, target, weight, _, *mask = tensors
    sums, surprise = call(
        getattr(ops, f"{name}_forward").default, *tensors, *settings, overlap.ce_weight != 0
    )
    if mask:
        normalizer = _region_normalizer(target, mask[0], reduction)
    else:
        normalizer = _normalizer(sums, target, weight, reduction)
    loss = _loss_of(sums, surprise, normalizer, overlap, reduction != "sum")
    return loss._replace(value=loss.value.to(accumulate_dtype(input.dtype)))


class _Dice(torch.autograd.Function):
    """Keeps the logits and what the sums say of the gradient, which is made from them in backward.

    A gradient depends on sums over all pixels, so the logits have to be read again anyway; in
    backward the upstream gradient is there, and float16 has GradScaler's factor.

    The coefficients stay differentiable in form. They tie gradients to the inputs under
    create_graph=True, so that a second derivative meets FirstDerivative instead of a silent
    constant.
    """

    @staticmethod
    def forward(
        name: str,
        wanted: _Wanted,
        settings: _Settings | _RegionSettings,
        reduction: str,
        overlap: Overlap,
        overwrites: bool,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        return tuple(_forward_call(name, settings, reduction, overlap, *tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.wanted, ctx.settings, *_, ctx.overwrites = inputs[:_BEFORE_TENSORS]
        input, *others = inputs[_BEFORE_TENSORS:]
        ctx.tensors = 1 + len(others)
        _, coefficients, factor = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            taken_over(input) if ctx.overwrites else input, *others, coefficients, factor
        )
        ctx.mark_non_differentiable(factor)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * _BEFORE_TENSORS
        if grad_output is None:
            return (*nothing, *(None,) * ctx.tensors)
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes at every read
        # The saved coefficients depend on the inputs: see above.
        coefficients = saved[ctx.tensors]
        grads = first_derivatives(ctx.name, coefficients, _gradients_of, ctx, saved, grad_output)
        of_input = grads[0] if ctx.wanted.grad_input else None
        of_pixel_weight = grads[1] if ctx.wanted.grad_pixel_weight else None
        mask = (None,) * (ctx.tensors - 4)
        return (*nothing, of_input, None, None, of_pixel_weight, *mask)


_eager_apply = eager_apply(_Dice)


def _gradients_of(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of input and pixel weight, empty where not wanted."""
    over = ctx.overwrites and not keeps_graph()
    grads: tuple[Tensor, ...] = call(
        getattr(ops, f"{ctx.name}_backward{'_' if over else ''}").default,
        grad_output.contiguous(),
        *saved,
        *ctx.settings,
        *ctx.wanted,
    )
    return (saved[0], grads[1]) if over else grads


def dice_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    options: LossOptions,
    overlap: Overlap,
) -> Tensor:
    """Dice and cross-entropy; see :func:`segunc_ops.functional.dice_cross_entropy`."""
    settings = _Settings(
        options.ignore_index,
        options.label_smoothing,
        options.upsample is not None,
        options.align_corners,
        not overlap.batch,
        overlap.squared,
    )
    tensors = addressable(input), target.contiguous(), options.weight, pixel_weight
    name, over = "dice_cross_entropy", options.overwrite_input
    return _loss(name, settings, options.reduction, overlap, over, *tensors)


def dice_bce(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    mask: Tensor | None = None,
    options: RegionOptions,
    overlap: Overlap,
) -> Tensor:
    """Dice and binary cross-entropy; see :func:`segunc_ops.functional.dice_bce`."""
    if mask is not None:
        mask = mask.contiguous()
    tensors = addressable(input), _dense(target), options.pos_weight, pixel_weight, mask
    settings = _RegionSettings(not overlap.batch, overlap.squared)
    over = options.overwrite_input
    return _loss("dice_bce", settings, options.reduction, overlap, over, *tensors)


def _dense(target: Tensor) -> Tensor:
    """Targets ``(N, C, *)`` with contiguous images: those without a last channel are not copied."""
    stride = 1
    for size, found in zip(reversed(target.shape[1:]), reversed(target.stride()[1:]), strict=True):
        if size != 1 and found != stride:
            return target.contiguous()
        stride *= size
    return target


def _loss(
    name: str,
    settings: _Settings | _RegionSettings,
    reduction: str,
    overlap: Overlap,
    overwrite_input: bool,
    *tensors: Any,
) -> Tensor:
    input, _, _, pixel_weight, *_ = tensors
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    wanted = _Wanted(
        enabled and input.requires_grad,
        enabled and pixel_weight is not None and pixel_weight.requires_grad,
    )
    # An exported program would keep the operators and lose the Function around them: their own
    # formula raises when such a program is differentiated.
    if not any(wanted) or is_exporting():
        return _forward_call(name, settings, reduction, overlap, *tensors).value
    eager = is_eager()
    apply = _eager_apply if eager else _Dice.apply
    overwrites = overwrite_input and wanted.grad_input and eager
    losses = apply(name, wanted, settings, reduction, overlap, overwrites, *tensors)
    return cast(Tensor, losses[0])
