"""Expected cross-entropy: gradients are made in the forward pass, or drawn again in backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._native.library import fake, ops, refuse_gradient
from .._options import LossOptions
from .._torch import is_exporting
from .common import REDUCTIONS, FirstDerivative, addressable, call, scaled

__all__ = ["expected_cross_entropy"]


class _Settings(NamedTuple):
    """The options that are no tensors, as the operators take them and in their order."""

    ignore_index: int
    reduction: int
    num_draws: int
    antithetic: bool


class _Wanted(NamedTuple):
    """Which gradients there are to be, the operators' last arguments."""

    grad_mean: bool
    grad_scale: bool
    grad_pixel_weight: bool


_NOTHING = _Wanted(False, False, False)
_OPTIONS = len(_Settings._fields)
# Of the Function: mean, scale, target, weight, pixel weight and seed.
_TENSORS = 6


def _gradients(mean: Tensor, scale: Tensor, target: Tensor, wanted: _Wanted) -> tuple[Tensor, ...]:
    dtype = accumulate_dtype(mean.dtype)
    return (
        torch.empty_like(mean) if wanted.grad_mean else mean.new_empty((0,)),
        torch.empty_like(scale) if wanted.grad_scale else scale.new_empty((0,)),
        mean.new_empty(target.shape if wanted.grad_pixel_weight else (0,), dtype=dtype),
    )


@fake("expected_cross_entropy_forward")
def _forward(
    mean: Tensor,
    scale: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    seed: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    settings, wanted = _Settings(*others[:_OPTIONS]), _Wanted(*others[_OPTIONS:])
    shape = target.shape if settings.reduction == REDUCTIONS["none"] else ()
    return (
        mean.new_empty(shape, dtype=accumulate_dtype(mean.dtype)),
        mean.new_empty((), dtype=torch.float64),
        *_gradients(mean, scale, target, wanted),
    )


@fake("expected_cross_entropy_backward")
def _backward(
    grad_output: Tensor,
    mean: Tensor,
    scale: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    seed: Tensor,
    normalizer: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    return _gradients(mean, scale, target, _Wanted(*others[_OPTIONS:]))


refuse_gradient("expected_cross_entropy_forward", "expected_cross_entropy_backward")


class _ExpectedCrossEntropy(torch.autograd.Function):
    """Makes the gradients in the forward pass, or keeps what makes them again.

    A scalar loss knows them up to the upstream factor while the draws are in cache. float16 must
    wait: divided by the number of pixels most of its gradients would underflow before GradScaler's
    factor arrives.

    The normalizer stays differentiable in form. It ties gradients to the inputs under
    create_graph=True at no memory, so that a second derivative meets FirstDerivative instead of a
    silent constant.
    """

    @staticmethod
    def forward(deferred: bool, wanted: _Wanted, settings: _Settings, *tensors: Tensor) -> Any:
        now = _NOTHING if deferred else wanted
        return call(ops.expected_cross_entropy_forward.default, *tensors, *settings, *now)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.deferred, ctx.wanted, ctx.settings, *tensors = inputs
        _, normalizer, *gradients = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*gradients)
        if ctx.deferred:
            ctx.save_for_backward(*tensors, normalizer)
        else:
            ctx.save_for_backward(*gradients, normalizer)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (3 + _TENSORS)
        if grad_output is None:
            return nothing
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes at every read
        if torch.is_grad_enabled():
            with torch.no_grad():
                grads = _gradients_of(ctx, saved, grad_output)
            # The saved normalizer depends on the inputs: see above.
            grads = FirstDerivative.apply("expected_cross_entropy", saved[-1], grad_output, *grads)
        else:
            grads = _gradients_of(ctx, saved, grad_output)
        of_mean, of_scale, of_weight = (
            grad if wants else None for grad, wants in zip(grads, ctx.wanted, strict=True)
        )
        return None, None, None, of_mean, of_scale, None, None, of_weight, None


def _gradients_of(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of mean, scale and pixel weight, empty where not wanted."""
    if not ctx.deferred:
        return scaled(saved[:-1], ctx.wanted, grad_output)
    grads: tuple[Tensor, ...] = call(
        ops.expected_cross_entropy_backward.default,
        grad_output.contiguous(),
        *saved,
        *ctx.settings,
        *ctx.wanted,
    )
    return grads


def expected_cross_entropy(
    mean: Tensor,
    scale: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    num_draws: int,
    antithetic: bool,
    seed: Tensor,
    options: LossOptions,
) -> Tensor:
    """Expected cross-entropy; see :func:`segunc_ops.functional.expected_cross_entropy`."""
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    wanted = _Wanted(
        enabled and mean.requires_grad,
        enabled and scale.requires_grad,
        enabled and pixel_weight is not None and pixel_weight.requires_grad,
    )
    tensors = (
        addressable(mean),
        addressable(scale),
        target.contiguous(),
        options.weight,
        pixel_weight,
        seed,
    )
    settings = _Settings(options.ignore_index, REDUCTIONS[options.reduction], num_draws, antithetic)
    # An exported program would keep the operator and lose the Function around it: the operator's
    # own formula raises when such a program is differentiated.
    if wanted == _NOTHING or is_exporting():
        forward = ops.expected_cross_entropy_forward.default
        loss: Tensor = call(forward, *tensors, *settings, *wanted)[0]
        return loss
    deferred = options.reduction == "none" or mean.dtype == torch.float16
    losses = _ExpectedCrossEntropy.apply(deferred, wanted, settings, *tensors)
    result: Tensor = losses[0]
    return result
