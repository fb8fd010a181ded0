"""Connected components and means over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._native.library import fake, linear_gradient, ops
from .._torch import is_exporting
from .common import call

__all__ = ["component_mean", "connected_components"]


@fake("connected_components")
def _components(
    labels: Tensor, connectivity: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    return (
        labels.new_empty(labels.shape, dtype=torch.int32),
        labels.new_empty(labels.shape[:1], dtype=torch.int64),
    )


@fake("component_mean")
def _mean(
    values: Tensor, labels: Tensor, connectivity: int, ignore_index: int | None, bound: float | None
) -> Tensor:
    return values.new_empty(values.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, labels, ctx.connectivity, ctx.ignore_index, _ = inputs
    ctx.save_for_backward(labels)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (labels,) = ctx.saved_tensors
    grad = ops.component_mean(grad.contiguous(), labels, ctx.connectivity, ctx.ignore_index, None)
    return grad, None, None, None, None


linear_gradient("component_mean", _backward, _setup_context)


def connected_components(
    labels: Tensor, connectivity: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Ids and their number; see :func:`segunc_ops.functional.connected_components`."""
    components, counts = ops.connected_components(labels, connectivity, ignore_index)
    return components, counts


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
        mean: Tensor = call(
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
    bound: float | None = None,
) -> Tensor:
    """Means over components; see :func:`segunc_ops.functional.component_mean`."""
    values, options = values.contiguous(), (connectivity, ignore_index, bound)
    if is_exporting() or not (torch.is_grad_enabled() and values.requires_grad):
        mean: Tensor = call(ops.component_mean.default, values, labels, *options)
    else:
        mean = _ComponentMean.apply(values, labels, *options)
    return mean
