"""torch.autograd.Functions: what is saved for backward and what flows back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from ._library import ops

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "mean_all": 3}

# Absent from some torch versions: then gradients are scaled out of place, at twice the memory.
_keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _exporting_flag() -> bool:
    return torch.compiler._is_exporting_flag


# While torch.compile traces, torch before 2.13 answers True to torch.compiler.is_exporting(),
# whether it exports or not; the flag behind that function is right.
_is_exporting = (
    _exporting_flag if TorchVersion(torch.__version__) < "2.13" else torch.compiler.is_exporting
)


def _is_eager() -> bool:
    """Whether tensors are what they seem, neither traced nor wrapped by torch.func."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def _call(op: Any, *args: Any) -> Any:
    """Calls an operator past its autograd formula, which is there for tracing alone and slow."""
    if not _is_eager():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


class _FirstDerivative(torch.autograd.Function):
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


def _operator(name: str) -> Any:
    return getattr(ops, name).default


class _CrossEntropy(torch.autograd.Function):
    """Of the operators NAME_forward and NAME_backward.

    Makes the gradient in the forward pass, or keeps what recomputes it.

    A scalar loss knows its gradient up to the upstream factor while the logits are in cache, and
    then needs them no more. float16 must wait: divided by the number of pixels most of its
    gradient would underflow before GradScaler's factor arrives.
    """

    @staticmethod
    def forward(
        name: str,
        deferred: bool,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        *options: Any,
    ) -> Any:
        *others, grad_input, grad_pixel_weight = options
        return _call(
            _operator(f"{name}_forward"),
            input,
            target,
            weight,
            pixel_weight,
            *others,
            grad_input and not deferred,
            grad_pixel_weight and not deferred,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operator, ctx.deferred, input, target, weight, pixel_weight, *ctx.options = inputs
        _, normalizer, grad_input, grad_pixel_weight = output
        # The normalizer stays differentiable in form. It ties gradients to the inputs under
        # create_graph=True at no memory, so that a second derivative meets _FirstDerivative
        # instead of a silent constant.
        ctx.mark_non_differentiable(grad_input, grad_pixel_weight)
        ctx.set_materialize_grads(False)
        if ctx.deferred:
            ctx.save_for_backward(input, target, weight, pixel_weight, normalizer)
        else:
            ctx.save_for_backward(grad_input, grad_pixel_weight, normalizer)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        *_, of_input, of_pixel_weight = ctx.options
        none = (None,) * len(ctx.options)
        if grad_output is None:
            return (None,) * 6 + none
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes at every read
        if torch.is_grad_enabled():
            with torch.no_grad():
                grads = _cross_entropy_gradients(ctx, saved, grad_output)
            # The saved normalizer depends on the inputs: see setup_context.
            grads = _FirstDerivative.apply("cross_entropy", saved[-1], grad_output, *grads)
        else:
            grads = _cross_entropy_gradients(ctx, saved, grad_output)
        grad_input = grads[0] if of_input else None
        grad_pixel_weight = grads[1] if of_pixel_weight else None
        return (None, None, grad_input, None, None, grad_pixel_weight, *none)


def _cross_entropy_gradients(
    ctx: Any, saved: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of input and pixel weight, empty where not wanted."""
    if ctx.deferred:
        backward = _operator(f"{ctx.operator}_backward")
        grads: tuple[Tensor, ...] = _call(backward, grad_output.contiguous(), *saved, *ctx.options)
        return grads
    grads = saved[:2]
    # In place where nobody can see the saved gradient again after this backward.
    if not _is_eager() or _keep_graph():
        return tuple((grad * grad_output).to(grad.dtype) for grad in grads)
    for grad in grads:
        if grad.numel():
            _call(ops.scale_.default, grad, grad_output)
    return grads


# Function.apply without its inspection of signatures, which costs more than a small call itself.
_apply_cross_entropy = super(torch.autograd.Function, _CrossEntropy).apply


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool | None,
) -> Tensor:
    """The native cross-entropy of validated arguments, in the type it is computed in.

    `align_corners` is None where the logits are not interpolated.
    """
    # Inside a Function ctx.needs_input_grad is True for leaves even under no_grad.
    enabled = torch.is_grad_enabled()
    grad_input = enabled and input.requires_grad
    grad_pixel_weight = enabled and pixel_weight is not None and pixel_weight.requires_grad
    tensors = (input, target, weight, pixel_weight)
    options: tuple[Any, ...] = (ignore_index, REDUCTIONS[reduction], label_smoothing)
    name = "cross_entropy"
    if align_corners is not None:
        name, options = "upsampled_cross_entropy", (*options, align_corners)
    # An exported program would keep the operator and lose the Function around it: the operator's
    # own formula raises when such a program is differentiated.
    if not (grad_input or grad_pixel_weight) or _is_exporting():
        loss: Tensor = _call(_operator(f"{name}_forward"), *tensors, *options, False, False)[0]
        return loss
    deferred = reduction == "none" or input.dtype == torch.float16
    apply = _apply_cross_entropy if _is_eager() else _CrossEntropy.apply
    losses = apply(name, deferred, *tensors, *options, grad_input, grad_pixel_weight)
    return losses[0]


class _ComponentMean(torch.autograd.Function):
    """A linear and self-adjoint map, hence its own derivative of any order."""

    @staticmethod
    def forward(
        values: Tensor,
        labels: Tensor,
        connectivity: int,
        ignore_index: int | None,
        bound: float | None,
    ) -> Tensor:
        mean: Tensor = _call(
            ops.component_mean.default, values, labels, connectivity, ignore_index, bound
        )
        return mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, labels, *ctx.options, _ = inputs
        ctx.save_for_backward(labels)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (labels,) = ctx.saved_tensors
        # Of gradients no bound is known.
        grad = _ComponentMean.apply(grad_output.contiguous(), labels, *ctx.options, None)
        return grad, None, None, None, None


def component_mean(
    values: Tensor,
    labels: Tensor,
    connectivity: int,
    ignore_index: int | None,
    bound: float | None,
) -> Tensor:
    """The native component mean of validated, contiguous arguments."""
    options = (connectivity, ignore_index, bound)
    if _is_exporting() or not (torch.is_grad_enabled() and values.requires_grad):
        mean: Tensor = _call(ops.component_mean.default, values, labels, *options)
    else:
        mean = _ComponentMean.apply(values, labels, *options)
    return mean
