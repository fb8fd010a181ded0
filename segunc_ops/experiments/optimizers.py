"""The optimizers that `segunc train` knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Groups = list[dict[str, Any]]
"""Parameters, each group with its learning rate."""


@dataclass(frozen=True)
class TrainedBy:
    """An optimizer, with the learning rates that the networks of these experiments learn by."""

    learning_rate: float
    """Of the encoder."""
    decoder_factor: float
    """How many times as fast the decoder learns."""
    moments: int
    """Tensors that it keeps of each parameter."""
    make: Callable[[Groups, float, float], torch.optim.Optimizer]
    """From groups, momentum and weight decay."""


def _sgd(groups: Groups, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)


def _adamw(groups: Groups, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    betas = (momentum, 0.999)
    return torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay, fused=True)


OPTIMIZERS = {
    "sgd": TrainedBy(0.01, 10.0, 1, _sgd),
    "adamw": TrainedBy(0.004, 1.0, 2, _adamw),
}
