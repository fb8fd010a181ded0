"""The uncertainty of blocks, which is never differentiated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._blocks import number_of_blocks
from .._dtypes import accumulate_dtype
from .._native.library import fake, ops

__all__ = ["block_uncertainty"]


@fake("block_uncertainty")
def _means(
    logits: Tensor,
    blocks: list[int],
    strides: list[int],
    size: list[int],
    align_corners: bool,
    base: float,
) -> Tensor:
    sizes = list(size) or logits.shape[2:]
    shape = [
        number_of_blocks(n, block, stride)
        for n, block, stride in zip(sizes, blocks, strides, strict=True)
    ]
    return logits.new_empty((logits.shape[0], *shape), dtype=accumulate_dtype(logits.dtype))


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
    means: Tensor = ops.block_uncertainty(logits, blocks, strides, size or (), align_corners, base)
    return means
