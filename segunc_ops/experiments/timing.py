"""Time of the loss alone: native kernels against the pure-PyTorch reference, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..functional import PredictiveStatistics, predictive_statistics
from ..heads import GaussianLogits


@dataclass(frozen=True)
class LossTime:
    """Median seconds of the loss on one batch of logits."""

    shape: tuple[int, ...]
    """Of the logits."""
    size: tuple[int, ...]
    """Of the labels, which they are interpolated to."""
    step: float
    """Forward and backward."""
    reference_step: float
    statistics: float | None
    """Statistics of `num_samples` such logits; None for a loss that needs none."""
    reference_statistics: float | None
    num_samples: int


def _median_pair(
    run: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Medians of native and reference, timed alternately so that both see the same machine."""
    times: dict[str, list[float]] = {"auto": [], "reference": []}
    for repeat in range(repeats + 1):
        for name, taken in times.items():
            with backend(name):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                started = time.perf_counter()
                run()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat:
                    taken.append(time.perf_counter() - started)
    return statistics.median(times["auto"]), statistics.median(times["reference"])


def time_loss(
    loss: Callable[[Any, Tensor, PredictiveStatistics | None], Tensor],
    logits: Tensor | GaussianLogits,
    target: Tensor,
    sampled: PredictiveStatistics | None,
    *,
    num_samples: int = 10,
    repeats: int = 9,
) -> LossTime:
    """Times a loss on real logits.

    Args:
        loss: maps logits, target and statistics to a scalar.
        logits: (N, C, h, w), as the model gives them, or their mean and spread.
        target: (N, H, W), to whose size the loss interpolates.
        sampled: statistics for a loss that needs them; their own computation from `num_samples`
            logits is then timed too.
        num_samples: S.
        repeats: timed repetitions; one more warms up.
    """
    distribution = isinstance(logits, GaussianLogits)
    parts = [*logits] if isinstance(logits, GaussianLogits) else [logits]
    leaves = [part.detach().requires_grad_() for part in parts]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(GaussianLogits(*leaves) if distribution else leaves[0], target, sampled).backward()

    mean = leaves[0].detach()
    native, reference = _median_pair(step, mean.device, repeats)
    native_statistics = reference_statistics = None
    if sampled is not None:
        samples = [torch.randn_like(mean).add_(mean) for _ in range(num_samples)]
        native_statistics, reference_statistics = _median_pair(
            lambda: predictive_statistics(samples, size=target.shape[1:]),
            mean.device,
            max(3, repeats // 3),
        )
    return LossTime(
        shape=tuple(mean.shape),
        size=tuple(target.shape[1:]),
        step=native,
        reference_step=reference,
        statistics=native_statistics,
        reference_statistics=reference_statistics,
        num_samples=num_samples,
    )
