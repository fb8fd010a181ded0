"""Where the blocks of an image lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._checks import check_positive, describe

__all__ = ["BlockGrid", "block_grid", "check_blocks", "number_of_blocks"]


def number_of_blocks(size: int, block: int, stride: int) -> int:
    """How many blocks cover an axis; block k starts at min(k * stride, size - block)."""
    return (size - block + stride - 1) // stride + 1


@dataclass(frozen=True)
class BlockGrid:
    """The blocks that cover an image, which may overlap; made by :func:`block_grid`."""

    size: tuple[int, int]
    """The image's height and width."""
    block_size: tuple[int, int]
    """A block's."""
    rows: tuple[int, ...]
    """The first row of pixels of each row of blocks."""
    columns: tuple[int, ...]
    """The first column of pixels of each column of blocks."""

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns of blocks."""
        return len(self.rows), len(self.columns)

    @property
    def number(self) -> int:
        """The number of blocks."""
        return len(self.rows) * len(self.columns)

    @property
    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        """(top, left, bottom, right) of each block, row by row; the latter two are exclusive."""
        height, width = self.block_size
        return tuple(
            (top, left, top + height, left + width) for top in self.rows for left in self.columns
        )


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Numbers for rows and columns, from one for both or a number each."""
    if not isinstance(value, Sequence):
        number = check_positive(name, value)
        return number, number
    if len(value) != 2:
        raise ValueError(f"{name}: expected an integer or (height, width), got {tuple(value)}")
    return check_positive(name, value[0]), check_positive(name, value[1])


def check_blocks(
    size: tuple[int, ...], block_size: int | Sequence[int], stride: int | Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Blocks and strides along rows and columns, by which blocks cover an image."""
    blocks = _pair("block_size", block_size)
    strides = blocks if stride is None else _pair("stride", stride)
    if blocks[0] > size[0] or blocks[1] > size[1]:
        raise ValueError(
            f"block_size: expected at most the image's {tuple(size)}, got {blocks}; pad the image "
            "or take smaller blocks"
        )
    if strides[0] > blocks[0] or strides[1] > blocks[1]:
        raise ValueError(
            f"stride: expected at most block_size {blocks}, as pixels between blocks would be left "
            f"out, got {strides}"
        )
    return blocks, strides


def block_grid(
    size: Sequence[int], block_size: int | Sequence[int], stride: int | Sequence[int] | None = None
) -> BlockGrid:
    """Where the blocks of :func:`segunc_ops.functional.block_uncertainty` lie.

    Along an axis there are ``ceil((size - block) / stride) + 1`` blocks; block k starts at
    ``min(k * stride, size - block)``, so that the last ends with the image.

    Args:
        size: the image's height and width.
        block_size: a block's edge in pixels, or its height and width.
        stride: from one block to the next, for both axes or ``(rows, columns)``; at most
            `block_size`, which is the default: blocks side by side.

    Raises:
        ValueError: on a block that is larger than the image, a stride that leaves pixels out, or
            numbers that are not positive.
        TypeError: on what is no integer.
    """
    if not isinstance(size, Sequence):
        raise TypeError(f"size: expected (height, width), got {describe(size)}")
    image = _pair("size", size)
    blocks, strides = check_blocks(image, block_size, stride)
    rows, columns = (
        tuple(min(k * step, length - block) for k in range(number_of_blocks(length, block, step)))
        for length, block, step in zip(image, blocks, strides, strict=True)
    )
    return BlockGrid(image, blocks, rows, columns)
