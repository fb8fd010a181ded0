"""Stateless functions: what the arguments mean and which are valid.

Shapes: N images, C classes, ``*`` any number of spatial axes, S samples. Computation is in
float32 (float64 for float64 logits), whatever type the logits are stored in.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import autograd, reference
from ._arrays import accepts_arrays
from ._library import is_native, ops
from .reference import accumulate_dtype

__all__ = [
    "PredictiveStatistics",
    "Reduction",
    "SegmentationCounts",
    "Upsample",
    "accumulate_counts",
    "accumulate_patch_counts",
    "accumulate_statistics",
    "component_mean",
    "connected_components",
    "cross_entropy",
    "empty_counts",
    "finalize_statistics",
    "predictive_statistics",
]

Reduction = Literal["none", "mean", "sum", "mean_all"]
Upsample = Literal["bilinear", "trilinear"]

_LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TARGET_DTYPES = (torch.int64, torch.int32, torch.uint8)
# How many axes logits have that a mode interpolates.
_UPSAMPLE_DIMS = {"bilinear": 4, "trilinear": 5}
# What the spatial axes of such logits are called.
_AXES = {4: "H, W", 5: "D, H, W"}
# A kernel addresses three spatial axes; more are rare enough to be copied together.
_MAX_DIMS = 5
# A GPU kernel takes so many unrelated addresses; more samples than that are copied together.
_MAX_SCATTERED = 128
# A GPU kernel counts the patches of so many thresholds in shared memory.
_MAX_THRESHOLDS = 1024


class PredictiveStatistics(NamedTuple):
    """Per-pixel statistics of S samples' class probabilities; entropies in nats.

    With p_s = softmax(z_s) and m = mean_s p_s, each of shape ``(N, *)``:
    """

    prediction: Tensor
    """argmax_c m, the lowest class on ties (int64)."""
    confidence: Tensor
    """m at the prediction."""
    std: Tensor
    """Unbiased standard deviation over the samples of p_s at the prediction; NaN for S = 1."""
    entropy: Tensor
    """H[m], the predictive entropy."""
    expected_entropy: Tensor
    """mean_s H[p_s]."""
    mutual_information: Tensor
    """H[m] - mean_s H[p_s]."""
    mean: Tensor | None = None
    """m, of shape ``(N, C, *)``, if asked for."""


class SegmentationCounts(NamedTuple):
    """Tables of integers that metrics are made of; None where one is not wanted.

    C classes, B bins of confidence. Sums are in units of 2^-24 (6e-8), to which each pixel's value
    is rounded, so that tables of any parts of a dataset add up to those of the whole, bit by bit.
    """

    confusion: Tensor | None = None
    """``(C, C)``, pixels: row = target, column = prediction."""
    uncertainty_sums: Tensor | None = None
    """``(2, C, C)``, by target and prediction: the sum of the uncertainty, and the number of pixels
    where it is not in [0, 256)."""
    calibration: Tensor | None = None
    """``(B + 1, 3)``, per bin of confidence: pixels, correct pixels, the sum of the confidence. The
    last row has the pixels whose confidence is not in [0, 1]."""
    scores: Tensor | None = None
    """``(5,)``: pixels, the sums of the Brier score and of -log p of the target, pixels where that
    p is 0, which the latter leaves out, and pixels without probabilities (NaN), which both do."""
    histogram: Tensor | None = None
    """``(2, 4097)``, wrong and correct pixels by uncertainty. Bins are those of a float32's leading
    bits, 128 an octave from 2^-24 to 256 (0.8% wide); the last column as in `uncertainty_sums`."""


def _describe(value: object) -> str:
    return f"{type(value).__name__}" if not isinstance(value, Tensor) else str(value.dtype)


def _check_logits(name: str, logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_describe(logits)}")
    if logits.dtype not in _LOGITS_DTYPES:
        raise TypeError(
            f"{name}: expected float32, bfloat16, float16 or float64, got {logits.dtype}"
        )


def _check_integer(name: str, value: object) -> int:
    """What stands for an integer, such as NumPy's."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {_describe(value)}") from None


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device} like input, got {tensor.device}")


def _check_upsample(upsample: object, align_corners: object) -> None:
    if upsample is not None and (not isinstance(upsample, str) or upsample not in _UPSAMPLE_DIMS):
        raise ValueError(
            f"upsample: expected None or one of {tuple(_UPSAMPLE_DIMS)}, got {upsample!r}"
        )
    if not isinstance(align_corners, bool):
        raise TypeError(f"align_corners: expected a bool, got {_describe(align_corners)}")
    if align_corners and upsample is None:
        raise ValueError("align_corners: expected False without upsample, got True")


def _check_upsampled_input(input: Tensor, upsample: str) -> None:
    if input.dim() != _UPSAMPLE_DIMS[upsample] or 0 in input.shape[2:]:
        raise ValueError(
            f"input: expected shape (N, C, {_AXES[_UPSAMPLE_DIMS[upsample]]}) with pixels for "
            f"upsample={upsample!r}, got {tuple(input.shape)}"
        )


