"""Losses that are variations of cross-entropy: how they are called, and their papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.cross_entropy.cases import Case, matrices
from python_tests.interpolation import interpolate


class Loss(NamedTuple):
    """A function of :mod:`segunc_ops.functional`, with arguments of its own."""

    function: Callable[..., Tensor]
    arguments: dict[str, Any]
    logits: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Of the logits ``(N, C, *)``, the one-hot labels and the counts: those in the softmax."""
    factor: Callable[[Tensor], Tensor]
    """Of the probability of the labelled class."""
    takes_counts: bool = False
    smooths: bool = True
    by_size: bool = False
    magnitude: float = 1.0
    """What rounding errors are larger by than those of cross-entropy."""

    def call(self, case: Case, counts: Tensor) -> Tensor:
        """The library's answer."""
        given = (counts,) if self.takes_counts else ()
        smoothing = {"label_smoothing": case.label_smoothing} if self.smooths else {}
        return self.function(
            case.input,
            case.target,
            *given,
            case.weight,
            pixel_weight=case.pixel_weight,
            ignore_index=case.ignore_index,
            reduction=case.reduction,
            upsample=case.upsample,
            align_corners=case.align_corners,
            **smoothing,
            **self.arguments,
        )


def _same_logits(z: Tensor, one_hot: Tensor, n: Tensor) -> Tensor:
    return z


def _one(p: Tensor) -> Tensor:
    return torch.ones_like(p)


def _focal(gamma: float) -> Loss:
    return Loss(
        sf.focal_cross_entropy,
        {"gamma": gamma},
        _same_logits,
        lambda p: (1 - p) ** gamma,
        smooths=False,
        magnitude=1 + gamma,
    )


def _adaptive(factor: Callable[[Tensor], Tensor], magnitude: float, **arguments: Any) -> Loss:
    return Loss(
        sf.pixel_adaptive_cross_entropy,
        arguments,
        _same_logits,
        factor,
        by_size=arguments.get("size_normalized", True),
        magnitude=magnitude,
    )


def _shaped(values: Tensor, z: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (z.dim() - 2))


def _margins(n: Tensor) -> Tensor:
    return 0.4 * n**-0.25 / (n**-0.25).max()


LOSSES = {
    "focal": _focal(2.0),
    "focal, 1": _focal(1.0),
    "focal, 3.5": _focal(3.5),
    "PAT": _adaptive(lambda p: torch.exp((1 - p) / 20), 1.1),
    "PAT, steep": _adaptive(
        lambda p: torch.exp((1 - p - 0.1) / 0.5), 18.0, temperature=0.5, epsilon=0.1
    ),
    "PAT, table": _adaptive(
        lambda p: torch.exp(-(1 - p + 0.2) / 0.7), 3.0, temperature=0.7, epsilon=-0.2, curve="table"
    ),
    "PAT, not by size": _adaptive(
        lambda p: torch.exp((1 - p) / 2), 2.5, temperature=2.0, size_normalized=False
    ),
    "PAT, detached": _adaptive(
        lambda p: torch.exp((1 - p.detach()) / 2), 2.5, temperature=2, detach_weight=True
    ),
    "balanced softmax": Loss(
        sf.balanced_softmax_cross_entropy,
        {},
        lambda z, one_hot, n: z + _shaped(n.log(), z),
        _one,
        takes_counts=True,
        magnitude=3.0,
    ),
    "LDAM": Loss(
        sf.ldam_cross_entropy,
        {"max_margin": 0.4, "scale": 3.0},
        lambda z, one_hot, n: 3.0 * (z - one_hot * _shaped(_margins(n), z)),
        _one,
        takes_counts=True,
        magnitude=9.0,
    ),
    "LDAM, all": Loss(
        sf.ldam_cross_entropy,
        {"max_margin": 0.4, "scale": 3.0, "margin_on": "all"},
        lambda z, one_hot, n: 3.0 * (z - _shaped(_margins(n), z)),
        _one,
        takes_counts=True,
        magnitude=9.0,
    ),
}


def expected(loss: Loss, case: Case, counts: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The formulas in float64: the loss, and its gradients for what requires one."""
    leaf = case.input.detach().double().requires_grad_(case.input.requires_grad)
    u = case.pixel_weight
    if u is not None:
        u = u.detach().double().requires_grad_(u.requires_grad)
    z = leaf
    if case.upsample is not None:
        z = interpolate(leaf, matrices(case))
    valid = case.target != case.ignore_index
    labels = torch.where(valid, case.target.long(), 0)
    one_hot = F.one_hot(labels, z.shape[1]).movedim(-1, 1).double()
    z = torch.where(valid.unsqueeze(1), z, 0)
    log_p = F.log_softmax(loss.logits(z, one_hot, counts.double()), 1)
    w = torch.ones(z.shape[1]).double() if case.weight is None else case.weight.double()
    e = case.label_smoothing if loss.smooths else 0.0
    share = _shaped(w, z) * ((1 - e) * one_hot + e / z.shape[1])
    value = -(share * log_p).sum(1) * loss.factor((one_hot * log_p).sum(1).exp())
    if loss.by_size:
        sizes = (one_hot * valid.unsqueeze(1)).reshape(*z.shape[:2], -1).sum(2)
        value = value / sizes.clamp(min=1).gather(1, labels.unsqueeze(-1).flatten(1)).view_as(value)
    if u is not None:
        value = value * torch.where(valid, u, 0)
    value = torch.where(valid, value, 0)
    if case.reduction == "mean_all":
        value = value.sum() / value.numel()
    elif case.reduction == "mean" and loss.by_size:
        value = value.sum() / len(value)
    elif case.reduction == "mean":
        value = value.sum() / torch.where(valid, w[labels], 0).sum()
    elif case.reduction == "sum":
        value = value.sum()
    leaves = [x for x in (leaf, u) if x is not None and x.requires_grad]
    if not leaves:
        return value.detach(), []
    return value.detach(), [*torch.autograd.grad(value, leaves, case.upstream.double())]
