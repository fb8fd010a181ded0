"""The counting pass of the metrics, beside torchmetrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops.functional as sf
from segunc_ops import reference

from ..cases import ALL_TABLES, EAGER, OURS, TORCHMETRICS, Case
from ..timing import Call
from ..workload import IGNORE_INDEX, Workload, in_turn

# Confidences may fall on either side of a bin's edge.
_CALIBRATION_TOLERANCE = 1e-4
_CALIBRATION_BINS = 15


class _CountInputs(NamedTuple):
    logits: Tensor  # (N, C, *)
    probabilities: Tensor | None  # (N, C, H, W) fp32, for the peer
    target: Tensor  # (N, H, W) int64
    uncertainty: Tensor  # (N, H, W) fp32


class _Counter(NamedTuple):
    """What one implementation does with a batch, and the calibration error it then comes to."""

    update: Callable[[_CountInputs], object]
    value: Callable[[], float]


def _calibration_error(calibration: Tensor) -> float:
    pixels, correct, confidence = calibration.double().unbind(1)
    return float((correct - confidence / 2**24).abs().sum() / pixels.sum())


def _fused_counts(counts: sf.SegmentationCounts, inputs: _CountInputs) -> None:
    sf.accumulate_counts(
        counts,
        inputs.logits,
        inputs.target,
        inputs.uncertainty,
        size=inputs.target.shape[1:],
        ignore_index=IGNORE_INDEX,
    )


class CountsWorkload(Workload):
    """A batch's calibration error in 15 bins, and every other metric along with it.

    torchmetrics is given probabilities, ours start from the logits.
    """

    def __init__(self, case: Case, device: torch.device, *, seed: int = 0) -> None:
        super().__init__(case, device, seed=seed)
        n, _, h, w = case.shape
        h, w = h * case.enlargement, w * case.enlargement
        has_peer = TORCHMETRICS in self.implementations
        self._sets: list[_CountInputs] = []
        for _ in range(self.num_sets):
            logits = self._random_logits()
            self._sets.append(
                _CountInputs(
                    logits,
                    logits.float().softmax(1) if has_peer else None,
                    self._random_target((n, h, w)),
                    torch.rand((n, h, w), device=device, generator=self._generator),
                )
            )
        self._counters = {
            OURS: self._ours(("calibration",)),
            ALL_TABLES: self._ours(sf.SegmentationCounts._fields),
            EAGER: self._reference(),
        }
        if has_peer:
            self._counters[TORCHMETRICS] = self._torchmetrics()

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

        def update(inputs: _CountInputs) -> None:
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

        def update(inputs: _CountInputs) -> None:
            assert inputs.probabilities is not None
            metric.reset()  # its state grows with the pixels
            metric.update(inputs.probabilities, inputs.target)

        return _Counter(update, lambda: float(metric.compute()))

    @torch.no_grad()
    def _run(self, counter: _Counter, inputs: _CountInputs) -> None:
        counter.update(inputs)

    def calls(self) -> dict[str, Call]:
        return {
            name: Call(in_turn(self._sets, partial(self._run, self._counters[name])))
            for name in self.available
        }

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
        for name, counter in self._counters.items():
            self._run(counter, inputs)
            error = abs(counter.value() - exact)
            self.assert_close(name, "calibration error", error, _CALIBRATION_TOLERANCE)