def _check_size(
    name: str, logits: Tensor, size: Sequence[int] | None, align_corners: object
) -> tuple[int, ...] | None:
    """The spatial sizes of what logits ``(N, C, *)`` are interpolated to; None if that is nothing.

    They may be those of the logits.
    """
    if not isinstance(align_corners, bool):
        raise TypeError(f"align_corners: expected a bool, got {_describe(align_corners)}")
    if size is None:
        if align_corners:
            raise ValueError("align_corners: expected False without size, got True")
        return None
    try:
        given = tuple(size)
    except TypeError:
        raise TypeError(f"size: expected a sequence of integers, got {_describe(size)}") from None
    sizes = tuple(
        n if isinstance(n, int | torch.SymInt) else _check_integer("size", n) for n in given
    )
    if logits.dim() not in _AXES:
        if sizes == tuple(logits.shape[2:]):
            return None
        raise ValueError(
            f"{name}: expected shape (N, C, H, W) or (N, C, D, H, W) to be interpolated to size "
            f"{sizes}, got {tuple(logits.shape)}"
        )
    if len(sizes) != logits.dim() - 2:
        raise ValueError(
            f"size: expected ({_AXES[logits.dim()]}) for {name} of shape {tuple(logits.shape)}, "
            f"got {sizes}"
        )
    empty = any(n < 1 for n in sizes)
    if (empty or 0 in logits.shape[2:]) and sizes != tuple(logits.shape[2:]):
        if empty:
            raise ValueError(f"size: expected at least 1 along each axis, got {sizes}")
        raise ValueError(
            f"{name}: expected pixels to interpolate to size {sizes}, got {tuple(logits.shape)}"
        )
    return sizes


def _check_target(
    input: Tensor,
    target: Tensor,
    upsample: str | None = None,
    *,
    size: tuple[int, ...] | None = None,
    takes_size: bool = False,
) -> None:
    """With `upsample`, which fits the input, targets may be of any size; else `size` or the input
    says which. `takes_size`: whether the caller could have been given one."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor, got {_describe(target)}")
    if upsample is None:
        pixels = _pixel_shape(input, size)
        fits = target.shape == pixels
    else:
        fits = target.dim() == input.dim() - 1 and target.shape[0] == input.shape[0]
        fits = fits and 0 not in target.shape[1:]
    if not fits:
        # Only here: text would fix the sizes of a compiled graph.
        if upsample is None:
            expected = str(tuple(pixels))
        else:
            expected = f"({input.shape[0]}, {_AXES[input.dim()]}) with pixels"
        as_logits = target.dim() == input.dim() and target.shape[:2] == input.shape[:2]
        if as_logits and target.is_floating_point():
            raise ValueError(
                f"target: expected class indices of shape {expected}, got probabilities of "
                f"shape {tuple(target.shape)}; pass target.argmax(1)"
            )
        if target.dim() == input.dim() > 1 and target.shape[1] == 1:
            raise ValueError(
                f"target: expected shape {expected}, got {tuple(target.shape)}; "
                "pass target.squeeze(1)"
            )
        other_size = input.dim() in _AXES and target.dim() == input.dim() - 1
        other_size = other_size and target.shape[0] == input.shape[0]
        if size is not None and other_size:
            raise ValueError(
                f"size: expected the target's {tuple(target.shape[1:])}, got {tuple(size)}"
            )
        advice = ""
        if other_size and 0 not in (*input.shape[2:], *target.shape[1:]):
            mode = "bilinear" if input.dim() == 4 else "trilinear"
            argument = "size=target.shape[1:]" if takes_size else f"upsample={mode!r}"
            advice = f"; pass {argument} to interpolate"
        raise ValueError(
            f"target: expected shape {expected} for input of shape {tuple(input.shape)}, "
            f"got {tuple(target.shape)}{advice}"
        )
    if target.dtype not in _TARGET_DTYPES:
        raise TypeError(f"target: expected int64, int32 or uint8, got {target.dtype}")
    if target.device != input.device:
        _check_device("target", target, input.device)


def _check_weight(input: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight: expected a floating-point tensor, got {_describe(weight)}")
    num_classes = input.shape[1] if input.dim() > 1 else input.shape[0]
    if weight.shape != (num_classes,):
        raise ValueError(
            f"weight: expected shape ({num_classes},), one per class, got {tuple(weight.shape)}"
        )
    _check_device("weight", weight, input.device)
    if weight.requires_grad:
        raise ValueError(
            "weight: expected class weights that need no gradient; pass weight.detach()"
        )
    return weight.to(dtype).contiguous()


def _check_pixel_weight(target: Tensor, pixel_weight: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(pixel_weight, Tensor) or not pixel_weight.is_floating_point():
        raise TypeError(
            f"pixel_weight: expected a floating-point tensor, got {_describe(pixel_weight)}"
        )
    _check_device("pixel_weight", pixel_weight, target.device)
    if pixel_weight.shape != target.shape:
        shape = pixel_weight.shape
        aligned = zip(reversed(shape), reversed(target.shape), strict=False)
        if len(shape) > target.dim() or any(p not in (1, t) for p, t in aligned):
            raise ValueError(
                f"pixel_weight: expected the target's shape {tuple(target.shape)} or one that "
                f"broadcasts to it, got {tuple(shape)}"
            )
        # Converted before it is expanded, so that its gradient is summed before it is rounded.
        pixel_weight = pixel_weight.to(dtype).expand(target.shape)
    return pixel_weight.to(dtype).contiguous()


def _result_dtype(input: Tensor) -> torch.dtype:
    """torch's: that of the input, but float32 under autocast."""
    device = input.device.type
    if input.dtype == torch.float64 or device == "meta":  # which autocast does not know
        return input.dtype
    return torch.float32 if torch.is_autocast_enabled(device) else input.dtype


