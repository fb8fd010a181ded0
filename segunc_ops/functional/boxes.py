"""Bounding boxes as labels, made of exact ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._arrays import accepts_arrays
from .._checks import check_image_flags, check_integer
from .components import check_labels, connected_components

__all__ = ["boxes_from_masks"]


@accepts_arrays
@torch.no_grad()
def boxes_from_masks(
    labels: Tensor,
    *,
    background: int | Sequence[int] | None = 0,
    ignore_index: int | None = None,
    connectivity: int | None = None,
    exact: Tensor | None = None,
) -> Tensor:
    """Label maps as someone would draw them who has boxes alone.

    Each connected component of a foreground class (:func:`connected_components`) fills the smallest
    box around it. Where boxes overlap the smallest one is on top, of equal ones that whose
    component comes first in raster order. Pixels outside of all boxes keep their label, which is
    background.

    Args:
        labels: class indices, ``(N, H, W)``, or ``(N, D, H, W)`` for volumes; any integer type or
            bool. NumPy and CuPy arrays are read in place and give such arrays.
        background: class or classes that have no boxes; None: every class has.
        ignore_index: pixels with this label belong to no component and keep it, in a box too; None
            ignores none.
        connectivity: 4 or 8 neighbours, in volumes 6 or 26; None is the larger.
        exact: bool ``(N,)``: images that keep their labels. None: none does.

    Returns:
        New class indices of the shape and type of `labels`.

    Raises:
        ValueError: a shape or connectivity that does not fit; 2^31 or more pixels an image.
        TypeError: labels that are no integers, or flags that are not bool.
    """
    original, connectivity, ignore_index = check_labels(labels, connectivity, ignore_index)
    classes = _as_classes(background)
    if exact is not None:
        check_image_flags("exact", exact, labels)
    boxes = original.clone()
    numbers = range(len(labels)) if exact is None else (~exact).nonzero().flatten().tolist()
    replaced = original if exact is None else original[numbers]
    components, counts = connected_components(
        replaced, connectivity=connectivity, ignore_index=ignore_index
    )
    bounds, values = _measure(replaced, components, counts)
    # Of unsigned types the kernels see the signed one of the same size.
    modulus = 0 if labels.dtype.is_signed else 1 << 8 * labels.element_size()
    first = 0
    for number, count in zip(numbers, counts.tolist(), strict=True):
        found = []
        for place in range(first, first + count):
            value = values[place]
            if (value % modulus if modulus else value) not in classes:
                box = tuple(slice(low, high + 1) for low, high in bounds[place])
                size = math.prod(side.stop - side.start for side in box)
                found.append((-size, -place, value, box))
        for *_, value, box in sorted(found, key=lambda each: each[:2]):
            boxes[number][box] = value
        first += count
    if ignore_index is not None:
        boxes = torch.where(original == ignore_index, original, boxes)
    return boxes.view(labels.dtype)


def _as_classes(background: object) -> frozenset[int]:
    if background is None:
        return frozenset()
    each = background if isinstance(background, (list, tuple, set, frozenset)) else (background,)
    return frozenset(check_integer("background", index) for index in each)


def _measure(
    labels: Tensor, components: Tensor, counts: Tensor
) -> tuple[list[list[list[int]]], list[int]]:
    """Of all images' components one after the other: first and last place by axis, and class.

    By the ends of each row's runs alone, which are much fewer than pixels.
    """
    starts = torch.ones_like(components, dtype=torch.bool)
    starts[..., 1:] = components[..., 1:] != components[..., :-1]
    ends = torch.ones_like(starts)
    ends[..., :-1] = starts[..., 1:]
    first, last = (each.nonzero(as_tuple=True) for each in (starts, ends))
    before = counts.cumsum(0) - counts
    index = torch.where(components[first] > 0, components[first] + before[first[0]], 0)
    total = int(counts.sum())

    def reduce(values: Tensor, how: str) -> Tensor:
        reduced = values.new_zeros(total + 1)
        return reduced.scatter_reduce_(0, index, values, how, include_self=False)[1:]

    bounds = [
        torch.stack([reduce(low, "amin"), reduce(high, "amax")], -1)
        for low, high in zip(first[1:], last[1:], strict=True)
    ]
    return torch.stack(bounds, 1).tolist(), reduce(labels[first].long(), "amax").tolist()
