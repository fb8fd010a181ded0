"""What the operators of several families use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._native.library import ops
from .._torch import call_below_autograd, is_eager, keeps_graph

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "mean_all": 3}
"""By their names: what operators call them, as csrc/common/reduction.h has it."""

# A kernel addresses three spatial axes; more are rare enough to be copied together.
_MAX_DIMS = 5


def addressable(logits: Tensor) -> Tensor:
    """Logits ``(N, C, *)`` of strides that a kernel can follow."""
    return logits.contiguous() if logits.dim() > _MAX_DIMS else logits


def call(operator: Any, *args: Any) -> Any:
    """Calls an operator on what is not to be differentiated, or not without an error."""
    return call_below_autograd(operator, *args) if is_eager() else operator(*args)


def scaled(
    grads: Sequence[Tensor], wanted: Sequence[bool], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Saved gradients, those that are wanted times an upstream scalar."""
    # In place where nobody can see the saved gradient again after this backward.
    if not is_eager() or keeps_graph():
        return tuple((grad * grad_output).to(grad.dtype) for grad in grads)
    for grad, is_wanted in zip(grads, wanted, strict=True):
        if is_wanted:
            call_below_autograd(ops.scale_.default, grad, grad_output)
    return tuple(grads)


def taken_over(logits: Tensor) -> Tensor:
    """Logits whose memory becomes that of their gradient, within a Function that keeps it.

    To others who have kept them for their own backward pass they have changed.
    """
    torch.autograd.graph.increment_version(logits)
    return logits.detach()


def class_sizes(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels of each class and image; see :func:`segunc_ops.functional.class_sizes`."""
    sizes = torch.zeros(target.shape[0], num_classes, dtype=torch.int64, device=target.device)
    ops.accumulate_class_sizes_(target.contiguous(), ignore_index, sizes)
    return sizes


class FirstDerivative(torch.autograd.Function):
    """Gradients as nodes of the graph whose own derivative is an error that says so."""

    @staticmethod
    def forward(op: str, tie: Tensor, upstream: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{ctx.op}: second derivatives are not implemented by the native kernels; compute "
            "the loss inside `with segunc_ops.backend('reference')`"
        )


def first_derivatives(
    op: str,
    tie: Tensor,
    gradients_of: Callable[[Any, tuple[Tensor, ...], Tensor], tuple[Tensor, ...]],
    ctx: Any,
    saved: tuple[Tensor, ...],
    grad_output: Tensor,
) -> tuple[Tensor, ...]:
    """A Function's gradients, which under create_graph=True depend on a saved tensor in form."""
    if not torch.is_grad_enabled():
        return gradients_of(ctx, saved, grad_output)
    with torch.no_grad():
        grads = gradients_of(ctx, saved, grad_output)
    tied: tuple[Tensor, ...] = FirstDerivative.apply(op, tie, grad_output, *grads)
    return tied
