"""The benchmarks on a GPU: its clock, its memory, every workload."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import families
from benchmarks.families import variations
from benchmarks.families.cross_entropy import CrossEntropy
from benchmarks.families.dice import DiceBCE, DiceCrossEntropy, UpsampledDiceCrossEntropy
from benchmarks.families.expected_cross_entropy import (
    ExpectedCrossEntropy,
    FactorExpectedCrossEntropy,
)
from benchmarks.families.label_uncertainty import LabelUncertainty
from benchmarks.families.linear_cross_entropy import LinearCrossEntropy
from benchmarks.families.statistics import PredictiveStatistics
from benchmarks.implementations import OURS, TORCH, TORCH_COMPILED
from benchmarks.memory import peak_bytes
from benchmarks.timing import Call, interleave

SMALL = (2, 5, 9, 13)
BOTH = "forward+backward"


@pytest.mark.cuda
class TestCuda:
    device = torch.device("cuda")

    def test_device_clock_times_the_device(self):
        cycles = 2_000_000
        calls = {
            "once": Call(lambda: torch.cuda._sleep(cycles)),
            "thrice": Call(lambda: torch.cuda._sleep(3 * cycles)),
        }
        timed = interleave(calls, self.device, budget=0.5)
        assert timed["thrice"].median == pytest.approx(3 * timed["once"].median, rel=0.1)

    def test_device_clock_leaves_out_launches(self):
        tensor = torch.ones(16, device=self.device)

        def run():
            time.sleep(1e-3)  # a slow host
            tensor.add_(1)

        timed = interleave({"a": Call(run)}, self.device, budget=0.1)["a"]
        assert timed.median < 2e-4

    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_workloads(self, uncompiled, dtype, layout):
        for op, shape in ((CrossEntropy, SMALL), (PredictiveStatistics, (4, *SMALL))):
            for mode in ("forward", "forward+backward"):
                work = families.workload(op(shape, dtype, layout, mode), self.device)
                work.check()
                for call in work.calls().values():
                    call.run()

    @pytest.mark.parametrize("op", variations.OPS)
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    def test_variation_workload(self, uncompiled, op, dtype):
        work = families.workload(op(SMALL, dtype, mode=BOTH), self.device)
        work.check()
        for call in work.calls().values():
            call.run()

    @pytest.mark.parametrize("op", [ExpectedCrossEntropy, FactorExpectedCrossEntropy])
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    def test_expected_workload(self, op, dtype):
        work = families.workload(op(SMALL, dtype, mode=BOTH), self.device)
        work.check()
        for call in work.calls().values():
            call.run()

    @pytest.mark.parametrize("op", [DiceCrossEntropy, UpsampledDiceCrossEntropy, DiceBCE])
    @pytest.mark.parametrize("shape", [SMALL, (2, 4, 3, 5, 4)])
    def test_dice_workload(self, uncompiled, op, shape):
        work = families.workload(op(shape, "fp32", mode=BOTH), self.device)
        work.check()
        for call in work.calls().values():
            call.run()

    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    def test_label_uncertainty_workload(self, uncompiled, dtype):
        case = LabelUncertainty((2, 1, 9, 13), dtype, mode=BOTH)
        work = families.workload(case, self.device)
        work.check()
        for call in work.calls().values():
            call.run()

    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_linear_workload(self, uncompiled, layout):
        case = LinearCrossEntropy((2, 19, 33, 31), "fp32", layout, BOTH)
        work = families.workload(case, self.device)
        work.check()  # in full precision, as matrix products are
        assert {OURS, TORCH, TORCH_COMPILED} <= set(work.calls())

    def test_peak_memory(self):
        held = torch.ones(1 << 20, device=self.device)
        assert peak_bytes(lambda: held + 1, self.device) == 4 << 20
