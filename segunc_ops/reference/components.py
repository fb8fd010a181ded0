"""Connected components and means over them; see :mod:`segunc_ops.functional.components`."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

__all__ = ["component_mean", "connected_components"]


def _component_roots(
    labels: Tensor, connectivity: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Of every pixel the first one of its component in raster order, and whether it is valid.

    Both are flat over the whole batch; an ignored pixel is its own root.
    """
    pixels = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
    valid = torch.ones_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        valid = labels != ignore_index
    size = labels.shape[1:]
    axes = len(size)
    full = connectivity > 2 * axes
    edges = []
    for step in itertools.product((-1, 0, 1), repeat=axes):
        if step <= (0,) * axes or (not full and sum(map(abs, step)) > 1):
            continue  # of two opposite steps one suffices
        here = [slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, size, strict=True)]
        there = [slice(max(s, 0), n - max(-s, 0)) for s, n in zip(step, size, strict=True)]
        at, near = (slice(None), *here), (slice(None), *there)
        joined = (labels[at] == labels[near]) & valid[at]
        edges.append(torch.stack([pixels[at][joined], pixels[near][joined]]))
    first, second = torch.cat(edges, 1)
    # Of two trees that touch, the later one's root goes under the earlier's; then trees are
    # flattened. At least half of the trees that touch vanish in a round, and what is left as a
    # root is its component's first pixel.
    root = pixels.flatten()
    while True:
        a, b = root[first], root[second]
        apart = a != b
        if not apart.any():
            return root, valid.flatten()
        a, b, first, second = a[apart], b[apart], first[apart], second[apart]
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(above := root[root], root):
            root = above


def connected_components(
    labels: Tensor, connectivity: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Ids and their number; see :func:`segunc_ops.functional.connected_components`."""
    root, valid = _component_roots(labels, connectivity, ignore_index)
    pixel = torch.arange(root.numel(), device=root.device)
    per_image = (len(labels), math.prod(labels.shape[1:]))
    rank = ((root == pixel) & valid).view(per_image).cumsum(1)
    ids = torch.where(valid, rank.flatten()[root], 0)
    counts = rank[:, -1] if per_image[1] else rank.new_zeros(per_image[0])
    return ids.view(labels.shape).to(torch.int32), counts


def component_mean(
    values: Tensor,
    labels: Tensor,
    connectivity: int,
    ignore_index: int | None,
    bound: float | None = None,
) -> Tensor:
    """Means over components; see :func:`segunc_ops.functional.component_mean`.

    A bound would make nothing faster here: it is disregarded.
    """
    root, valid = _component_roots(labels, connectivity, ignore_index)
    # What ignored pixels hold is never read.
    each = torch.where(valid, values.flatten(), torch.zeros_like(values.flatten())).double()
    size = torch.zeros_like(each).index_add_(0, root, torch.ones_like(each))
    mean = torch.zeros_like(each).index_add(0, root, each) / size.clamp(min=1)
    mean = torch.where(mean.isfinite(), mean, torch.nan)
    mean = torch.where(valid, mean[root], torch.zeros_like(mean))
    return mean.view(values.shape).to(values.dtype)
