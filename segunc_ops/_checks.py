"""Checks of arguments: which are valid, and the errors that say what was expected and what came.

Checks that one family alone makes stand beside its functions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ._dtypes import LOGITS_DTYPES, TARGET_DTYPES

AXES = {4: "H, W", 5: "D, H, W"}
"""What the spatial axes of logits are called that can be interpolated, by their number of axes."""
# How many axes logits have that a mode interpolates.
_UPSAMPLE_DIMS = {"bilinear": 4, "trilinear": 5}


def describe(value: object) -> str:
    """What a value is, for messages."""
    return f"{type(value).__name__}" if not isinstance(value, Tensor) else str(value.dtype)


def check_integer(name: str, value: object) -> int:
    """What stands for an integer, such as NumPy's."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got bool")
    if isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {describe(value)}") from None


def check_int64(name: str, value: object) -> int:
    """An integer that an operator takes."""
    number = check_integer(name, value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {number}")
    return number


def check_positive(name: str, value: object) -> int:
    """An integer of at least 1."""
    number = check_integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    if isinstance(number, int):  # else it is traced, and not to be compared more than it has to be
        check_int64(name, number)
    return number


def check_share(name: str, value: object) -> float:
    """A number in [0, 1]."""
    if not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number in [0, 1], got {describe(value)}")
    number = float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return number


def check_number(
    name: str, value: object, *, at_least: float | None = None, above: float | None = None
) -> float:
    """A finite number in a range."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    number = float(value)
    fits = -math.inf < number < math.inf  # a comparison, which torch.compile traces
    fits = fits and (at_least is None or number >= at_least) and (above is None or number > above)
    if not fits:
        bound = "" if at_least is None else f" of at least {at_least:g}"
        bound = bound if above is None else f" above {above:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value}")
    return number


def check_bool(name: str, value: object) -> None:
    """Raises unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {describe(value)}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises unless it is one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raises unless a tensor lies with the input."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device} like input, got {tensor.device}")


def check_image_flags(name: str, flags: object, images: Tensor) -> None:
    """Raises unless it has a bool for each image."""
    if not isinstance(flags, Tensor) or flags.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool tensor, got {describe(flags)}")
    if flags.shape != images.shape[:1]:
        raise ValueError(
            f"{name}: expected shape {tuple(images.shape[:1])}, one per image, got "
            f"{tuple(flags.shape)}"
        )
    check_device(name, flags, images.device)


def check_tensor(name: str, value: object) -> None:
    """Raises unless it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {describe(value)}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")


def check_floating(name: str, value: object) -> None:
    """Raises unless it is a tensor of floats."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(value)}")
    check_tensor(name, value)


def check_logits(name: str, logits: Tensor) -> None:
    """Raises unless it is a tensor of a type that is computed with."""
    check_tensor(name, logits)
    if logits.dtype not in LOGITS_DTYPES:
        raise TypeError(
            f"{name}: expected float32, bfloat16, float16 or float64, got {logits.dtype}"
        )


def left_empty(logits: Tensor) -> str:
    """What a message adds of logits whose memory an earlier loss may have."""
    return ", as overwrite_input leaves logits" if logits.shape == (0,) else ""


def check_class_scores(name: str, values: Tensor) -> None:
    """Raises unless it has a number for each class and pixel."""
    check_logits(name, values)
    if values.dim() < 2 or values.shape[1] == 0:
        raise ValueError(
            f"{name}: expected shape (N, C, *) with C > 0, got {tuple(values.shape)}"
            f"{left_empty(values)}"
        )


def check_upsample(upsample: object, align_corners: object) -> None:
    """Raises unless they name an interpolation, or none."""
    if upsample is not None and (not isinstance(upsample, str) or upsample not in _UPSAMPLE_DIMS):
        raise ValueError(
            f"upsample: expected None or one of {tuple(_UPSAMPLE_DIMS)}, got {upsample!r}"
        )
    check_bool("align_corners", align_corners)
    if align_corners and upsample is None:
        raise ValueError("align_corners: expected False without upsample, got True")


def check_upsampled_input(input: Tensor, upsample: str, name: str = "input") -> None:
    """Raises unless logits can be interpolated in that way."""
    if input.dim() != _UPSAMPLE_DIMS[upsample] or 0 in input.shape[2:]:
        raise ValueError(
            f"{name}: expected shape (N, C, {AXES[_UPSAMPLE_DIMS[upsample]]}) with pixels for "
            f"upsample={upsample!r}, got {tuple(input.shape)}"
        )


