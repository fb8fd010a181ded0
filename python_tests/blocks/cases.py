"""The definition of block means in float64, block by block, and calls that are tried."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.comparison import accumulate_dtype, assert_close


class Blocks(NamedTuple):
    """An image and how blocks cover it."""

    shape: tuple[int, int, int, int]
    block_size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"block_size": self.block_size, "stride": self.stride}


# Side by side and overlapping; the last block shifted inside; strides that divide blocks and that
# do not; one block; each pixel a block; more columns than a tile has.
CASES = (
    Blocks((2, 3, 8, 12), 4),
    Blocks((1, 19, 37, 70), (16, 32), (8, 20)),
    Blocks((2, 5, 13, 9), (7, 4), (3, 4)),
    Blocks((3, 2, 6, 7), (6, 7)),
    Blocks((1, 4, 5, 6), 1),
    Blocks((1, 3, 21, 19), (6, 5), 1),
    Blocks((1, 2, 9, 1100), (4, 300), (3, 200)),
    Blocks((1, 150, 10, 11), 8, (5, 8)),
    Blocks((1, 1, 4, 4), 3),
)


def expected(logits: Tensor, blocks: Blocks, base: float = 2.0) -> Tensor:
    """The definition: each block's pixels, one block after another."""
    entropy = torch.special.entr(logits.double().softmax(1)).sum(1) / math.log(base)
    grid = sf.block_grid(logits.shape[2:], blocks.block_size, blocks.stride)
    means = [
        entropy[:, top:bottom, left:right].mean((1, 2)) for top, left, bottom, right in grid.boxes
    ]
    return torch.stack(means, 1).unflatten(1, grid.shape)


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for the operator, of the logits' own size and interpolated."""
    calls: list[tuple[object, ...]] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(2, 3, 6, 5).to(dtype)
        calls.append((x, [4, 2], [1, 2], [], False, 2.0))
        calls.append((x, [4, 2], [3, 2], [7, 4], True, 10.0))
    return {"block_uncertainty": calls}


def compare(
    found: Tensor,
    logits: Tensor,
    blocks: Blocks,
    *,
    name: str,
    base: float = 2.0,
    interpolated_in: torch.dtype | None = None,
) -> None:
    """Block means against their definition.

    Terms are at most log C in size, rounded once per class. `interpolated_in`: the type that
    logits, given in float64 and at full size, were computed in.
    """
    compute = interpolated_in or accumulate_dtype(logits.dtype)
    assert found.dtype == compute, name
    # z - max z is rounded at the size of z, which float64's truth shares; so are interpolated z.
    rounds_logits = compute == torch.float64 or interpolated_in is not None
    size = 1 + float(logits.abs().max()) if rounds_logits else 1.0
    classes = logits.shape[1]
    scale = size * (1 + math.log(classes)) * math.sqrt(classes) / math.log(base)
    assert_close(found, expected(logits, blocks, base), name=name, scale=scale, bias=False)