def _addressable(logits: Tensor) -> Tensor:
    return logits.contiguous() if logits.dim() > _MAX_DIMS else logits


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
) -> Tensor:
    r"""Cross-entropy between logits and class indices, weighted by class and by pixel.

    With p = softmax(z), label y, class weights w, pixel weight u and smoothing e the loss of a
    pixel is torch's, times u:

    .. math:: l = u \left[(1 - e)\, w_y (-\log p_y) + \tfrac{e}{C} \sum_c w_c (-\log p_c)\right]

    With `upsample`, z are the logits interpolated to the target's size, as by
    :func:`torch.nn.functional.interpolate`, but these are never in memory, nor is their gradient.

    Args:
        input: logits, ``(N, C, *)``, ``(N, C)`` or ``(C,)``; float32, bfloat16, float16 or
            float64, of any strides (contiguous and ``channels_last`` are fastest).
        target: class indices, ``(N, *)`` (``()`` for ``(C,)``); int64, int32 or uint8. With
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
    _check_logits("input", input)
    if input.dim() < 1 or (input.dim() > 1 and input.shape[1] == 0) or input.shape == (0,):
        raise ValueError(
            f"input: expected shape (N, C, *) or (C,) with C > 0, got {tuple(input.shape)}"
        )
    _check_upsample(upsample, align_corners)
    if upsample is not None:
        _check_upsampled_input(input, upsample)
    _check_target(input, target, upsample)
    if not isinstance(reduction, str) or reduction not in autograd.REDUCTIONS:
        raise ValueError(
            f"reduction: expected one of {tuple(autograd.REDUCTIONS)}, got {reduction!r}"
        )
    if not isinstance(ignore_index, int | torch.SymInt):
        ignore_index = _check_integer("ignore_index", ignore_index)
    if not isinstance(label_smoothing, int | float):
        raise TypeError(
            f"label_smoothing: expected a number in [0, 1], got {_describe(label_smoothing)}"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    dtype = accumulate_dtype(input.dtype)
    if weight is not None:
        weight = _check_weight(input, weight, dtype)
    if pixel_weight is not None:
        pixel_weight = _check_pixel_weight(target, pixel_weight, dtype)
    result_dtype = _result_dtype(input)

    single = input.dim() == 1
    if single:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
        pixel_weight = None if pixel_weight is None else pixel_weight.unsqueeze(0)
    if is_native(input.device):
        loss = autograd.cross_entropy(
            _addressable(input),
            target.contiguous(),
            weight,
            pixel_weight,
            ignore_index,
            reduction,
            label_smoothing,
            None if upsample is None else align_corners,
        )
    else:
        loss = reference.cross_entropy(
            input,
            target,
            weight,
            pixel_weight=pixel_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            upsample=upsample,
            align_corners=align_corners,
        )
    if single and reduction == "none":
        loss = loss.squeeze(0)
    return loss if loss.dtype == result_dtype else loss.to(result_dtype)


def _check_samples(samples: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(samples, Tensor):
        _check_logits("samples", samples)
        if samples.dim() < 3:
            raise ValueError(f"samples: expected shape (S, N, C, *), got {tuple(samples.shape)}")
        if samples.shape[2] == 0:
            raise ValueError(f"samples: expected C > 0, got shape {tuple(samples.shape)}")
        each = list(samples.unbind(0))
    else:
        each = list(samples)
        for i, sample in enumerate(each):
            name = f"samples[{i}]"
            _check_logits(name, sample)
            if sample.dim() < 2 or sample.shape[1] == 0:
                raise ValueError(
                    f"{name}: expected shape (N, C, *) with C > 0, got {tuple(sample.shape)}"
                )
            if sample.shape != each[0].shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(each[0].shape)} like the first, got "
                    f"{tuple(sample.shape)}"
                )
            if sample.dtype != each[0].dtype:
                raise TypeError(
                    f"{name}: expected {each[0].dtype} like the first, got {sample.dtype}"
                )
            _check_device(name, sample, each[0].device)
    if not each:
        raise ValueError("samples: expected at least one sample, got none")
    return each


@accepts_arrays
@torch.no_grad()
def predictive_statistics(
    samples: Tensor | Sequence[Tensor],
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    return_mean: bool = False,
) -> PredictiveStatistics:
    """Statistics of the class probabilities of S samples, in one pass over the logits.

    The samples are stochastic forward passes (Monte-Carlo dropout) or the members of an
    ensemble. Never differentiable. Maps are float32 (float64 for float64 logits) even for
    half-precision logits: a standard deviation of 1e-3 would lose most of its digits there.

    With `size`, statistics are those of the logits interpolated to it, as by
    :func:`torch.nn.functional.interpolate`, but these are never in memory.

    Args:
        samples: logits, ``(S, N, C, *)`` or a sequence of S tensors ``(N, C, *)``; float32,
            bfloat16, float16 or float64. NaN logits give NaN maps. NumPy and CuPy arrays are
            read in place and give such arrays.
        size: the spatial sizes of the maps, such as ``labels.shape[1:]``, smaller or larger than
            those of the logits: ``(H, W)`` for logits ``(N, C, H, W)`` (bilinear), ``(D, H, W)``
            for ``(N, C, D, H, W)`` (trilinear). Interpolated in float32 (float64), under autocast
            too; a NaN reaches the pixels that it has a share in. None, or the logits' own: no
            interpolation.
        align_corners: whether the centres of the corner pixels, instead of the corners, of logits
            and maps coincide. As for torch, False in most models.
        return_mean: whether to return the mean probabilities, ``(N, C, *)``, too.

    Returns:
        :class:`PredictiveStatistics` of ``(N, *)`` maps.

    Raises:
        ValueError: no sample, or shapes, devices or a size that do not fit.
        TypeError: types that do not fit.
    """
    each = _check_samples(samples)
    sizes = _check_size("samples", each[0], size, align_corners)
    if not is_native(each[0].device):
        maps = reference.predictive_statistics(
            each, size=sizes, align_corners=align_corners, return_mean=return_mean
        )
        return PredictiveStatistics(*maps)
    if any(sample.stride() != each[0].stride() for sample in each):
        each = [sample.contiguous() for sample in each]
    if not isinstance(samples, Tensor) and len(each) > _MAX_SCATTERED and each[0].is_cuda:
        each = list(torch.stack(each).unbind(0))
    *maps, mean = ops.predictive_statistics(
        [_addressable(s) for s in each], sizes or (), align_corners, return_mean
    )
    return PredictiveStatistics._make([*maps, mean if return_mean else None])


@torch.no_grad()
def accumulate_statistics(
    mean: Tensor,
    squared_deviations: Tensor,
    entropy_sum: Tensor,
    logits: Tensor,
    count: int,
    *,
    align_corners: bool = False,
) -> None:
    """Adds one sample's softmax to a running state, in place.

    Logits ``(N, C, H, W)`` or ``(N, C, D, H, W)`` of another size than the state's are interpolated
    to it, as by :func:`predictive_statistics`.

    Args:
        mean: running mean of the probabilities, ``(N, C, *)``, contiguous, float32 (float64 for
            float64 logits).
        squared_deviations: their running sum of squared deviations from the mean, likewise.
        entropy_sum: the sum of the samples' entropies in nats, ``(N, *)``, likewise.
        logits: the sample, ``(N, C, *)``, of any float type and strides.
        count: the number of samples including this one. At 1 the state is overwritten unread.
        align_corners: how logits of another size are interpolated.

    Raises:
        ValueError: shapes, devices or a count that do not fit.
        TypeError: types that do not fit.
    """
    _check_logits("logits", logits)
    if logits.dim() < 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected shape (N, C, *) with C > 0, got {tuple(logits.shape)}")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if not isinstance(align_corners, bool):
        raise TypeError(f"align_corners: expected a bool, got {_describe(align_corners)}")
    shape = logits.shape
    fits = mean.dim() == logits.dim() and mean.shape[:2] == shape[:2]
    if fits and logits.dim() in _AXES and 0 not in (*mean.shape[2:], *shape[2:]):
        shape = mean.shape
    _check_state(
        logits.device,
        accumulate_dtype(logits.dtype),
        mean=(mean, shape),
        squared_deviations=(squared_deviations, shape),
        entropy_sum=(entropy_sum, shape[:1] + shape[2:]),
    )
    accumulate = (
        ops.accumulate_statistics_ if is_native(logits.device) else reference.accumulate_statistics
    )
    accumulate(mean, squared_deviations, entropy_sum, _addressable(logits), count, align_corners)


@torch.no_grad()
def finalize_statistics(
    mean: Tensor,
    squared_deviations: Tensor,
    entropy_sum: Tensor,
    count: int,
    *,
    return_mean: bool = False,
) -> PredictiveStatistics:
    """The statistics of a state that :func:`accumulate_statistics` has filled.

    Args:
        mean, squared_deviations, entropy_sum: the state.
        count: the number of samples in it.
        return_mean: whether to return a copy of the mean probabilities too.

    Returns:
        :class:`PredictiveStatistics` of ``(N, *)`` maps.

    Raises:
        ValueError: shapes, devices or a count that do not fit.
        TypeError: types that do not fit.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if mean.dim() < 2 or mean.shape[1] == 0:
        raise ValueError(f"mean: expected shape (N, C, *) with C > 0, got {tuple(mean.shape)}")
    pixels = mean.shape[:1] + mean.shape[2:]
    _check_state(
        mean.device,
        accumulate_dtype(mean.dtype),
        mean=(mean, mean.shape),
        squared_deviations=(squared_deviations, mean.shape),
        entropy_sum=(entropy_sum, pixels),
    )
    run = ops if is_native(mean.device) else reference
    maps = run.finalize_statistics(mean, squared_deviations, entropy_sum, count)
    return PredictiveStatistics._make([*maps, mean.clone() if return_mean else None])


