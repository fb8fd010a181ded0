"""Cross-entropy: its gradient is made in the forward pass, or by what is kept for backward."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import accumulate_dtype
from .._native.library import fake, ops, refuse_gradient
from .._options import LossOptions
from .._torch import call_below_autograd, eager_apply, is_eager, is_exporting, keeps_graph
from .._variations import PLAIN, Focal, Variation, is_size_normalized
from .common import (
    REDUCTIONS,
    addressable,
    call,
    class_sizes,
    first_derivatives,
    scaled,
    taken_over,
)

__all__ = ["cross_entropy"]

# By the numbers of csrc: Reduction (common/reduction.h), ModulationKind (math/modulation.h) and
# NoiseKind (math/philox.h).
_MEAN_IMAGES = 4
_FOCAL, _FALLING, _RISING = 1, 2, 3
_NOISES = {"normal": 1, "uniform": 2}


class _Settings(NamedTuple):
    """The options that are no tensors, as the operators take them and in their order."""

    ignore_index: int
    reduction: int
    label_smoothing: float
    interpolate: bool
    align_corners: bool


class _Varied(NamedTuple):
    """What the operators take last, if a loss is not plain: see csrc/cross_entropy/params.h."""

    image_factor: Tensor | None = None
    offset: Tensor | None = None
    noise_seed: Tensor | None = None
    modulation: int = 0
    modulation_rate: float = 0.0
    modulation_peak: float = 1.0
    detach_modulation: bool = False
    logit_scale: float = 1.0
    offset_on_target: bool = False
    noise: int = 0
    noise_sigma: float = 0.0


class _Plan(NamedTuple):
    """How the gradient of the logits is made."""

    deferred: bool
    """In the backward pass."""
    overwrites: bool
    """In the logits' own memory."""

    @property
    def overwrites_now(self) -> bool:
        """Whether the forward pass does."""
        return self.overwrites and not self.deferred


class _Wanted(NamedTuple):
    """Which gradients there are to be, the operators' last arguments."""

    grad_input: bool
    grad_pixel_weight: bool


_NOTHING = _Wanted(False, False)
_OPTIONS = len(_Settings._fields)
_FLAGS = _OPTIONS + len(_Wanted._fields)
# Of the Functions: plan, wanted, settings, input, target, weight and pixel weight, before what
# varies the loss; of that, tensors come first.
_INPUTS = 7
_TENSORS = 3


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
    settings, wanted = _Settings(*others[:_OPTIONS]), _Wanted(*others[_OPTIONS:_FLAGS])
    shape = target.shape if settings.reduction == REDUCTIONS["none"] else ()
    return (
        input.new_empty(shape, dtype=accumulate_dtype(input.dtype)),
        input.new_empty((), dtype=torch.float64),
        *_gradients(input, target, wanted),
    )


@fake("cross_entropy_forward_")
def _overwriting_forward(input: Tensor, *others: Any) -> tuple[Tensor, ...]:
    loss, normalizer, _, of_pixel_weight = _forward(input, *others)
    return loss, normalizer, input.new_empty((0,)), of_pixel_weight


@fake("cross_entropy_backward")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    normalizer: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    return _gradients(input, target, _Wanted(*others[_OPTIONS:_FLAGS]))


