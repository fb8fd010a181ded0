"""Batches of uncertain binary labels, and their losses by the closed formulas in 60 digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import torch
from mpmath import mp, mpf
from torch import Tensor

import segunc_ops
from python_tests.comparison import accumulate_dtype, assert_close
from python_tests.support import IGNORED
from segunc_ops._label_uncertainty import LabelUncertaintyOptions
from segunc_ops.functional.label_uncertainty import label_uncertainty_with

LEAVES = ("mean", "log_variance", "pixel_weight")


class Batch(NamedTuple):
    """What a loss is of; leaves require a gradient."""

    mean: Tensor
    """``(N, 1, *)``, as is the next one."""
    log_variance: Tensor
    target: Tensor
    """``(N, *)``."""
    bootstrap: Tensor
    u: Tensor

    def leaves(self, weighted: bool = True) -> tuple[Tensor, ...]:
        return (self.mean, self.log_variance, *((self.u,) if weighted else ()))


def batch(
    dtype: torch.dtype = torch.float32,
    size: tuple[int, ...] = (5, 7),
    images: int = 3,
    ignored: float = 0.2,
    target_dtype: torch.dtype = torch.int64,
    spread: float = 2.0,
) -> Batch:
    shape = (images, 1, *size)
    mean = (spread * torch.randn(shape)).to(dtype).requires_grad_()
    log_variance = (spread * torch.randn(shape)).to(dtype).requires_grad_()
    target = torch.randint(0, 2, (images, *size)).to(target_dtype)
    target[torch.rand(target.shape) < ignored] = IGNORED
    bootstrap = torch.arange(images) % 3 != 1
    u = torch.rand(target.shape, dtype=accumulate_dtype(dtype)).requires_grad_()
    return Batch(mean, log_variance, target, bootstrap, u)


def loss_of(b: Batch, weighted: bool = True, exact_images: bool = True, **options: Any) -> Tensor:
    """The loss with a threshold of 1 unless there is another."""
    given = {"threshold": 1.0, "ignore_index": IGNORED, **options}
    return label_uncertainty_with(
        LabelUncertaintyOptions(**given),
        b.mean,
        b.log_variance,
        b.target,
        b.bootstrap if exact_images else None,
        b.u if weighted else None,
    )


def gradients_of(
    loss: Tensor, b: Batch, upstream: Tensor | None = None, weighted: bool = True
) -> list[Tensor | None]:
    """Those of the leaves, None where nothing flows: a constant weight leaves the variance out."""
    return [*torch.autograd.grad(loss, b.leaves(weighted), upstream, allow_unused=True)]


def truth_of(
    b: Batch, upstream: Tensor, weighted: bool = True, **options: Any
) -> tuple[Tensor, list[Tensor | None]]:
    """The reference's loss in float64, and its gradients."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in b.leaves()]
    exact = b._replace(mean=leaves[0], log_variance=leaves[1], u=leaves[2])
    with segunc_ops.backend("reference"):
        loss = loss_of(exact, weighted, **options)
    return loss.detach(), gradients_of(loss, exact, upstream.double(), weighted)


def compare(
    b: Batch, weighted: bool = True, *, move: Callable[[Batch], Batch] | None = None, **options: Any
) -> None:
    """Loss and gradients, of upstream gradients that are not 1, against the reference.

    Args:
        move: takes the batch to where it is computed.
    """
    there = b if move is None else move(b)
    loss = loss_of(there, weighted, **options)
    upstream = (torch.rand(loss.shape) - 2.5).to(loss.dtype)
    found = gradients_of(loss, there, upstream.to(loss.device), weighted)
    truth, wanted = truth_of(b, upstream, weighted, **options)
    compute = accumulate_dtype(b.mean.dtype)
    mean, variance = b.mean.detach().double(), b.log_variance.detach().double().exp()
    # Units of the losses are the logits' sizes. An error of W's argument is one of W's own size.
    size = 1 + float(mean.abs().max())
    assert_close(loss.cpu(), truth, name="loss", scale=size, compute=compute, bias=False)
    units = size + (variance / 0.2).clamp(max=90)
    # A gradient that is made in the forward pass is rounded before it meets the upstream one.
    roundings = 2 if b.mean.dtype == torch.bfloat16 and not loss.dim() else 1
    shared: dict[str, Any] = {"compute": compute, "roundings": roundings, "bias": False}
    for name, a, w in zip(LEAVES, found, wanted, strict=False):
        assert (a is None) == (w is None), name
        if a is None or w is None:
            continue
        scale = float((w.abs() * units.view_as(w)).max())
        assert_close(a.cpu(), w, name=name, scale=scale, **shared)


class Exact(NamedTuple):
    """The numbers of one pixel, in float64."""

    loss: float
    by_mean: float
    by_log_variance: float


def _bce(p: Any, y: int) -> Any:
    return -mpmath.log(p if y == 1 else 1 - p)


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + mpmath.exp(-z))


def closed_formula(mean: float, log_variance: float, y: int, may_flip: bool, o: Any) -> Exact:
    """By the formulas as they are written, differentiated numerically.

    Args:
        o: the options.
    """
    with mp.workdps(90):
        at = mpf(mean), mpf(log_variance)

        def kept(log_variance: Any) -> Any:
            if not may_flip:
                return mpf(1)
            return _sigmoid((mpf(o.threshold) - mpmath.exp(log_variance)) / mpf("0.2"))

        def loss(mean: Any, log_variance: Any) -> Any:
            variance = mpmath.exp(log_variance)
            total = mpf(0)
            if o.uncertainty_weight:
                expected = _sigmoid(mean / mpmath.sqrt(1 + mpmath.pi * variance / 8))
                total += o.uncertainty_weight * _bce(expected, y)
            if o.bootstrap_weight:
                w = kept(at[1] if o.detach_weight else log_variance)
                p = _sigmoid(mean)
                total += o.bootstrap_weight * (w * _bce(p, y) + (1 - w) * _bce(p, 1 - y))
            return total

        slopes = [mpmath.diff(loss, at, order) for order in ((1, 0), (0, 1))]
        return Exact(*(float(v) for v in (loss(*at), *slopes)))


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator of the family, for torch.library.opcheck."""

    def inputs(b: Batch) -> tuple[Tensor, ...]:
        return b.mean.detach(), b.log_variance.detach(), b.target

    b, volume = batch(), batch(torch.bfloat16, (2, 3, 4), target_dtype=torch.int32)
    swapped = b._replace(log_variance=b.log_variance.detach().mT.contiguous().mT)
    u = b.u.detach()
    none, mean, sum_ = (IGNORED, 0), (IGNORED, 1), (IGNORED, 2)
    both, one = (1.0, 1.0, 0.5, False), (0.0, 1.0, 0.0, True)
    every, nothing = (True, True, True), (False, False, False)
    normalizer = torch.tensor(7.0).double()
    return {
        "label_uncertainty_forward": [
            (*inputs(b), None, None, *mean, *both, True, True, False),
            (*inputs(swapped), u, b.bootstrap, *sum_, *both, *every),
            (*inputs(b), u, b.bootstrap, *none, *one, *nothing),
            (*inputs(volume), None, None, *mean, *one, True, False, False),
        ],
        "label_uncertainty_backward": [
            (torch.tensor(2.0), *inputs(swapped), u, b.bootstrap, normalizer, *mean, *both, *every),
            (torch.rand(b.target.shape), *inputs(b), u, None, normalizer, *none, *both, *every),
            (
                torch.tensor(2.0),
                *inputs(volume),
                None,
                None,
                normalizer,
                *sum_,
                *one,
                False,
                True,
                False,
            ),
        ],
    }