def empty_counts(
    num_classes: int,
    *,
    num_bins: int = 15,
    tables: Sequence[str] = SegmentationCounts._fields,
    device: torch.device | str | None = None,
) -> SegmentationCounts:
    """Tables of zeros for :func:`accumulate_counts`.

    Args:
        num_classes: C.
        num_bins: bins of confidence.
        tables: the names of those that are wanted.
        device: where they live.

    Raises:
        ValueError: on a number that is not positive or a table that does not exist.
    """
    num_classes = _check_positive("num_classes", num_classes)
    num_bins = _check_positive("num_bins", num_bins)
    shapes = {
        "confusion": (num_classes, num_classes),
        "uncertainty_sums": (2, num_classes, num_classes),
        "calibration": (num_bins + 1, 3),
        "scores": (5,),
        "histogram": (2, reference.UNCERTAINTY_BINS + 1),
    }
    for name in tables:
        if name not in shapes:
            raise ValueError(f"tables: expected some of {tuple(shapes)}, got {name!r}")
    return SegmentationCounts(
        **{name: torch.zeros(shapes[name], dtype=torch.int64, device=device) for name in tables}
    )


@torch.no_grad()
def accumulate_counts(
    counts: SegmentationCounts,
    input: Tensor | PredictiveStatistics,
    target: Tensor,
    uncertainty: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    from_probabilities: bool = False,
    num_classes: int | None = None,
    ignore_index: int = -100,
    return_outcome: bool = False,
) -> Tensor | None:
    """Adds every pixel of a batch to tables, in place and in one pass.

    Everything is counted as integers, so results depend neither on threads nor on how a dataset is
    cut into batches. Rules: the prediction is the lowest class of the largest value, a NaN is never
    chosen; the confidence, rounded to 2^-24, falls into the bin (a, b] that holds it; what is not
    finite is counted apart, see :class:`SegmentationCounts`.

    With `size`, logits or probabilities are interpolated to the target's size on the way, as by
    :func:`predictive_statistics`, and are never in memory at that size.

    Args:
        counts: from :func:`empty_counts`, on the input's device.
        input: logits ``(N, C, *)`` of any float type and strides; or class probabilities; or
            :class:`PredictiveStatistics`, whose prediction and confidence are counted and whose
            mean, if `scores` are wanted, has to be there.
        target: class indices ``(N, *)``; int64, int32 or uint8.
        uncertainty: ``(N, *)``, any float type, needed for `uncertainty_sums` and `histogram`; read
            in the type that the input is computed in. Values are expected in [0, 256).
        size: the target's spatial sizes, ``target.shape[1:]``, where the input tensor, ``(N, C, H,
            W)`` or ``(N, C, D, H, W)``, may have others. None: it has the same.
        align_corners: how it is interpolated, as for :func:`predictive_statistics`.
        from_probabilities: whether the input tensor holds probabilities instead of logits.
        num_classes: C, where neither the input nor the tables tell it.
        ignore_index: pixels with this target are in no count, whatever the input holds there.
        return_outcome: whether to return what became of each pixel.

    Returns:
        None, or the uint8 map ``(N, *)``: 0 wrong, 1 correct, 2 ignored.

    Raises:
        ValueError: shapes or devices that do not fit, or something that is missing.
        TypeError: types that do not fit.
        IndexError: a target outside [0, C) that is not `ignore_index`, or a prediction outside of
            [0, C); no table has changed. On CUDA by the next call of any operation (see
            :func:`segunc_ops.check`), that pixel being in no count.
    """
    ignore_index = _check_integer("ignore_index", ignore_index)
    values: Tensor | None = None
    statistics: PredictiveStatistics | None = None
    sizes: tuple[int, ...] | None = None
    if not isinstance(input, PredictiveStatistics):
        values = input
        _check_class_scores("input", values)
        sizes = _check_size("input", values, size, align_corners)
    elif size is not None or align_corners:
        raise ValueError(
            "size: expected none for PredictiveStatistics, whose maps are interpolated already, "
            f"got {size} with align_corners={align_corners}"
        )
    elif counts.scores is None:
        statistics = input
    else:
        if input.mean is None:
            raise ValueError(
                "input: expected statistics with their mean for the scores, got none; pass "
                "return_mean=True where they are made"
            )
        values, from_probabilities = input.mean, True
        _check_class_scores("input.mean", values)
    if values is not None:
        dtype = accumulate_dtype(values.dtype)
        pixels, device, classes = _pixel_shape(values, sizes), values.device, values.shape[1]
        _check_target(values, target, size=sizes, takes_size=True)
    else:
        assert statistics is not None
        pixels, device = statistics.prediction.shape, statistics.prediction.device
        dtype = accumulate_dtype(statistics.confidence.dtype)
        _check_map_target(statistics, target)
        classes = _num_classes(counts, statistics, num_classes)
    if num_classes is not None and classes != num_classes:
        raise ValueError(f"input: expected {num_classes} classes, got {classes}")
    _check_counts(counts, classes, device)
    if uncertainty is not None:
        uncertainty = _check_uncertainty(uncertainty, pixels, device).to(dtype).contiguous()
    elif counts.uncertainty_sums is not None or counts.histogram is not None:
        raise ValueError("uncertainty: expected a map for these tables, got none")
    outcome = torch.empty(pixels, dtype=torch.uint8, device=device) if return_outcome else None

    native = is_native(device)
    target = target.contiguous()
    if values is not None:
        count = ops.accumulate_counts_ if native else reference.accumulate_counts
        count(
            _addressable(values),
            target,
            uncertainty,
            ignore_index,
            from_probabilities,
            align_corners,
            counts.confusion,
            counts.uncertainty_sums,
            counts.calibration,
            counts.scores,
            counts.histogram,
            outcome,
        )
    else:
        assert statistics is not None
        confidence = None if counts.calibration is None else statistics.confidence
        count = ops.accumulate_map_counts_ if native else reference.accumulate_map_counts
        count(
            statistics.prediction.contiguous(),
            None if confidence is None else confidence.to(dtype).contiguous(),
            target,
            uncertainty,
            classes,
            ignore_index,
            counts.confusion,
            counts.uncertainty_sums,
            counts.calibration,
            counts.histogram,
            outcome,
        )
    return outcome


