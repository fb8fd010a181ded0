"""Losses of a mean and a spread of each logit: gradients are made in the forward pass, or by what
is kept for backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._native.library import fake, ops, refuse_gradient
from .._torch import call_below_autograd, eager_apply, is_eager, is_exporting
from .common import REDUCTIONS, addressable, call, first_derivatives, scaled

__all__ = ["SpreadLoss", "loss_of", "register"]


class SpreadLoss(NamedTuple):
    """Of which operators a loss is made.

    These take tensors, of which the first three are mean, spread and target, settings, of which the
    first two are what is ignored and the reduction, and which gradients are wanted.
    """

    name: str
    num_tensors: int
    pixel_weight: int
    """Which of the tensors it is."""


class _Wanted(NamedTuple):
    """Which gradients there are to be, the operators' last arguments."""

    grad_mean: bool
    grad_spread: bool
    grad_pixel_weight: bool


_NOTHING = _Wanted(False, False, False)
# Of the Functions: the loss, whether gradients are deferred, wanted, settings, and then tensors.
_BEFORE_TENSORS = 4


def _gradients(mean: Tensor, spread: Tensor, target: Tensor, wanted: _Wanted) -> tuple[Tensor, ...]:
    dtype = accumulate_dtype(mean.dtype)
    return (
        torch.empty_like(mean) if wanted.grad_mean else mean.new_empty((0,)),
        torch.empty_like(spread) if wanted.grad_spread else spread.new_empty((0,)),
        mean.new_empty(target.shape if wanted.grad_pixel_weight else (0,), dtype=dtype),
    )


def register(loss: SpreadLoss) -> None:
    """Gives a loss's operators shapes to trace by, and an error in place of a derivative."""
    forward, backward = (f"{loss.name}_{way}" for way in ("forward", "backward"))
    reduction = loss.num_tensors - 3 + 1

    @fake(forward)
    def _forward(mean: Tensor, spread: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, ...]:
        shape = target.shape if others[reduction] == REDUCTIONS["none"] else ()
        return (
            mean.new_empty(shape, dtype=accumulate_dtype(mean.dtype)),
            mean.new_empty((), dtype=torch.float64),
            *_gradients(mean, spread, target, _Wanted(*others[-3:])),
        )

    @fake(backward)
    def _backward(
        grad_output: Tensor, mean: Tensor, spread: Tensor, target: Tensor, *others: Any
    ) -> tuple[Tensor, ...]:
        return _gradients(mean, spread, target, _Wanted(*others[-3:]))

    refuse_gradient(forward, backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    ctx.loss, ctx.deferred, ctx.wanted, ctx.settings, *tensors = inputs
    _, normalizer, *gradients = results
    ctx.set_materialize_grads(False)
    if ctx.deferred:
        ctx.save_for_backward(*tensors, normalizer)
    else:
        ctx.save_for_backward(*gradients, normalizer)


def _forward_call(
    loss: SpreadLoss,
    deferred: bool,
    wanted: _Wanted,
    settings: tuple[Any, ...],
    *tensors: Tensor | None,
) -> tuple[Any, ...]:
    """The operator and its arguments, of a Function's inputs."""
    now = _NOTHING if deferred else wanted
    return getattr(ops, f"{loss.name}_forward").default, *tensors, *settings, *now


class _SpreadFunction(torch.autograd.Function):
    """Makes gradients in the forward pass, or keeps what makes them again.

    A scalar loss knows its gradients up to the upstream factor, and then needs what it is of no
    more. float16 must wait: divided by the number of pixels most of its gradients would underflow
    before GradScaler's factor arrives.

    The normalizer stays differentiable in form. It ties gradients to the inputs under
    create_graph=True at no memory, so that a second derivative meets FirstDerivative instead of a
    silent constant.
    """

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return call(*_forward_call(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        loss = ctx.loss
        result: list[Tensor | None] = [None] * (_BEFORE_TENSORS + loss.num_tensors)
        if grad_output is None:
            return tuple(result)
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes at every read
        # The saved normalizer depends on the inputs: see above.
        grads = first_derivatives(loss.name, saved[-1], _gradients_of, ctx, saved, grad_output)
        leaves = (0, 1, loss.pixel_weight)
        for leaf, gradient, is_wanted in zip(leaves, grads, ctx.wanted, strict=True):
            if is_wanted:
                result[_BEFORE_TENSORS + leaf] = gradient
        return tuple(result)


class _EagerSpreadFunction(torch.autograd.Function):
    """The same where nothing traces and nothing is wrapped: what is kept need be no result."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = call_below_autograd(*_forward_call(*inputs))
        _keep(ctx, inputs, results)
        return results[:2]

    backward = _SpreadFunction.backward


_eager_apply = eager_apply(_EagerSpreadFunction)


def _gradients_of(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of mean, spread and pixel weight, empty where not wanted."""
    if not ctx.deferred:
        return scaled(saved[:-1], ctx.wanted, grad_output)
    backward = getattr(ops, f"{ctx.loss.name}_backward").default
    grads: tuple[Tensor, ...] = call(
        backward, grad_output.contiguous(), *saved, *ctx.settings, *ctx.wanted
    )
    return grads


def loss_of(
    loss: SpreadLoss,
    mean: Tensor,
    spread: Tensor,
    target: Tensor,
    others: tuple[Tensor | None, ...],
    settings: tuple[Any, ...],
) -> Tensor:
    """The loss of the operators' tensors and settings, with the gradients that leaves ask for."""
    tensors = (addressable(mean), addressable(spread), target.contiguous(), *others)
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    leaves = (tensors[i] for i in (0, 1, loss.pixel_weight))
    wanted = _Wanted(*[enabled and leaf is not None and leaf.requires_grad for leaf in leaves])
    # An exported program would keep the operator and lose the Function around it: the operator's
    # own formula raises when such a program is differentiated.
    if wanted == _NOTHING or is_exporting():
        result: Tensor = call(*_forward_call(loss, True, wanted, settings, *tensors))[0]
        return result
    deferred = settings[1] == REDUCTIONS["none"] or mean.dtype == torch.float16
    apply = _eager_apply if is_eager() else _SpreadFunction.apply
    losses = apply(loss, deferred, wanted, settings, *tensors)
    return losses[0]
