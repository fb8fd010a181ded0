"""Cross-entropy: its gradient is made in the forward pass, or by what is kept for backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._native.library import fake, ops, refuse_gradient
from .._options import LossOptions
from .._torch import call_below_autograd, eager_apply, is_eager, is_exporting, keeps_graph
from .common import FirstDerivative, addressable, call

__all__ = ["cross_entropy"]

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "mean_all": 3}


class _Settings(NamedTuple):
    """The options that are no tensors, as the operators take them and in their order."""

    ignore_index: int
    reduction: int
    label_smoothing: float
    interpolate: bool
    align_corners: bool


class _Wanted(NamedTuple):
    """Which gradients there are to be, the operators' last arguments."""

    grad_input: bool
    grad_pixel_weight: bool


_NOTHING = _Wanted(False, False)


def _gradients(input: Tensor, target: Tensor, wanted: _Wanted) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(input.dtype)
    return (
        torch.empty_like(input) if wanted.grad_input else input.new_empty((0,)),
        input.new_empty(target.shape if wanted.grad_pixel_weight else (0,), dtype=dtype),
    )


@fake("cross_entropy_forward")
def _forward(
    input: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    reduction, wanted = others[1], _Wanted(*others[-2:])
    shape = target.shape if reduction == _REDUCTIONS["none"] else ()
    return (
        input.new_empty(shape, dtype=accumulate_dtype(input.dtype)),
        input.new_empty((), dtype=torch.float64),
        *_gradients(input, target, wanted),
    )


@fake("cross_entropy_backward")
def _backward(
    grad_output: Tensor, input: Tensor, target: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return _gradients(input, target, _Wanted(*others[-2:]))


refuse_gradient("cross_entropy_forward", "cross_entropy_backward")


def _keep(ctx: Any, inputs: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    ctx.deferred, ctx.wanted, input, target, weight, pixel_weight, ctx.settings = inputs
    _, normalizer, grad_input, grad_pixel_weight = results
    ctx.set_materialize_grads(False)
    if ctx.deferred:
        ctx.save_for_backward(input, target, weight, pixel_weight, normalizer)
    else:
        ctx.save_for_backward(grad_input, grad_pixel_weight, normalizer)


class _CrossEntropy(torch.autograd.Function):
    """Makes the gradient in the forward pass, or keeps what recomputes it.

    A scalar loss knows its gradient up to the upstream factor while the logits are in cache, and
    then needs them no more. float16 must wait: divided by the number of pixels most of its
    gradient would underflow before GradScaler's factor arrives.

    The normalizer stays differentiable in form. It ties gradients to the inputs under
    create_graph=True at no memory, so that a second derivative meets FirstDerivative instead of a
    silent constant.
    """

    @staticmethod
    def forward(deferred: bool, wanted: _Wanted, *others: Any) -> Any:
        *tensors, settings = others
        now = _NOTHING if deferred else wanted
        return call(ops.cross_entropy_forward.default, *tensors, *settings, *now)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes at every read
        if torch.is_grad_enabled():
            with torch.no_grad():
                grads = _gradients_of(ctx, saved, grad_output)
            # The saved normalizer depends on the inputs: see above.
            grads = FirstDerivative.apply("cross_entropy", saved[-1], grad_output, *grads)
        else:
            grads = _gradients_of(ctx, saved, grad_output)
        of_input = grads[0] if ctx.wanted.grad_input else None
        of_pixel_weight = grads[1] if ctx.wanted.grad_pixel_weight else None
        return None, None, of_input, None, None, of_pixel_weight, None


class _EagerCrossEntropy(torch.autograd.Function):
    """The same where nothing traces and nothing is wrapped: what is kept need be no result.

    Each result and each call of Python is a part of what a small loss costs.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        deferred, wanted, *tensors, settings = inputs
        now = _NOTHING if deferred else wanted
        forward = ops.cross_entropy_forward.default
        results: tuple[Tensor, ...] = call_below_autograd(forward, *tensors, *settings, *now)
        _keep(ctx, inputs, results)
        return results[:2]

    backward = _CrossEntropy.backward


_eager_apply = eager_apply(_EagerCrossEntropy)


def _gradients_of(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of input and pixel weight, empty where not wanted."""
    if ctx.deferred:
        backward = ops.cross_entropy_backward.default
        grads: tuple[Tensor, ...] = call(
            backward, grad_output.contiguous(), *saved, *ctx.settings, *ctx.wanted
        )
        return grads
    grads = saved[:2]
    # In place where nobody can see the saved gradient again after this backward.
    if not is_eager() or keeps_graph():
        return tuple((grad * grad_output).to(grad.dtype) for grad in grads)
    for grad, is_wanted in zip(grads, ctx.wanted, strict=True):
        if is_wanted:
            call_below_autograd(ops.scale_.default, grad, grad_output)
    return grads


def cross_entropy(
    input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None, options: LossOptions
) -> Tensor:
    """Weighted cross-entropy; see :func:`segunc_ops.functional.cross_entropy`."""
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    wanted = _Wanted(
        enabled and input.requires_grad,
        enabled and pixel_weight is not None and pixel_weight.requires_grad,
    )
    tensors = addressable(input), target.contiguous(), options.weight, pixel_weight
    settings = _Settings(
        options.ignore_index,
        _REDUCTIONS[options.reduction],
        options.label_smoothing,
        options.upsample is not None,
        options.align_corners,
    )
    # An exported program would keep the operator and lose the Function around it: the operator's
    # own formula raises when such a program is differentiated.
    if wanted == _NOTHING or is_exporting():
        forward = ops.cross_entropy_forward.default
        loss: Tensor = call(forward, *tensors, *settings, *_NOTHING)[0]
        return loss
    deferred = options.reduction == "none" or input.dtype == torch.float16
    apply = _eager_apply if is_eager() else _CrossEntropy.apply
    losses = apply(deferred, wanted, *tensors, settings)
    return losses[0]