@torch.no_grad()
def accumulate_patch_counts(
    counts: Tensor,
    outcome: Tensor,
    uncertainty: Tensor,
    thresholds: Tensor,
    *,
    window: int = 4,
    accuracy_threshold: float = 0.5,
) -> None:
    """Adds patches of pixels, accurate or not and certain or not, to their counts, in place.

    Patches of `window` x `window` pixels of the last two axes lie side by side; what is left of an
    image at its right and lower border is dropped, and so are patches without valid pixels. A patch
    is accurate if its share of correct pixels is above `accuracy_threshold`, and uncertain if its
    mean uncertainty is above the threshold; both strictly, over its valid pixels.

    Args:
        counts: int64 ``(K, 5)``, contiguous: per threshold the patches that are accurate and
            certain, accurate and uncertain, inaccurate and certain, inaccurate and uncertain; and
            those with an uncertainty that is not in [0, 256).
        outcome: uint8 ``(N, *, H, W)`` as :func:`accumulate_counts` returns it.
        uncertainty: of the same shape, any float type.
        thresholds: of the mean uncertainty, float64 ``(K,)`` with K <= 1024, on the same device.
        window: a patch's edge in pixels.
        accuracy_threshold: in [0, 1].

    Raises:
        ValueError: shapes, devices or numbers that do not fit.
        TypeError: types that do not fit.
    """
    if not isinstance(outcome, Tensor) or outcome.dtype != torch.uint8:
        raise TypeError(f"outcome: expected a uint8 tensor, got {_describe(outcome)}")
    if outcome.dim() < 3:
        raise ValueError(f"outcome: expected shape (N, *, H, W), got {tuple(outcome.shape)}")
    window = _check_positive("window", window)
    if not 0.0 <= accuracy_threshold <= 1.0:
        raise ValueError(
            f"accuracy_threshold: expected a number in [0, 1], got {accuracy_threshold}"
        )
    device = outcome.device
    uncertainty = _check_uncertainty(uncertainty, outcome.shape, device)
    _check_state(device, torch.float64, thresholds=(thresholds, thresholds.shape[:1]))
    if len(thresholds) > _MAX_THRESHOLDS:
        raise ValueError(f"thresholds: expected at most {_MAX_THRESHOLDS}, got {len(thresholds)}")
    _check_state(device, torch.int64, counts=(counts, torch.Size((len(thresholds), 5))))
    native = is_native(device)
    count = ops.accumulate_patch_counts_ if native else reference.accumulate_patch_counts
    count(
        outcome.contiguous(),
        uncertainty.to(accumulate_dtype(uncertainty.dtype)).contiguous(),
        thresholds,
        window,
        float(accuracy_threshold),
        counts,
    )


