"""Targets as trainers have them, to class indices as kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_bool, check_tensor
from .._dtypes import LOGITS_DTYPES, TARGET_DTYPES

__all__ = ["as_targets"]

# Of the same size, for a view. An index beyond int64's is no class in either type.
_VIEWED = {torch.bool: torch.uint8, torch.uint64: torch.int64}
# The narrowest type that is read as it is and holds every index of another.
_WIDER = {
    torch.int8: torch.int16,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
}
_TAKEN = {*TARGET_DTYPES, *LOGITS_DTYPES, *_VIEWED, *_WIDER}
_NARROWEST_FIRST = (torch.uint8, torch.int16, torch.int32, torch.int64)


def as_targets(target: Tensor, *, squeeze: bool = True) -> Tensor:
    """Class indices ``(N, *)`` as every loss, statistic and metric reads them.

    nnU-Net's targets are int16 ``(N, 1, *)``, MONAI's float32 ``(N, 1, *)`` and of a subclass of
    Tensor, masks may be bool. What is int64, int32, int16, uint8, bool or uint64 is not copied: the
    result is a view. Other integers are converted to the narrowest type that is read as it is and
    holds them all, float indices to the narrowest that holds those there are.

    Subclasses of Tensor stay what they are.

    Args:
        target: class indices, ``(N, *)`` or ``(N, 1, *)``; any integer type, bool, float32,
            float64, bfloat16 or float16. Float ones are looked at: on CUDA that waits for the
            device, and ``torch.compile`` goes on in a new graph behind it.
        squeeze: whether an axis 1 of size 1 is that of channels, which is removed. Pass False for
            maps of one row ``(N, 1, W)``, or volumes of one slice ``(N, 1, H, W)``, without it.

    Returns:
        ``(N, *)``; int64, int32, int16 or uint8.

    Raises:
        ValueError: on float targets with a number that is no index, such as 0.5 or NaN, or of
            2^63 or more; on a target that requires a gradient.
        TypeError: on what is no tensor, or of another type.
    """
    check_tensor("target", target)
    check_bool("squeeze", squeeze)
    if target.dtype not in _TAKEN:
        raise TypeError(f"target: expected class indices, got {target.dtype}")
    if target.requires_grad:
        raise ValueError(
            "target: expected class indices, which have no gradient; pass target.detach()"
        )
    if squeeze and target.dim() > 1 and target.shape[1] == 1:
        target = target.squeeze(1)
    if target.dtype in TARGET_DTYPES:
        return target
    if target.is_floating_point():
        return _indices_of(target)
    if target.dtype in _VIEWED:
        return target.view(_VIEWED[target.dtype])
    return target.to(_WIDER[target.dtype])


def _indices_of(target: Tensor) -> Tensor:
    """Of whole numbers of a float type."""
    if target.device.type == "meta":
        raise ValueError("target: expected class indices with values, got a meta tensor")
    if target.numel() == 0:
        return target.to(_NARROWEST_FIRST[0])
    fractional = target != target.trunc()  # NaN too
    # One transfer from the device for all that is asked.
    lowest, highest, found = torch.stack(
        [value.double() for value in (*target.aminmax(), fractional.any())]
    ).tolist()
    if found:
        raise ValueError(
            f"target: expected class indices, got {float(target[fractional][0]):g} of "
            f"{target.dtype}; of class probabilities (N, C, *) pass target.argmax(1)"
        )
    for dtype in _NARROWEST_FIRST:
        bounds = torch.iinfo(dtype)
        if bounds.min <= lowest and highest < bounds.max + 1:
            return target.to(dtype)
    value = highest if highest >= -lowest else lowest
    raise ValueError(f"target: expected class indices below 2^63, got {value:g} of {target.dtype}")