def check_size(
    name: str, logits: Tensor, size: Sequence[int] | None, align_corners: object
) -> tuple[int, ...] | None:
    """The spatial sizes of what logits ``(N, C, *)`` are interpolated to; None if that is nothing.

    They may be those of the logits.
    """
    check_bool("align_corners", align_corners)
    if size is None:
        if align_corners:
            raise ValueError("align_corners: expected False without size, got True")
        return None
    try:
        given = tuple(size)
    except TypeError:
        raise TypeError(f"size: expected a sequence of integers, got {describe(size)}") from None
    sizes = tuple(check_integer("size", n) for n in given)
    if logits.dim() not in AXES:
        if sizes == tuple(logits.shape[2:]):
            return None
        raise ValueError(
            f"{name}: expected shape (N, C, H, W) or (N, C, D, H, W) to be interpolated to size "
            f"{sizes}, got {tuple(logits.shape)}"
        )
    if len(sizes) != logits.dim() - 2:
        raise ValueError(
            f"size: expected ({AXES[logits.dim()]}) for {name} of shape {tuple(logits.shape)}, "
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


def pixel_shape(input: Tensor, size: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape ``(N, *)`` of the targets of an input ``(N, C, *)``, or ``()`` of one ``(C,)``."""
    shape = tuple(input.shape)  # whose slices cost less than those of a torch.Size
    return shape[: len(shape) > 1] + (shape[2:] if size is None else size)


def check_target(
    input: Tensor,
    target: Tensor,
    upsample: str | None = None,
    *,
    size: tuple[int, ...] | None = None,
    takes_size: bool = False,
    of_probabilities: bool = False,
) -> None:
    """Raises unless it has a class index for each pixel.

    With `upsample`, which fits the input, targets may be of any size; else `size` or the input
    says which. `takes_size`: whether the caller could have been given one. `of_probabilities`:
    whether the input holds these instead of logits.
    """
    check_tensor("target", target)
    if upsample is None:
        pixels = pixel_shape(input, size)
        fits = target.shape == pixels
    else:
        fits = target.dim() == input.dim() - 1 and target.shape[0] == input.shape[0]
        fits = fits and 0 not in target.shape[1:]
    if not fits:
        # Only here: text would fix the sizes of a compiled graph.
        if upsample is None:
            expected = str(pixels)
        else:
            expected = f"({input.shape[0]}, {AXES[input.dim()]}) with pixels"
        if input.dim() == target.dim() > 1 and input.shape[1] == target.shape[1] == 1:
            raise ValueError(_binary(target, _as_targets("target"), of_probabilities))
        raise ValueError(_misfit(input, target, expected, upsample, size, takes_size))
    if target.dtype not in TARGET_DTYPES:
        masks = target.is_floating_point() or target.dtype == torch.bool
        if masks and input.dim() > 1 and input.shape[1] == 1:
            indices = _as_targets("target", target)
            raise TypeError(_binary(target, indices, of_probabilities))
        check_target_dtype("target", target)
    check_device("target", target, input.device)


def _two_classes(of_probabilities: bool) -> str:
    """How an input of one channel becomes one of two classes."""
    other = "1 - input" if of_probabilities else "torch.zeros_like(input)"
    return f"for a binary mask pass torch.cat([{other}, input], 1)"


def _binary(target: Tensor, indices: str, of_probabilities: bool) -> str:
    """What to say of an input of one channel with a target that is a mask."""
    return (
        f"target: expected class indices, got {target.dtype} of shape {tuple(target.shape)} for an "
        "input of one channel, which is one class, always right; "
        f"{_two_classes(of_probabilities)} and {indices}"
    )


def one_channel_error(
    error: IndexError, input: Tensor, *, of_probabilities: bool = False
) -> IndexError:
    """The error of a target that is no class, with what to do if the input has one channel."""
    text = str(error)
    value = text.rpartition(" ")[2]
    if input.shape[1] != 1 or not text.startswith("target: ") or not value.isdigit():
        return error
    classes = "target" if value == "1" else "(target > 0).long()"
    return IndexError(
        f"{text} for an input of one channel, which is one class, always right; "
        f"{_two_classes(of_probabilities)} and {classes}"
    )


def _misfit(
    input: Tensor,
    target: Tensor,
    expected: str,
    upsample: str | None,
    size: tuple[int, ...] | None,
    takes_size: bool,
) -> str:
    """What to say of a target that does not have the shape that is expected."""
    shape = tuple(target.shape)
    as_logits = target.dim() == input.dim() and target.shape[:2] == input.shape[:2]
    with_channel = target.dim() == input.dim() > 1 and target.shape[1] == 1
    if as_logits and target.is_floating_point():
        return (
            f"target: expected class indices of shape {expected}, got probabilities of "
            f"shape {shape}; pass target.argmax(1)"
            + (", or input.unsqueeze(1) if that is a binary head" if input.dim() == 3 else "")
        )
    is_read = target.dtype in TARGET_DTYPES
    if as_logits:
        integers = "" if is_read else ".long()"
        return (
            f"target: expected shape {expected} for input of shape {tuple(input.shape)}, "
            f"got {shape}; if it is one-hot, pass target{integers}.argmax(1)"
            + (", or input.unsqueeze(1) if that is a binary head" if input.dim() == 3 else "")
        )
    if with_channel:
        return f"target: expected shape {expected}, got {shape}; pass {_as_targets('target')}"
    other_size = input.dim() in AXES and target.dim() == input.dim() - 1
    other_size = other_size and target.shape[0] == input.shape[0]
    if other_size and shape == tuple(input.shape[:-1]):
        return (
            f"target: expected shape {expected} for input of shape {tuple(input.shape)}, got "
            f"{shape}; if input's last axis holds the classes, pass input.movedim(-1, 1)"
        )
    if size is not None and other_size:
        return f"size: expected the target's {tuple(target.shape[1:])}, got {tuple(size)}"
    advice = ""
    if other_size and 0 not in (*input.shape[2:], *target.shape[1:]):
        mode = "bilinear" if input.dim() == 4 else "trilinear"
        argument = "size=target.shape[1:]" if takes_size else f"upsample={mode!r}"
        advice = f"; pass {argument} to interpolate"
    elif input.dim() > 1 and shape == (*pixel_shape(input, size), 1):
        squeezed = "target.squeeze(-1)"
        advice = f"; pass {squeezed if is_read else _as_targets(squeezed)}"
    return (
        f"target: expected shape {expected} for input of shape {tuple(input.shape)}, "
        f"got {shape}{advice}"
    )


def check_target_dtype(name: str, target: Tensor) -> None:
    """Raises unless class indices are of a type that is read as it is."""
    if target.dtype not in TARGET_DTYPES:
        advice = "" if target.is_complex() else f"; pass {_as_targets(name, target)}"
        raise TypeError(
            f"{name}: expected int64, int32, int16 or uint8, got {target.dtype}{advice}"
        )


def _as_targets(name: str, fitting: Tensor | None = None) -> str:
    """What makes class indices of it that are read, and of their shape if it is `fitting`."""
    squeezes = fitting is None or fitting.dim() < 2 or fitting.shape[1] != 1
    return f"segunc_ops.as_targets({name}{'' if squeezes else ', squeeze=False'})"


def check_weight(input: Tensor, weight: Tensor, dtype: torch.dtype, name: str = "weight") -> Tensor:
    """Class weights ``(C,)`` as kernels read them: in the type that is computed in."""
    check_floating(name, weight)
    num_classes = input.shape[1] if input.dim() > 1 else input.shape[0]
    if weight.shape != (num_classes,):
        raise ValueError(
            f"{name}: expected shape ({num_classes},), one per class, got {tuple(weight.shape)}"
        )
    check_device(name, weight, input.device)
    if weight.requires_grad:
        raise ValueError(
            f"{name}: expected class weights that need no gradient; pass {name}.detach()"
        )
    return weight.to(dtype).contiguous()


def check_pixel_weight(
    target: Tensor, pixel_weight: Tensor, dtype: torch.dtype, shape_of: str = "the target's shape"
) -> Tensor:
    """Pixel weights as kernels read them: of the target's shape, in the type computed in."""
    check_floating("pixel_weight", pixel_weight)
    check_device("pixel_weight", pixel_weight, target.device)
    if pixel_weight.shape != target.shape:
        shape = pixel_weight.shape
        aligned = zip(reversed(shape), reversed(target.shape), strict=False)
        if len(shape) > target.dim() or any(p not in (1, t) for p, t in aligned):
            raise ValueError(
                f"pixel_weight: expected {shape_of} {tuple(target.shape)} or one that broadcasts "
                f"to it, got {tuple(shape)}"
            )
        # Converted before it is expanded, so that its gradient is summed before it is rounded.
        pixel_weight = pixel_weight.to(dtype).expand(target.shape)
    return pixel_weight.to(dtype).contiguous()


def check_state(
    device: torch.device, dtype: torch.dtype, **state: tuple[Tensor, tuple[int, ...]]
) -> None:
    """Raises unless what is updated in place has that type, those shapes and no gaps."""
    for name, (tensor, shape) in state.items():
        check_tensor(name, tensor)
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name}: expected a contiguous tensor of shape {tuple(shape)}, got shape "
                f"{tuple(tensor.shape)} with strides {tensor.stride()}"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
        check_device(name, tensor, device)
