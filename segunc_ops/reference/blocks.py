"""The uncertainty of blocks; see :mod:`segunc_ops.functional.blocks`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._blocks import number_of_blocks
from .._dtypes import accumulate_dtype
from .common import at_size

__all__ = ["block_uncertainty"]


def _means(values: Tensor, block: int, stride: int) -> Tensor:
    """Means of ``(*, size)`` over the blocks of the last axis."""
    size, device = values.shape[-1], values.device
    blocks = torch.arange(number_of_blocks(size, block, stride), device=device)
    starts = (blocks * stride).clamp(max=size - block)
    return values[..., starts[:, None] + torch.arange(block, device=device)].mean(-1)


def block_uncertainty(
    logits: Tensor,
    *,
    blocks: tuple[int, int],
    strides: tuple[int, int],
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    base: float = 2.0,
) -> Tensor:
    """Mean entropies of blocks; see :func:`segunc_ops.functional.block_uncertainty`."""
    if size is not None:
        logits = at_size(logits, size, align_corners)
    p = logits.to(accumulate_dtype(logits.dtype)).softmax(1)
    entropy = torch.special.entr(p).sum(1) / math.log(base)
    rows = _means(entropy.mT, blocks[0], strides[0]).mT
    return _means(rows, blocks[1], strides[1])