def _pixel_shape(input: Tensor, size: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape ``(N, *)`` of the targets of an input ``(N, C, *)``, or ``()`` of one ``(C,)``."""
    if input.dim() < 2:
        return input.shape[:0]
    return input.shape[:1] + (input.shape[2:] if size is None else size)


def _check_positive(name: str, value: object) -> int:
    number = _check_integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def _check_class_scores(name: str, values: Tensor) -> None:
    _check_logits(name, values)
    if values.dim() < 2 or values.shape[1] == 0:
        raise ValueError(f"{name}: expected shape (N, C, *) with C > 0, got {tuple(values.shape)}")


def _check_map_target(statistics: PredictiveStatistics, target: Tensor) -> None:
    prediction, confidence = statistics.prediction, statistics.confidence
    if prediction.dtype not in _TARGET_DTYPES:
        raise TypeError(f"input.prediction: expected int64, int32 or uint8, got {prediction.dtype}")
    _check_logits("input.confidence", confidence)
    for name, values in (("input.confidence", confidence), ("target", target)):
        if not isinstance(values, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {_describe(values)}")
        if values.shape != prediction.shape:
            raise ValueError(
                f"{name}: expected shape {tuple(prediction.shape)} like input.prediction, got "
                f"{tuple(values.shape)}"
            )
        _check_device(name, values, prediction.device)
    if target.dtype not in _TARGET_DTYPES:
        raise TypeError(f"target: expected int64, int32 or uint8, got {target.dtype}")


def _num_classes(
    counts: SegmentationCounts, statistics: PredictiveStatistics, given: int | None
) -> int:
    if statistics.mean is not None:
        return statistics.mean.shape[1]
    if counts.confusion is not None:
        return counts.confusion.shape[0]
    if counts.uncertainty_sums is not None:
        return counts.uncertainty_sums.shape[1]
    if given is None:
        raise ValueError("num_classes: expected a number for statistics without mean, got none")
    return given


def _check_counts(counts: SegmentationCounts, classes: int, device: torch.device) -> None:
    wanted = {
        "confusion": (classes, classes),
        "uncertainty_sums": (2, classes, classes),
        "scores": (5,),
        "histogram": (2, reference.UNCERTAINTY_BINS + 1),
    }
    for name, table in counts._asdict().items():
        if table is None:
            continue
        shape = torch.Size(wanted[name]) if name in wanted else table.shape
        if name == "calibration" and (table.dim() != 2 or table.shape[1] != 3 or len(table) < 2):
            raise ValueError(f"calibration: expected shape (B + 1, 3), got {tuple(table.shape)}")
        _check_state(device, torch.int64, **{name: (table, shape)})


def _check_uncertainty(
    uncertainty: Tensor, pixels: tuple[int, ...], device: torch.device
) -> Tensor:
    if not isinstance(uncertainty, Tensor) or not uncertainty.is_floating_point():
        raise TypeError(
            f"uncertainty: expected a floating-point tensor, got {_describe(uncertainty)}"
        )
    if uncertainty.shape != pixels:
        raise ValueError(
            f"uncertainty: expected shape {tuple(pixels)}, got {tuple(uncertainty.shape)}"
        )
    _check_device("uncertainty", uncertainty, device)
    return uncertainty


def _check_state(
    device: torch.device, dtype: torch.dtype, **state: tuple[Tensor, torch.Size]
) -> None:
    for name, (tensor, shape) in state.items():
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name}: expected a contiguous tensor of shape {tuple(shape)}, got shape "
                f"{tuple(tensor.shape)} with strides {tensor.stride()}"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
        _check_device(name, tensor, device)


_FULL_CONNECTIVITY = {3: 8, 4: 26}
_CONNECTIVITIES = {3: (4, 8), 4: (6, 26)}
_SIGNED = {
    torch.bool: torch.int8,
    torch.uint8: torch.uint8,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}
_MAX_COMPONENT_PIXELS = 2**31 - 1


def _check_labels(
    labels: Tensor, connectivity: int | None, ignore_index: int | None
) -> tuple[Tensor, int, int | None]:
    """Labels in a type that every device compares, the connectivity, the ignored value in it."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: expected a tensor, got {_describe(labels)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels: expected class indices of an integer type, got {labels.dtype}")
    if labels.dim() not in _CONNECTIVITIES:
        raise ValueError(
            f"labels: expected shape (N, H, W) or (N, D, H, W), got {tuple(labels.shape)}"
        )
    allowed = _CONNECTIVITIES[labels.dim()]
    if connectivity is None:
        connectivity = _FULL_CONNECTIVITY[labels.dim()]
    elif _check_integer("connectivity", connectivity) not in allowed:
        raise ValueError(
            f"connectivity: expected {allowed[0]} or {allowed[1]} for labels of shape "
            f"{tuple(labels.shape)}, or None, got {connectivity}"
        )
    pixels = math.prod(labels.shape[1:])
    if pixels > _MAX_COMPONENT_PIXELS:
        raise ValueError(
            f"labels: expected images of at most {_MAX_COMPONENT_PIXELS} pixels, got {pixels}"
        )
    if ignore_index is not None:
        ignore_index = _check_integer("ignore_index", ignore_index)
    dtype = _SIGNED.get(labels.dtype, labels.dtype)
    bounds = torch.iinfo(torch.uint8 if labels.dtype == torch.bool else labels.dtype)
    if ignore_index is not None and not bounds.min <= ignore_index <= bounds.max:
        ignore_index = None  # no label of this type equals it
    if dtype != labels.dtype:
        if ignore_index is not None and ignore_index > torch.iinfo(dtype).max:
            ignore_index -= 2 ** (8 * labels.element_size())
        labels = labels.view(dtype)
    return labels.contiguous(), connectivity, ignore_index