@fake("cross_entropy_backward_")
def _overwriting_backward(
    grad_output: Tensor, input: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return input.new_empty((0,)), _backward(grad_output, input, *others)[1]


refuse_gradient("cross_entropy_forward", "cross_entropy_backward")


def _keep(ctx: Any, inputs: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    ctx.plan, ctx.wanted, ctx.settings, *tensors = inputs[:_INPUTS]
    varied = inputs[_INPUTS:]
    _, normalizer, grad_input, grad_pixel_weight = results
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)
    if ctx.plan.deferred:
        ctx.save_for_backward(*tensors, normalizer, *varied[:_TENSORS])
        ctx.varied = varied[_TENSORS:]
    else:
        ctx.save_for_backward(grad_input, grad_pixel_weight, normalizer)


def _forward_call(
    plan: _Plan,
    wanted: _Wanted,
    settings: _Settings,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    *varied: Any,
) -> tuple[Any, ...]:
    """The operator and its arguments, of a Function's inputs."""
    now = _NOTHING if plan.deferred else wanted
    over = plan.overwrites_now
    forward = ops.cross_entropy_forward_ if over else ops.cross_entropy_forward
    return forward.default, input, target, weight, pixel_weight, *settings, *now, *varied


def _with_gradient(plan: _Plan, results: tuple[Tensor, ...], input: Tensor) -> tuple[Tensor, ...]:
    """An operator's results, with the gradient that it has written over the input, if it has."""
    if plan.overwrites_now:
        loss, normalizer, _, grad_pixel_weight = results
        return loss, normalizer, input, grad_pixel_weight
    return results


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
    def forward(
        plan: _Plan, wanted: _Wanted, settings: _Settings, input: Tensor, *rest: Any
    ) -> Any:
        if plan.overwrites:
            input = input.clone()  # which a compiler leaves out where nothing else reads the logits
        results = call(*_forward_call(plan, wanted, settings, input, *rest))
        return _with_gradient(plan, results, input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * ctx.num_inputs
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes at every read
        # The saved normalizer depends on the inputs: see above.
        normalizer = saved[4] if ctx.plan.deferred else saved[2]
        grads = first_derivatives(
            "cross_entropy", normalizer, _gradients_of, ctx, saved, grad_output
        )
        of_input = grads[0] if ctx.wanted.grad_input else None
        of_pixel_weight = grads[1] if ctx.wanted.grad_pixel_weight else None
        nothing = (None,) * (ctx.num_inputs - _INPUTS)
        return None, None, None, of_input, None, None, of_pixel_weight, *nothing


class _EagerCrossEntropy(torch.autograd.Function):
    """The same where nothing traces and nothing is wrapped: what is kept need be no result.

    Each result and each call of Python is a part of what a small loss costs.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        plan, wanted, settings, input, *rest = inputs
        if plan.overwrites:
            input = taken_over(input)
            inputs = plan, wanted, settings, input, *rest
        results: tuple[Tensor, ...] = call_below_autograd(*_forward_call(*inputs))
        results = _with_gradient(plan, results, input)
        _keep(ctx, inputs, results)
        return results[:2]

    backward = _CrossEntropy.backward


_eager_apply = eager_apply(_EagerCrossEntropy)


def _gradients_of(ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of input and pixel weight, empty where not wanted."""
    if ctx.plan.deferred:
        tensors, varied = saved[:5], saved[5:]
        over = ctx.plan.overwrites and not keeps_graph()
        backward = ops.cross_entropy_backward_ if over else ops.cross_entropy_backward
        grads: tuple[Tensor, ...] = call(
            backward.default,
            grad_output.contiguous(),
            *tensors,
            *ctx.settings,
            *ctx.wanted,
            *varied,
            *ctx.varied,
        )
        return (tensors[0], grads[1]) if over else grads
    return scaled(saved[:2], ctx.wanted, grad_output)


def _varied(
    input: Tensor, target: Tensor, variation: Variation, ignore_index: int
) -> tuple[Any, ...]:
    """What a loss that is not plain adds to the operators' arguments."""
    modulation, adjustment = variation
    if modulation is None and adjustment is None:
        return ()
    varied = _Varied(_image_factor(input, target, variation, ignore_index))
    if isinstance(modulation, Focal):
        varied = varied._replace(modulation=_FOCAL, modulation_rate=modulation.gamma)
    elif modulation is not None:
        falls = modulation.curve == "equation"
        rate, epsilon = 1 / modulation.temperature, modulation.epsilon
        varied = varied._replace(
            modulation=_FALLING if falls else _RISING,
            modulation_rate=rate,
            # exp((1 - p - epsilon) / T), or its inverse, without what depends on p.
            modulation_peak=math.exp(rate * (1 - epsilon if falls else epsilon)),
            detach_modulation=modulation.detached,
        )
    if adjustment is not None:
        varied = varied._replace(
            offset=adjustment.offset,
            logit_scale=adjustment.scale,
            offset_on_target=adjustment.on_target,
        )
        if adjustment.noise is not None:
            varied = varied._replace(
                noise_seed=adjustment.noise.seed,
                noise=_NOISES[adjustment.noise.distribution],
                noise_sigma=adjustment.noise.sigma,
            )
    return varied


def _image_factor(
    input: Tensor, target: Tensor, variation: Variation, ignore_index: int
) -> Tensor | None:
    """1 by the pixels of each class and image, ``(N, C)``, if a loss has that factor."""
    if not is_size_normalized(variation):
        return None
    sizes = class_sizes(target, input.shape[1], ignore_index)
    return sizes.clamp_(min=1).to(accumulate_dtype(input.dtype)).reciprocal_()


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    options: LossOptions,
    variation: Variation = PLAIN,
) -> Tensor:
    """Weighted cross-entropy; see :func:`segunc_ops.functional.cross_entropy`."""
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    wanted = _Wanted(
        enabled and input.requires_grad,
        enabled and pixel_weight is not None and pixel_weight.requires_grad,
    )
    target = target.contiguous()
    tensors = addressable(input), target, options.weight, pixel_weight
    by_images = is_size_normalized(variation) and options.reduction == "mean"
    settings = _Settings(
        options.ignore_index,
        _MEAN_IMAGES if by_images else REDUCTIONS[options.reduction],
        options.label_smoothing,
        options.upsample is not None,
        options.align_corners,
    )
    varied = _varied(input, target, variation, options.ignore_index)
    # An exported program would keep the operator and lose the Function around it: the operator's
    # own formula raises when such a program is differentiated.
    if wanted == _NOTHING or is_exporting():
        untouched = _Plan(deferred=True, overwrites=False)
        loss: Tensor = call(*_forward_call(untouched, wanted, settings, *tensors, *varied))[0]
        return loss
    eager = is_eager()
    deferred = options.reduction == "none" or input.dtype == torch.float16
    overwrites = options.overwrite_input and wanted.grad_input
    if not eager:  # a compiler cannot be shown that nobody else reads the logits before backward
        overwrites = overwrites and torch.compiler.is_compiling() and not deferred
    plan = _Plan(deferred, overwrites)
    apply = _eager_apply if eager else _CrossEntropy.apply
    losses = apply(plan, wanted, settings, *tensors, *varied)
    return losses[0]
