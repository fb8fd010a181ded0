"""Tables of counts, which are never differentiated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._native.library import fake, ops, returns_nothing
from .common import addressable, class_sizes

__all__ = [
    "accumulate_counts",
    "accumulate_map_counts",
    "accumulate_patch_counts",
    "class_sizes",
]

fake(
    "accumulate_counts_",
    "accumulate_map_counts_",
    "accumulate_patch_counts_",
    "accumulate_class_sizes_",
)(returns_nothing)


def accumulate_counts(input: Tensor, *others: Any) -> None:
    """Adds a batch to tables; see :func:`segunc_ops.functional.accumulate_counts`."""
    ops.accumulate_counts_(addressable(input), *others)


def accumulate_map_counts(*arguments: Any) -> None:
    """The same from maps of the prediction, without scores."""
    ops.accumulate_map_counts_(*arguments)


def accumulate_patch_counts(*arguments: Any) -> None:
    """Adds patches to their counts; see :func:`segunc_ops.functional.accumulate_patch_counts`."""
    ops.accumulate_patch_counts_(*arguments)
