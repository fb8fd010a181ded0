"""torch.autograd.Functions: what is saved for backward and what flows back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import ops

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "mean_all": 3}

# Absent from some torch versions: then gradients are scaled out of place, at twice the memory.
_keep_graph = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)


def _may_scale_in_place() -> bool:
    """Whether nobody can see a saved gradient again after this backward."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not _keep_graph()
    )


class _Anchor(torch.autograd.Function):
    """An empty tensor that depends on its input and keeps none of its memory.

    Saved in place of the logits, it ties the gradient to them under ``create_graph=True``, so
    that a second derivative meets :class:`_FirstDerivative` instead of a silent constant.
    """

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        return None


class _FirstDerivative(torch.autograd.Function):
    """Gradients as nodes of the graph whose own derivative is an error that says so."""

    @staticmethod
    def forward(op: str, anchor: Tensor, upstream: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
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


class _CrossEntropy(torch.autograd.Function):
    """Makes the gradient in the forward pass, or keeps what recomputes it.

    A scalar loss knows its gradient up to the upstream factor while the logits are in cache, and
    then needs them no more. float16 must wait: divided by the number of pixels most of its
    gradient would underflow before GradScaler's factor arrives.
    """

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        anchor: Tensor | None,
        ignore_index: int,
        reduction: int,
        label_smoothing: float,
        grad_input: bool,
        grad_pixel_weight: bool,
        deferred: bool,
    ) -> Any:
        return ops.cross_entropy_forward(
            input,
            target,
            weight,
            pixel_weight,
            ignore_index,
            reduction,
            label_smoothing,
            grad_input and not deferred,
            grad_pixel_weight and not deferred,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, target, weight, pixel_weight, anchor, *options, deferred = inputs
        _, normalizer, grad_input, grad_pixel_weight = output
        ctx.mark_non_differentiable(normalizer, grad_input, grad_pixel_weight)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.deferred = options, deferred
        if deferred:
            ctx.save_for_backward(input, target, weight, pixel_weight, normalizer, anchor)
        else:
            ctx.save_for_backward(grad_input, grad_pixel_weight, anchor)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 11
        grad_wanted = ctx.options[-2:]
        with torch.no_grad():
            if ctx.deferred:
                *inputs, anchor = ctx.saved_tensors
                grads = ops.cross_entropy_backward(grad_output.contiguous(), *inputs, *ctx.options)
            else:
                *grads, anchor = ctx.saved_tensors
                if _may_scale_in_place():
                    for grad in grads:
                        if grad.numel():
                            ops.scale_(grad, grad_output)
                else:
                    grads = [(grad * grad_output).to(grad.dtype) for grad in grads]
        if anchor is not None and torch.is_grad_enabled():
            grads = _FirstDerivative.apply(  # type: ignore[no-untyped-call]
                "cross_entropy", anchor, grad_output, *grads
            )
        grad_input, grad_pixel_weight = (
            grad if wanted else None for grad, wanted in zip(grads, grad_wanted, strict=True)
        )
        return grad_input, None, None, grad_pixel_weight, *(None,) * 7


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """The native cross-entropy of validated arguments, in the type it is computed in."""
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    grad_input = enabled and input.requires_grad
    grad_pixel_weight = enabled and pixel_weight is not None and pixel_weight.requires_grad
    options = (ignore_index, REDUCTIONS[reduction], label_smoothing)
    if not (grad_input or grad_pixel_weight):
        forward = ops.cross_entropy_forward
        return forward(input, target, weight, pixel_weight, *options, False, False)[0]
    deferred = reduction == "none" or input.dtype == torch.float16
    anchor = _Anchor.apply(  # type: ignore[no-untyped-call]
        input if grad_input else pixel_weight
    )
    return _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        input, target, weight, pixel_weight, anchor, *options, grad_input, grad_pixel_weight, deferred
    )[0]
