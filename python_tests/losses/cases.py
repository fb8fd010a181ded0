"""Batches for the losses, and their formulas in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from python_tests.support import IGNORED
from segunc_ops import (
    CrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)

UNCERTAINTY_LOSSES = (UncertaintyAwareCrossEntropyLoss, InstanceUncertaintyCrossEntropyLoss)
LOSSES = (CrossEntropyLoss, *UNCERTAINTY_LOSSES)


class Batch:
    """Logits (N, C, H, W), labels with ignored pixels, class weights and a std map."""

    def __init__(self, dtype: torch.dtype = torch.float64, size: tuple[int, ...] = (5, 7)):
        generator = torch.Generator().manual_seed(0)
        shape = (3, *size)
        self.input = 2 * torch.randn(3, 6, *size, generator=generator, dtype=torch.float64)
        self.input = self.input.to(dtype).requires_grad_()
        self.target = torch.randint(0, 6, shape, generator=generator)
        self.target[torch.rand(shape, generator=generator) < 0.2] = IGNORED
        self.weight = torch.rand(6, generator=generator, dtype=torch.float64) + 0.5
        self.std = 0.7 * torch.rand(shape, generator=generator, dtype=torch.float64)
        self.valid = self.target != IGNORED

    @property
    def arguments(self) -> tuple[Tensor, Tensor]:
        return self.input, self.target


def expected_loss(
    batch: Batch,
    pixel_weight: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    smoothing: float = 0.0,
) -> Tensor:
    """The formula in float64, pixel by pixel."""
    z = batch.input.double().movedim(1, -1)
    total, normalizer, each = z.new_zeros(()), 0.0, torch.zeros_like(batch.std)
    for index in batch.valid.nonzero().tolist():
        at, label = tuple(index), int(batch.target[tuple(index)])
        w = torch.ones(6, dtype=torch.float64) if weight is None else weight.double()
        surprise = torch.logsumexp(z[at], 0) - z[at]
        loss = (1 - smoothing) * w[label] * surprise[label] + smoothing / 6 * (w * surprise).sum()
        if pixel_weight is not None:
            loss = loss * pixel_weight[at].double()
        total = total + loss
        each[at] = loss.detach()
        normalizer += float(w[label])
    if reduction == "none":
        return each
    return total / {"sum": 1, "mean": normalizer, "mean_all": batch.target.numel()}[reduction]


def u_ce_weight(std: Tensor, alpha: float) -> Tensor:
    return torch.exp(alpha * torch.log1p(std.double()))


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3)
        )
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))
