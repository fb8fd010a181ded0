"""Predictive statistics of S samples: in one call, streamed, and by the peers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import PredictiveAccumulator, reference

from .. import costs
from ..case import ENLARGEMENT, Case, Shape, Traffic
from ..implementations import (
    COMPILED,
    EAGER,
    LIGHT_GRAY,
    MAX_AUTOTUNE,
    OURS,
    PINK,
    Implementation,
)
from ..workload import Family, Workload, compiled

STREAMED = Implementation("ours, streamed", PINK)
PLAIN = Implementation("softmax, std, xlogy", LIGHT_GRAY, label="softmax, std, xlogy, eager")

_MAPS = 8 + 5 * 4  # bytes of an int64 prediction and five fp32 maps
# Absolute: probabilities and entropies are of order one. Where the two best classes are closer
# than this in float64, which of them is the prediction is a matter of rounding.
_MAP_TOLERANCE = 1e-4


class _Statistics(Case):
    """All maps of `predictive_statistics` from S samples."""

    @property
    def bytes_moved(self) -> int:
        return self.logits_bytes + self.cleared

    @property
    def cleared(self) -> int:
        return self.pixels * _MAPS

    @property
    def _state(self) -> int:
        """Bytes of an accumulator's state: mean, squared deviations and entropy."""
        return self.pixels * (2 * self.num_classes + 1) * costs.ACCUMULATED

    @property
    def streamed_moves(self) -> int:
        """Bytes that `PredictiveAccumulator` moves: its state once in and out for every sample."""
        updates = (2 * self.num_samples - 1) * self._state  # the first does not read it
        # One squared deviation of a pixel.
        final = self.pixels * (self.num_classes + 2) * costs.ACCUMULATED
        return self.bytes_moved + updates + final

    @property
    def streamed_cleared(self) -> int:
        """Bytes of a `PredictiveAccumulator`'s fresh pages: its state is fresh as well."""
        return self.cleared + self._state

    def traffic(self, implementation: str) -> Traffic | None:
        if implementation == STREAMED:
            return Traffic(self.streamed_moves, self.streamed_cleared)
        return super().traffic(implementation)

    @property
    def operations(self) -> int:
        pixels, values = self.pixels, self.pixels * self.num_classes
        # Of every sample also sum d e^d, the probability and its mean; then entropy and argmax of
        # the mean. A pixel of a sample: its entropy and its squared deviation.
        of_a_sample = values * (costs.SOFTMAX_SUM + 4) + pixels * (costs.LOG + 8)
        of_the_mean = values * (costs.LOG + 4) + pixels * 6
        return costs.blending(self) + self.num_samples * of_a_sample + of_the_mean


class PredictiveStatistics(_Statistics):
    """Samples of logits at the size of the maps."""

    op = "predictive_statistics"
    showcase = ((10, 1, 19, 768, 768), "nchw")

    @classmethod
    def matrix_shape(cls, classes: int) -> Shape | None:
        return (10, 1, classes, 256, 256)

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        return [*super().default(half), cls((10, 2, 19, 64, 64), "fp32")]

    @classmethod
    def studies(cls, measured: Collection[Case]) -> Iterable[Case]:
        sizes, powers = (64, 128, 256, 512, 1024), [2**k for k in range(1, 9)]
        return [
            *(cls((4, 1, 19, size, size), "fp32", study="pixels") for size in sizes),
            *(cls((4, 1, c, 256, 256), "fp32", study="classes") for c in powers),
            *(cls((s, 1, 19, 256, 256), "fp32", study="samples") for s in powers[:6]),
            *cls.matrix(measured),
        ]

    @classmethod
    def full(cls, half: Sequence[str]) -> Iterable[Case]:
        shapes = ((10, 1, 2, 768, 768), cls.showcase[0], (10, 1, 150, 256, 256))
        return cls.product(shapes, half)

    def everyone(self) -> tuple[Implementation, ...]:
        if self.study == "types":
            return (OURS, COMPILED, EAGER)
        if self.study:
            return (OURS, STREAMED, EAGER)
        autotuned = (MAX_AUTOTUNE,) if self.is_showcase else ()
        plain = (PLAIN,) if self.is_showcase and self.dtype == "fp32" else ()
        return (OURS, STREAMED, COMPILED, *autotuned, EAGER, *plain)


class UpsampledPredictiveStatistics(_Statistics):
    """Samples of logits that are interpolated to the size of the maps."""

    op = "upsampled_predictive_statistics"
    showcase = ((10, 1, 19, 192, 192), "nchw")
    enlargement = ENLARGEMENT

    def everyone(self) -> tuple[Implementation, ...]:
        autotuned = (MAX_AUTOTUNE,) if self.is_showcase else ()
        return (OURS, STREAMED, COMPILED, *autotuned, EAGER)


_Maps = tuple[Tensor, ...]
_Function = Callable[[Tensor, Any], _Maps]
_Size = Shape | None  # that the logits are interpolated to


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


class StatisticsWorkload(Workload[Tensor, _Function]):
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
        self._size = case.target_shape[1:] if case.enlargement > 1 else None

    def _inputs(self, index: int) -> Tensor:
        return self._random_logits()

    def _functions_by_name(self) -> Mapping[Implementation, _Function]:
        return {
            OURS: _fused_statistics,
            STREAMED: _streamed_statistics,
            COMPILED: compiled(_reference_statistics),
            # Its CUDA graphs would first copy every set of inputs to where the first one was.
            MAX_AUTOTUNE: compiled(_reference_statistics, "max-autotune-no-cudagraphs"),
            EAGER: _reference_statistics,
            PLAIN: _plain_statistics,
        }

    @torch.no_grad()
    def _run(self, function: _Function, inputs: Tensor) -> _Maps:
        return function(inputs, self._size)

    def check(self) -> None:
        samples = self._sets[0]
        results: dict[str, _Maps] = {}
        for name in self.implementations:
            maps = self.attempt(name, partial(self._run, self._functions[name], samples))
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


FAMILY = Family(
    {
        PredictiveStatistics: StatisticsWorkload,
        UpsampledPredictiveStatistics: StatisticsWorkload,
    },
    peers=(STREAMED, PLAIN),
)
