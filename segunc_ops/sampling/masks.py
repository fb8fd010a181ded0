"""Dropout by random numbers of few bits, which a CPU draws in a fraction of the time."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .._hooks import ReplacedMethod
from .models import is_compiled

__all__ = ["check_mask_bits", "quick_masks"]

_LANES = {8: torch.int8, 16: torch.int16}


def check_mask_bits(mask_bits: int | None) -> int | None:
    """How many bits the number of a value has, or an error."""
    if mask_bits is not None and operator.index(mask_bits) not in _LANES:
        raise ValueError(f"mask_bits: expected None, 8 or 16, got {mask_bits}")
    return mask_bits


def _drop(module: nn.Dropout, input: Tensor, *, bits: int) -> Tensor:
    levels = 2**bits
    dropped = round(module.p * levels)  # of all levels
    if (
        not module.training
        or input.device.type != "cpu"
        or not input.is_floating_point()
        or not 0 < dropped < levels
    ):
        return type(module).forward(module, input)
    lanes = torch.empty(-(-input.numel() * bits // 64), dtype=torch.int64)
    lanes.random_(-(2**63), None)
    numbers = lanes.view(_LANES[bits])[: input.numel()]
    # In the order of the input's memory, which for independent numbers is as good as any.
    layout = torch.empty_like(input, device="meta")
    is_kept = numbers.as_strided(layout.shape, layout.stride()) >= dropped - levels // 2
    scale = levels / (levels - dropped)
    if module.inplace:
        return input.mul_(scale).masked_fill_(~is_kept, 0)
    return torch.where(is_kept, input, 0).mul_(scale)


@contextmanager
def quick_masks(model: nn.Module, mask_bits: int | None) -> Iterator[None]:
    """Lets the model's ``nn.Dropout`` modules draw so many bits for each value, on a CPU."""
    if mask_bits is None or is_compiled(model):  # another method would compile it anew
        yield
        return
    with ExitStack() as stack:
        for module in model.modules():
            if type(module) is nn.Dropout and "forward" not in vars(module):
                replaced = ReplacedMethod(module, "forward", partial(_drop, bits=mask_bits))
                stack.callback(replaced.remove)
        yield
