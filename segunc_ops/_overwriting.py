"""Logits that a loss writes its gradient over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._torch import is_eager


def lend(input: Tensor, overwrite_input: bool, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """``loss(input)``, of an alias of the logits if they are to be overwritten.

    They are where that is asked for, if a gradient of them is wanted and torch neither traces nor
    transforms them. Their memory is then taken from them, so that whatever reads them later fails.

    Raises:
        ValueError: others may need them.
    """
    if not (overwrite_input and torch.is_grad_enabled() and input.requires_grad and is_eager()):
        return loss(input)
    problem = _problem(input)
    if problem is not None:
        raise ValueError(
            f"overwrite_input: expected logits that only this loss reads, got {problem}"
        )
    try:
        return loss(input.view_as(input))
    finally:
        input.data = input.new_empty((0,))


def _problem(input: Tensor) -> str | None:
    if input.is_leaf:
        return "a leaf, whose values an optimizer or a caller has"
    if input._is_view():
        return "a view of a tensor that others have; pass its .clone(), or do without"
    if input.retains_grad:
        return "some that retain their gradient"
    # What is not dense, elements that overlap among it, has no like of the same strides.
    if torch.empty_like(input, device="meta").stride() != input.stride():
        return f"strides {input.stride()}, between which there are gaps or overlaps"
    return None
