"""The uncertainty of an image's blocks, by which a cascade of models chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._arrays import accepts_arrays
from .._blocks import BlockGrid, block_grid, check_blocks
from .._checks import check_class_scores, check_number, check_size
from .._native.backend import implementation

__all__ = ["BlockGrid", "block_grid", "block_uncertainty"]


@accepts_arrays
@torch.no_grad()
def block_uncertainty(
    logits: Tensor,
    *,
    block_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    size: Sequence[int] | None = None,
    align_corners: bool = False,
    base: float = 2.0,
) -> Tensor:
    """The mean predictive entropy of each block of an image, in one pass over the logits.

    With p = softmax(z) over the classes, ``H = -sum_c p_c log p_c`` of each pixel, and of block B
    the mean ``1 / |B| sum_{i in B} H_i`` (Huang et al.). No map of H is in memory, and a pixel of
    several blocks is computed once. Never differentiable. Sums are in float64, in an order that
    depends on the sizes alone.

    Along an axis there are ``ceil((size - block) / stride) + 1`` blocks. Block k starts at
    ``min(k * stride, size - block)``: the last is shifted to end with the image.
    :func:`block_grid` tells where they are.

    With `size`, blocks are those of the logits interpolated to it, as by
    :func:`torch.nn.functional.interpolate`, but these are never in memory.

    Args:
        logits: ``(N, C, H, W)``; float32, bfloat16, float16 or float64, of any strides. NaN logits
            give NaN blocks. NumPy and CuPy arrays are read in place and give such arrays.
        block_size: a block's edge in pixels, or its height and width; at most the image's.
        stride: from one block to the next, for both axes or ``(rows, columns)``; at most
            `block_size`, which is the default: blocks side by side.
        size: the image's height and width, smaller or larger than those of the logits, which are
            interpolated bilinearly in float32 (float64), under autocast too. None, or the logits'
            own: no interpolation.
        align_corners: whether the centres of the corner pixels, instead of the corners, of logits
            and image coincide. As for torch, False in most models.
        base: of the logarithm, above 1; 2 gives bits, ``math.e`` nats.

    Returns:
        ``(N, rows, columns)``, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes or a size that do not fit, a block that is larger than the image, a
            stride that leaves pixels out, a base that is none.
        TypeError: types that do not fit.
    """
    check_class_scores("logits", logits)
    if logits.dim() != 4:
        raise ValueError(f"logits: expected shape (N, C, H, W), got {tuple(logits.shape)}")
    sizes = check_size("logits", logits, size, align_corners)
    blocks, strides = check_blocks(
        tuple(logits.shape[2:]) if sizes is None else sizes, block_size, stride
    )
    uncertainty: Tensor = implementation(logits.device).block_uncertainty(
        logits,
        blocks=blocks,
        strides=strides,
        size=sizes,
        align_corners=align_corners,
        base=check_number("base", base, above=1.0),
    )
    return uncertainty
