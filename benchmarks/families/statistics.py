"""Predictive statistics of S samples: in one call, streamed, and by the peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import PredictiveAccumulator, reference

from ..cases import COMPILED, EAGER, MAX_AUTOTUNE, OURS, PLAIN, STREAMED, Case
from ..timing import Call
from ..workload import Workload, compiled, in_turn

# Absolute: probabilities and entropies are of order one. Where the two best classes are closer
# than this in float64, which of them is the prediction is a matter of rounding.
_MAP_TOLERANCE = 1e-4

_Maps = tuple[Tensor, ...]
_Size = tuple[int, int] | None  # that the logits are interpolated to


def _streamed_statistics(samples: Tensor, size: _Size) -> _Maps:
    """Sample by sample, each forgotten before the next: none but the last need exist."""
    accumulator = PredictiveAccumulator()
    for sample in samples:
        accumulator.update(sample, size)
    *maps, _ = accumulator.compute()
    return tuple(maps)


def _fused_statistics(samples: Tensor, size: _Size) -> _Maps:
    *maps, _ = sf.predictive_statistics(samples, size=size)
    return tuple(maps)


def _reference_statistics(samples: Tensor, size: _Size) -> _Maps:
    return reference.predictive_statistics(samples, size=size)


def _plain_statistics(samples: Tensor, size: None) -> _Maps:
    """As one would write it down, with the deviation of every class; the reference is leaner."""
    p = samples.float().softmax(2)
    mean = p.mean(0)
    confidence, prediction = mean.max(1)
    std = p.std(0).gather(1, prediction.unsqueeze(1)).squeeze(1)
    entropy = -torch.special.xlogy(mean, mean).sum(1)
    expected = -torch.special.xlogy(p, p).sum(2).mean(0)
    return prediction, confidence, std, entropy, expected, entropy - expected


class StatisticsWorkload(Workload):
    """All maps of `predictive_statistics` from S samples, without gradients."""

    NAMES = (
        "prediction",
        "confidence",
        "std",
        "entropy",
        "expected entropy",
        "mutual information",
    )

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        self._sets = [self._random_logits() for _ in range(self.num_sets)]
        height, width = (axis * case.enlargement for axis in case.shape[-2:])
        self._size = None if case.enlargement == 1 else (height, width)
        self._statistics: dict[str, Callable[[Tensor, Any], _Maps]] = {
            OURS: _fused_statistics,
            STREAMED: _streamed_statistics,
            COMPILED: compiled(_reference_statistics),
            # Its CUDA graphs would first copy every set of inputs to where the first one was.
            MAX_AUTOTUNE: compiled(_reference_statistics, "max-autotune-no-cudagraphs"),
            EAGER: _reference_statistics,
            PLAIN: _plain_statistics,
        }

    @torch.no_grad()
    def _run(self, statistics: Callable[[Tensor, Any], _Maps], samples: Tensor) -> _Maps:
        return statistics(samples, self._size)

    def calls(self) -> dict[str, Call]:
        return {
            name: Call(in_turn(self._sets, partial(self._run, self._statistics[name])))
            for name in self.available
        }

    def check(self) -> None:
        samples = self._sets[0]
        results: dict[str, _Maps] = {}
        for name in self.implementations:
            maps = self.attempt(name, partial(self._run, self._statistics[name], samples))
            if maps is not None:
                results[name] = maps
        if self._size is not None:
            samples = torch.stack(
                [F.interpolate(sample.double(), self._size, mode="bilinear") for sample in samples]
            )
        rows = samples.shape[-2]
        # A few rows at a time: ten samples in float64 would take gigabytes.
        step = max(1, (1 << 25) * rows // samples.numel())
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            self._check_rows(samples[..., part, :], results, part)

    def _check_rows(self, samples: Tensor, results: dict[str, _Maps], part: slice) -> None:
        p = samples.double().softmax(2)
        mean = p.mean(0)
        best, classes = mean.topk(min(2, mean.shape[1]), dim=1)
        clear = best[:, 0] - best[:, -1] > _MAP_TOLERANCE
        prediction = classes[:, 0]
        entropy = torch.special.entr(mean).sum(1)
        expected = torch.special.entr(p).sum(2).mean(0)
        std = p.std(0).gather(1, prediction[:, None])[:, 0]
        exact = (prediction, best[:, 0], std, entropy, expected, entropy - expected)
        for name, maps in results.items():
            for what, got, want in zip(self.NAMES, maps, exact, strict=True):
                error = (got[..., part, :] - want).abs()
                worst = error[clear].max().item() if clear.any() else 0.0
                self.assert_close(name, what, worst, _MAP_TOLERANCE)
