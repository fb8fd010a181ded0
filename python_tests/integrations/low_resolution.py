"""What the tests of networks that interpolate before their loss share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segunc_ops import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)

CLASSES, SIZE, IGNORED = 5, 64, 255

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "CE": CrossEntropyLoss,
    "U-CE": UncertaintyAwareCrossEntropyLoss,
    "IU": InstanceUncertaintyCrossEntropyLoss,
    "PAT": PixelAdaptiveCrossEntropyLoss,
    "Dice + CE": DiceCrossEntropyLoss.monai,
}
SAMPLED = ("U-CE", "IU")


def batch(count: int = 2, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Images, whose colours tell the class, and labels, of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, CLASSES, (count, 4, 4), generator=generator)
    labels = coarse.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    colours = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(1))
    images = colours[labels].movedim(-1, 1)
    images = images + 0.3 * torch.randn(images.shape, generator=generator)
    labels[:, : size // 8] = IGNORED
    return images, labels


def train(
    model: nn.Module, criterion: Callable[[Any, Tensor], Tensor], steps: int = 3, lr: float = 0.02
) -> list[float]:
    """The losses of a loop that knows of nothing but ``criterion(model(images), labels)``."""
    images, labels = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
