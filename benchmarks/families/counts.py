"""The counting pass of the metrics, beside torchmetrics."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import reference

from .. import costs
from ..case import ENLARGEMENT, Case
from ..implementations import BLUE, EAGER, OURS, PINK, Implementation
from ..workload import IGNORE_INDEX, Family, Workload

ALL_TABLES = Implementation("ours, all metrics", PINK)
TORCHMETRICS = Implementation("torchmetrics", BLUE)

# Confidences may fall on either side of a bin's edge.
_CALIBRATION_TOLERANCE = 1e-4
_CALIBRATION_BINS = 15


class _Counts(Case):
    """A batch added to the tables that metrics are computed from."""

    @property
    def bytes_moved(self) -> int:
        return self.logits_bytes + self.pixels * costs.TARGET  # tables stay in the cache

    @property
    def operations(self) -> int:
        # The sum's squares beside it; of a pixel an exponential, its division and its bin.
        of_the_classes = self.pixels * self.num_classes * (costs.SOFTMAX_SUM + 2)
        return costs.blending(self) + of_the_classes + self.pixels * (costs.EXP + 4)


class AccumulateCounts(_Counts):
    """Logits at the target's size."""

    op = "accumulate_counts"
    showcase = ((4, 19, 512, 512), "nchw")

    @classmethod
    def full(cls, half: Sequence[str]) -> Iterable[Case]:
        return cls.product(((4, 2, 512, 512), cls.showcase[0], (1, 150, 512, 512)), half)

    def everyone(self) -> tuple[Implementation, ...]:
        peers = (TORCHMETRICS,) if importlib.util.find_spec("torchmetrics") else ()
        return (OURS, ALL_TABLES, EAGER, *peers)


class UpsampledAccumulateCounts(_Counts):
    """Logits that are interpolated to the target's size."""

    op = "upsampled_accumulate_counts"
    showcase = ((4, 19, 128, 128), "nchw")
    enlargement = ENLARGEMENT

    def everyone(self) -> tuple[Implementation, ...]:
        return (OURS, ALL_TABLES, EAGER)


class _Inputs(NamedTuple):
    logits: Tensor  # (N, C, *)
    probabilities: Tensor | None  # (N, C, H, W) fp32, for the peer
    target: Tensor  # (N, H, W) int64
    uncertainty: Tensor  # (N, H, W) fp32


class _Counter(NamedTuple):
    """What one implementation does with a batch, and the calibration error it then comes to."""

    update: Callable[[_Inputs], object]
    value: Callable[[], float]


def _calibration_error(calibration: Tensor) -> float:
    pixels, correct, confidence = calibration.double().unbind(1)
    return float((correct - confidence / 2**24).abs().sum() / pixels.sum())


def _fused_counts(counts: sf.SegmentationCounts, inputs: _Inputs) -> None:
    sf.accumulate_counts(
        counts,
        inputs.logits,
        inputs.target,
        inputs.uncertainty,
        size=inputs.target.shape[1:],
        ignore_index=IGNORE_INDEX,
    )


class CountsWorkload(Workload[_Inputs, _Counter]):
    """A batch's calibration error in 15 bins, and every other metric along with it.

    torchmetrics is given probabilities, ours start from the logits.
    """

    def _inputs(self, index: int) -> _Inputs:
        logits = self._random_logits()
        has_peer = TORCHMETRICS in self.implementations
        return _Inputs(
            logits,
            logits.float().softmax(1) if has_peer else None,
            self._random_target(),
            self._random_map(),
        )

    def _functions_by_name(self) -> Mapping[Implementation, _Counter]:
        counters = {
            OURS: self._ours(("calibration",)),
            ALL_TABLES: self._ours(sf.SegmentationCounts._fields),
            EAGER: self._reference(),
        }
        if TORCHMETRICS in self.implementations:
            counters[TORCHMETRICS] = self._torchmetrics()
        return counters

    def _tables(self, tables: tuple[str, ...]) -> sf.SegmentationCounts:
        return sf.empty_counts(
            self.case.num_classes, num_bins=_CALIBRATION_BINS, tables=tables, device=self.device
        )

    def _ours(self, tables: tuple[str, ...]) -> _Counter:
        counts = self._tables(tables)
        assert counts.calibration is not None
        return _Counter(
            lambda inputs: _fused_counts(counts, inputs),
            partial(_calibration_error, counts.calibration),
        )

    def _reference(self) -> _Counter:
        calibration = self._tables(("calibration",)).calibration
        assert calibration is not None

        def update(inputs: _Inputs) -> None:
            reference.accumulate_counts(
                *(inputs.logits, inputs.target, None, IGNORE_INDEX, False, False),
                *(None, None, calibration, None, None, None),
            )

        return _Counter(update, partial(_calibration_error, calibration))

    def _torchmetrics(self) -> _Counter:
        from torchmetrics.classification import MulticlassCalibrationError

        metric = MulticlassCalibrationError(
            self.case.num_classes, n_bins=_CALIBRATION_BINS, ignore_index=IGNORE_INDEX
        ).to(self.device)

        def update(inputs: _Inputs) -> None:
            assert inputs.probabilities is not None
            metric.reset()  # its state grows with the pixels
            metric.update(inputs.probabilities, inputs.target)

        return _Counter(update, lambda: float(metric.compute()))

    @torch.no_grad()
    def _run(self, function: _Counter, inputs: _Inputs) -> None:
        function.update(inputs)

    def check(self) -> None:
        inputs = self._sets[0]
        logits = F.interpolate(inputs.logits.double(), inputs.target.shape[1:], mode="bilinear")
        confidence, prediction = logits.softmax(1).max(1)
        valid = inputs.target != IGNORE_INDEX
        confidence, right = confidence[valid], (prediction == inputs.target)[valid]
        gap = torch.zeros(_CALIBRATION_BINS, dtype=torch.float64, device=self.device)
        edges = torch.arange(1, _CALIBRATION_BINS).to(gap) / _CALIBRATION_BINS
        gap.index_add_(0, torch.bucketize(confidence, edges), right.double() - confidence)
        exact = float(gap.abs().sum() / valid.sum())
        for name, counter in self._functions.items():
            self._run(counter, inputs)
            error = abs(counter.value() - exact)
            self.assert_close(name, "calibration error", error, _CALIBRATION_TOLERANCE)


FAMILY = Family(
    {AccumulateCounts: CountsWorkload, UpsampledAccumulateCounts: CountsWorkload},
    peers=(ALL_TABLES, TORCHMETRICS),
    packages=("torchmetrics",),
)
