"""Losses of uncertain binary labels: gradients are made in the forward pass, or by what is kept for
backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._label_uncertainty import LabelUncertaintyOptions
from .._native.library import fake, ops, refuse_gradient
from .._torch import call_below_autograd, eager_apply, is_eager, is_exporting
from .common import REDUCTIONS, FirstDerivative, addressable, call, scaled

__all__ = ["label_uncertainty"]


class _Settings(NamedTuple):
    """The options, as the operators take them and in their order."""

    ignore_index: int
    reduction: int
    threshold: float
    uncertainty_weight: float
    bootstrap_weight: float
    detach_weight: bool


class _Wanted(NamedTuple):
    """Which gradients there are to be, the operators' last arguments."""

    grad_mean: bool
    grad_log_variance: bool
    grad_pixel_weight: bool


_NOTHING = _Wanted(False, False, False)
_OPTIONS = len(_Settings._fields)
# Of the Functions: whether gradients are deferred, wanted, settings, and then the operators'
# tensors: mean, log-variance, target, pixel weight and which images may be bootstrapped.
_BEFORE_TENSORS, _TENSORS = 3, 5


def _gradients(
    mean: Tensor, log_variance: Tensor, target: Tensor, wanted: _Wanted
) -> tuple[Tensor, ...]:
    dtype = accumulate_dtype(mean.dtype)
    return (
        torch.empty_like(mean) if wanted.grad_mean else mean.new_empty((0,)),
        torch.empty_like(log_variance) if wanted.grad_log_variance else mean.new_empty((0,)),
        mean.new_empty(target.shape if wanted.grad_pixel_weight else (0,), dtype=dtype),
    )


@fake("label_uncertainty_forward")
def _forward(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None,
    bootstrap: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    settings, wanted = _Settings(*others[:_OPTIONS]), _Wanted(*others[_OPTIONS:])
    shape = target.shape if settings.reduction == REDUCTIONS["none"] else ()
    return (
        mean.new_empty(shape, dtype=accumulate_dtype(mean.dtype)),
        mean.new_empty((), dtype=torch.float64),
        *_gradients(mean, log_variance, target, wanted),
    )


@fake("label_uncertainty_backward")
def _backward(
    grad_output: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None,
    bootstrap: Tensor | None,
    normalizer: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    return _gradients(mean, log_variance, target, _Wanted(*others[_OPTIONS:]))


refuse_gradient("label_uncertainty_forward", "label_uncertainty_backward")


def _keep(ctx: Any, inputs: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    ctx.deferred, ctx.wanted, ctx.settings, *tensors = inputs
    _, normalizer, *gradients = results
    ctx.set_materialize_grads(False)
    if ctx.deferred:
        ctx.save_for_backward(*tensors, normalizer)
    else:
        ctx.save_for_backward(*gradients, normalizer)


def _forward_call(
    deferred: bool, wanted: _Wanted, settings: _Settings, *tensors: Tensor | None
) -> tuple[Any, ...]:
    """The operator and its arguments, of a Function's inputs."""
    now = _NOTHING if deferred else wanted
    return ops.label_uncertainty_forward.default, *tensors, *settings, *now


class _LabelUncertainty(torch.autograd.Function):
    """Makes gradients in the forward pass, or keeps what recomputes them.

    A scalar loss knows its gradients up to the upstream factor, and then needs what it is of no
    more. float16 must wait: divided by the number of pixels most of its gradient would underflow
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
        if grad_output is None:
            return (None,) * (_BEFORE_TENSORS + _TENSORS)
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes at every read
        if torch.is_grad_enabled():
            with torch.no_grad():
                grads = _gradients_of(ctx, saved, grad_output)
            # The saved normalizer depends on the inputs: see above.
            grads = FirstDerivative.apply("label_uncertainty", saved[-1], grad_output, *grads)
        else:
            grads = _gradients_of(ctx, saved, grad_output)
        of_mean, of_log_variance, of_pixel_weight = (
            gradient if wanted else None for gradient, wanted in zip(grads, ctx.wanted, strict=True)
        )
        return None, None, None, of_mean, of_log_variance, None, of_pixel_weight, None


class _EagerLabelUncertainty(torch.autograd.Function):
    """The same where nothing traces and nothing is wrapped: what is kept need be no result."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = call_below_autograd(*_forward_call(*inputs))
        _keep(ctx, inputs, results)
        return results[:2]

    backward = _LabelUncertainty.backward


_eager_apply = eager_apply(_EagerLabelUncertainty)


def _gradients_of(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of mean, log-variance and pixel weight, empty where not wanted."""
    if not ctx.deferred:
        return scaled(saved[:-1], ctx.wanted, grad_output)
    grads: tuple[Tensor, ...] = call(
        ops.label_uncertainty_backward.default,
        grad_output.contiguous(),
        *saved,
        *ctx.settings,
        *ctx.wanted,
    )
    return grads


def label_uncertainty(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    bootstrap: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    options: LabelUncertaintyOptions,
) -> Tensor:
    """The weighted sum of both losses; see :class:`segunc_ops.LabelUncertaintyLoss`."""
    learns_variance = options.uncertainty_weight != 0 or not options.detach_weight
    if not learns_variance:
        log_variance = log_variance.detach()
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    wanted = _Wanted(
        enabled and mean.requires_grad,
        enabled and log_variance.requires_grad,
        enabled and pixel_weight is not None and pixel_weight.requires_grad,
    )
    tensors = (
        addressable(mean),
        addressable(log_variance),
        target.contiguous(),
        pixel_weight,
        None if bootstrap is None else bootstrap.contiguous(),
    )
    settings = _Settings(
        options.ignore_index,
        REDUCTIONS[options.reduction],
        options.threshold,
        options.uncertainty_weight,
        options.bootstrap_weight,
        options.detach_weight,
    )
    # An exported program would keep the operator and lose the Function around it: the operator's
    # own formula raises when such a program is differentiated.
    if wanted == _NOTHING or is_exporting():
        loss: Tensor = call(*_forward_call(True, wanted, settings, *tensors))[0]
        return loss
    deferred = options.reduction == "none" or mean.dtype == torch.float16
    apply = _eager_apply if is_eager() else _LabelUncertainty.apply
    losses = apply(deferred, wanted, settings, *tensors)
    return losses[0]