@accepts_arrays
@torch.no_grad()
def connected_components(
    labels: Tensor, *, connectivity: int | None = None, ignore_index: int | None = None
) -> tuple[Tensor, Tensor]:
    """Connected components of label maps with any number of classes, class 0 included.

    A component is a maximal connected set of pixels of one class. Never differentiable.

    Args:
        labels: ``(N, H, W)``, or ``(N, D, H, W)`` for volumes; any integer type or bool. NumPy
            and CuPy arrays are read in place and give such arrays.
        connectivity: 4 or 8 neighbours, in volumes 6 or 26; None is the larger.
        ignore_index: pixels with this label belong to no component; None ignores none.

    Returns:
        components: int32, of the shape of `labels`; 0 where ignored, else 1 to K in the raster
        order of each component's first pixel, for every image anew.
        counts: int64, ``(N,)``; the K of each image.

    Raises:
        ValueError: a shape or connectivity that does not fit; 2^31 or more pixels an image.
        TypeError: labels that are no integers.
    """
    labels, connectivity, ignore_index = _check_labels(labels, connectivity, ignore_index)
    run = ops if is_native(labels.device) else reference
    components, counts = run.connected_components(labels, connectivity, ignore_index)
    return components, counts


@accepts_arrays
def component_mean(
    values: Tensor,
    labels: Tensor,
    *,
    connectivity: int | None = None,
    ignore_index: int | None = None,
    bound: float | None = None,
) -> Tensor:
    r"""The mean of a map over each pixel's connected component of a label map.

    Of an ensemble's entropy this is the instance-wise uncertainty of Almeida et al.: with
    C(p) the component (see :func:`connected_components`) of pixel p,

    .. math:: m_p = \frac{1}{|C(p)|} \sum_{q \in C(p)} v_q

    It is self-adjoint: the gradient is the component mean of the upstream gradient. On a CPU sums
    are in float64. On CUDA they are in 64-bit fixed point, and a mean is exact to 2^-60 times the
    number of pixels of an image times `bound`, or the largest magnitude of the image's values.

    Args:
        values: v, ``(N, H, W)`` or ``(N, D, H, W)``; float32, bfloat16, float16 or float64. A
            component with a NaN or an infinity has mean NaN. NumPy and CuPy arrays are read in
            place and give such arrays.
        labels: of the same shape; any integer type or bool.
        connectivity: 4 or 8 neighbours, in volumes 6 or 26; None is the larger.
        ignore_index: pixels with this label are not read, have mean 0 and gradient 0; None
            ignores none.
        bound: a number that no magnitude in `values` exceeds, such as ln C for an entropy of C
            classes. It saves CUDA a pass over the values; there the mean of a component with a
            value of more than four times the bound is NaN.

    Returns:
        m, of the shape and type of `values`.

    Raises:
        ValueError: shapes, devices, connectivity or bound that do not fit; 2^31 or more pixels an
            image.
        TypeError: types that do not fit.
    """
    _check_logits("values", values)
    labels, connectivity, ignore_index = _check_labels(labels, connectivity, ignore_index)
    if values.shape != labels.shape:
        raise ValueError(
            f"values: expected the shape {tuple(labels.shape)} of labels, got {tuple(values.shape)}"
        )
    if values.device != labels.device:
        raise ValueError(
            f"values: expected device {labels.device} like labels, got {values.device}"
        )
    if bound is not None:
        if not isinstance(bound, int | float):
            raise TypeError(f"bound: expected a number, got {_describe(bound)}")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound: expected a finite number above 0, got {bound}")
        bound = float(bound)
    if is_native(values.device):
        return autograd.component_mean(
            values.contiguous(), labels, connectivity, ignore_index, bound
        )
    return reference.component_mean(values, labels, connectivity, ignore_index)
