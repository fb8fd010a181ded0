"""Losses of every family whose gradient may be written over the logits, and logits for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.support import IGNORED, LAYOUTS

CLASSES = 5
COUNTS = torch.tensor([400.0, 30.0, 20.0, 5.0, 100.0])


@dataclass(frozen=True)
class Loss:
    """A function of logits and targets, with whatever else it takes."""

    function: Callable[..., Tensor]
    arguments: dict[str, Any]
    of_regions: bool = False

    def __call__(self, x: Tensor, target: Tensor, **options: Any) -> Tensor:
        ignoring = {} if self.of_regions else {"ignore_index": IGNORED}
        return self.function(x, target, **self.arguments, **ignoring, **options)

    def without_weights(self) -> Loss:
        """The same of any number of classes."""
        kept = {name: value for name, value in self.arguments.items() if name != "weight"}
        return replace(self, arguments=kept)

    def on(self, device: str) -> Loss:
        """The same of logits on a device."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.arguments.items()}
        return replace(self, arguments=moved)

    def targets(self, x: Tensor) -> Tensor:
        if self.of_regions:
            return torch.rand(x.shape) < 0.4
        target = torch.randint(0, x.shape[1], (x.shape[0], *x.shape[2:]))
        return target.masked_fill(torch.rand(target.shape) < 0.2, IGNORED)


LOSSES = {
    "cross_entropy": Loss(sf.cross_entropy, {"label_smoothing": 0.1, "weight": COUNTS}),
    "per pixel": Loss(sf.cross_entropy, {"reduction": "none"}),
    "focal": Loss(sf.focal_cross_entropy, {"gamma": 1.5}),
    "PAT": Loss(sf.pixel_adaptive_cross_entropy, {}),
    "balanced softmax": Loss(sf.balanced_softmax_cross_entropy, {"counts": COUNTS}),
    "LDAM": Loss(sf.ldam_cross_entropy, {"counts": COUNTS}),
    "BLV": Loss(sf.logit_variation_cross_entropy, {"counts": COUNTS, "seed": 3}),
    "Dice": Loss(sf.dice_cross_entropy, {"batch": True, "squared": True}),
    "regions": Loss(sf.dice_bce, {}, of_regions=True),
}


def made(features: Tensor) -> Tensor:
    """Logits of the same values and layout, by what does not keep them."""
    return features.clone()


def leaf(
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    size: tuple[int, ...] = (6, 7),
    classes: int = CLASSES,
) -> Tensor:
    values = (3 * torch.randn(2, classes, *size)).to(dtype)
    return LAYOUTS[layout].make(values).requires_grad_()


def outcome(loss: Loss, x: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The loss and the gradients of the logits and of pixel weights, a map."""
    u = torch.linspace(0.5, 2, x[:, 0].numel(), device=x.device)
    u = u.view(x[:, 0].shape).requires_grad_()
    value = loss(made(x), target, pixel_weight=u, **options)
    return value.detach(), *torch.autograd.grad(value.sum() * 2.5, (x, u))
