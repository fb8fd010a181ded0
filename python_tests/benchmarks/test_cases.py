"""What is measured: cases, their costs by formula, their peers, correct before they are timed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest
import torch

import segunc_ops
from benchmarks import costs, families, plots, workload
from benchmarks.case import SUITES
from benchmarks.families import (
    blocks,
    components,
    counts,
    cross_entropy,
    dice,
    linear_cross_entropy,
    statistics,
    variations,
)
from benchmarks.families.blocks import BlockUncertainty, UpsampledBlockUncertainty
from benchmarks.families.components import (
    CC3D,
    CC3D_LABELS,
    OPENCV,
    SCIPY,
    SKIMAGE,
    SKIMAGE_LABELS,
    ComponentMean,
)
from benchmarks.families.counts import AccumulateCounts, UpsampledAccumulateCounts
from benchmarks.families.cross_entropy import KORNIA, MONAI, CrossEntropy, UpsampledCrossEntropy
from benchmarks.families.dice import DiceBCE, DiceCrossEntropy, UpsampledDiceCrossEntropy
from benchmarks.families.expected_cross_entropy import (
    ExpectedCrossEntropy,
    FactorExpectedCrossEntropy,
)
from benchmarks.families.label_uncertainty import LabelUncertainty
from benchmarks.families.linear_cross_entropy import LinearCrossEntropy
from benchmarks.families.statistics import (
    STREAMED,
    PredictiveStatistics,
    UpsampledPredictiveStatistics,
)
from benchmarks.implementations import COMPILED, EAGER, MAX_AUTOTUNE, OURS, TORCH, TORCH_COMPILED
from benchmarks.memory import peak_bytes
from python_tests.benchmarks.rows import row_of

CPU = torch.device("cpu")
SMALL = (2, 5, 9, 13)
BOTH = "forward+backward"
PACKAGES = {
    KORNIA: "kornia",
    MONAI: "monai",
    dice.MONAI: "monai",
    CC3D: "cc3d",
    CC3D_LABELS: "cc3d",
    SKIMAGE: "skimage",
    SKIMAGE_LABELS: "skimage",
    OPENCV: "cv2",
    SCIPY: "scipy",
}


def not_installed(work: workload.Workload) -> set[str]:
    """The peers of a workload that can only be left out here."""
    return {
        name
        for name in work.implementations
        if name in PACKAGES and not importlib.util.find_spec(PACKAGES[name])
    }


class TestCases:
    def test_bytes_moved(self):
        pixels, logits = 768 * 768, 19 * 768 * 768
        shape = (1, 19, 768, 768)
        case = CrossEntropy(shape, "fp32", mode="forward+backward")
        assert case.bytes_moved == 2 * 4 * logits + 12 * pixels
        case = CrossEntropy(shape, "bf16")
        assert case.bytes_moved == 2 * logits + 12 * pixels
        case = UpsampledCrossEntropy((1, 19, 192, 192), "fp32", mode="forward+backward")
        assert case.bytes_moved == 2 * 4 * logits // 16 + 12 * pixels
        case = PredictiveStatistics((10, *shape), "bf16")
        assert case.bytes_moved == 10 * 2 * logits + 28 * pixels
        case = ComponentMean((2, 7, 11), "fp32", "noise")
        assert case.bytes_moved == 9 * (2 * 7 * 11)
        case = AccumulateCounts(shape, "fp32")
        assert case.bytes_moved == 4 * logits + 8 * pixels
        assert BlockUncertainty(shape, "fp32").bytes_moved == 4 * logits
        case = LinearCrossEntropy(shape, "fp32", mode="forward+backward")
        assert case.bytes_moved == 2 * 4 * 256 * (pixels + 19) + 8 * pixels
        for op in variations.OPS:
            assert op(shape, "bf16", mode=BOTH).bytes_moved == 2 * 2 * logits + 8 * pixels
        for op, channels in ((ExpectedCrossEntropy, 19), (FactorExpectedCrossEntropy, 190)):
            both = (19 + channels) * pixels
            assert op(shape, "bf16", mode=BOTH).bytes_moved == 2 * 2 * both + 8 * pixels
        volume, voxels = (2, 4, 5, 6, 7), 2 * 5 * 6 * 7
        case = DiceCrossEntropy(volume, "fp32", mode=BOTH)
        assert case.bytes_moved == 2 * 4 * 4 * voxels + 8 * voxels
        case = UpsampledDiceCrossEntropy(volume, "fp32", mode=BOTH)
        assert case.bytes_moved == 2 * 4 * 4 * voxels + 8 * 64 * voxels
        case = DiceBCE(volume, "fp32", mode=BOTH)
        assert case.bytes_moved == 2 * 4 * 4 * voxels + 4 * voxels
        case = LabelUncertainty((2, 1, 5, 7), "bf16", mode=BOTH)
        assert case.bytes_moved == 70 * (4 * 2 + 8)

    def test_bytes_that_kernels_move(self):
        """By the traversals in csrc: what is read twice, what waits in scratch memory."""
        pixels, logits = 64 * 64, 7 * 64 * 64
        case = CrossEntropy((1, 7, 64, 64), "fp32", mode=BOTH)
        assert case.kernel_moves == case.bytes_moved
        case = CrossEntropy((1, 7, 64, 64), "fp16", mode=BOTH)
        assert case.kernel_moves == 3 * 2 * logits + 24 * pixels
        small = UpsampledCrossEntropy((1, 7, 64, 64), "fp32", mode=BOTH)
        # Bands of two rows: half of the logits read twice, half of the gradient waits.
        assert small.kernel_moves == 4 * (logits * 5 // 2 + logits) + 12 * 16 * pixels
        half = UpsampledCrossEntropy((1, 7, 64, 64), "bf16", mode=BOTH)
        scratch = 4 * (2 * logits + logits)
        assert half.kernel_moves == 2 * (logits * 5 // 2) + scratch + 12 * 16 * pixels
        for op in variations.OPS:
            case = op((1, 7, 64, 64), "fp32", mode=BOTH)
            assert case.kernel_moves == 2 * 4 * logits + 2 * 8 * pixels
        case = ExpectedCrossEntropy((1, 7, 64, 64), "fp32", mode=BOTH)
        assert case.kernel_moves == 4 * 4 * logits + 2 * 8 * pixels
        case = DiceCrossEntropy((1, 7, 64, 64), "fp32", mode=BOTH)
        assert case.kernel_moves == 3 * 4 * logits + 2 * 8 * pixels
        case = DiceBCE((1, 7, 64, 64), "fp32", mode=BOTH)
        assert case.kernel_moves == 3 * 4 * logits + 2 * logits
        state = pixels * (2 * 7 + 1) * 4
        case = PredictiveStatistics((3, 1, 7, 64, 64), "fp32")
        assert case.kernel_moves == case.bytes_moved
        final = pixels * 4 * (7 + 2)
        assert case.streamed_moves == case.bytes_moved + 5 * state + final
        assert case.streamed_cleared == state + 28 * pixels

    def test_operations(self):
        forward = CrossEntropy((1, 10, 5, 5), "fp32")
        assert forward.operations == 250 * (costs.EXP + 3) + 25 * (costs.LOG + 5)
        both = CrossEntropy((1, 10, 5, 5), "fp32", mode=BOTH)
        assert both.operations == forward.operations + 250 + 25 * 6
        enlarged = UpsampledCrossEntropy((1, 10, 5, 5), "fp32")
        assert enlarged.operations == 16 * forward.operations + 4000 * 15 // 4
        one, two = (PredictiveStatistics((s, 1, 10, 5, 5), "fp32") for s in (1, 2))
        of_a_sample = 250 * (costs.EXP + 7) + 25 * (costs.LOG + 8)
        assert two.operations - one.operations == of_a_sample
        one, two = (UpsampledPredictiveStatistics((s, 1, 10, 5, 5), "fp32") for s in (1, 2))
        assert two.operations - one.operations == 16 * of_a_sample + 4000 * 15 // 4
        assert ComponentMean((1, 5, 5), "fp32", "noise").operations == 0
        case = BlockUncertainty((1, 10, 5, 5), "fp32")
        assert case.operations == 250 * (costs.EXP + 5) + 25 * (costs.LOG + 4)

    @pytest.mark.parametrize(
        ("signature", "counted"),
        [
            ("Float16Lanes exp_polynomial(Float16Lanes x)", costs.EXP - 2),
            ("F log_polynomial(F x)", costs.LOG - 1),
        ],
    )
    def test_polynomials_have_as_many_operations_as_counted(self, signature, counted):
        source = (Path(__file__).parents[2] / "csrc/math/exp_log.h").read_text()
        body = source.split(f"SEGUNC_HD {signature} {{")[1].split("\n}\n")[0]
        # Lines of integers are left out, and with them exp's last product and sum and the
        # difference that log begins with.
        lines = [line for line in body.splitlines() if "bit_cast" not in line and "//" not in line]
        lines = [line for line in lines if "constexpr" not in line and "return" not in line]
        numbers = re.compile(r"(?<=[(*=+-] )-?\d[\d.]*(e-?\d+)?f")
        assert (
            sum(len(re.findall(r" [-+*/] ", numbers.sub("k", line))) for line in lines) == counted
        )

    def test_suites_grow_and_repeat_nothing(self):
        for device in (CPU, torch.device("cuda")):
            suites = [families.cases(suite, device) for suite in SUITES]
            for smaller, larger in itertools.pairwise(suites):
                assert larger[: len(smaller)] == smaller
                assert len(larger) > len(smaller)
            for suite in suites:
                assert len({case.id for case in suite}) == len(suite)
                assert {case.op for case in suite} == set(families.OPS)

    def test_full_covers_the_axes(self):
        full = [
            case
            for case in families.cases("full", CPU)
            if case.op == "cross_entropy" and not case.study
        ]
        assert {case.num_classes for case in full} == {2, 19, 150}
        assert {case.dtype for case in full} == {"fp32", "bf16"}
        assert {case.layout for case in full} == {"nchw", "channels_last"}
        assert "fp16" in {c.dtype for c in families.cases("default", torch.device("cuda"))}

    @pytest.mark.parametrize("op", [CrossEntropy, UpsampledCrossEntropy, PredictiveStatistics])
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_default_has_the_matrix_of_types(self, op, device):
        chosen = families.cases("default", torch.device(device))
        matrix = [case for case in chosen if isinstance(case, op) and case.in_matrix]
        cells = {(case.dtype, case.layout, case.num_classes) for case in matrix}
        wanted = set(itertools.product(("fp32", "bf16"), ("nchw",), (2, 11, 19, 21, 150)))
        wanted |= {("fp32", "channels_last", 19), ("bf16", "channels_last", 19)}
        assert wanted | {("fp16", "nchw", 19)} <= cells
        # One size of image for each number of classes.
        assert len({case.shape for case in matrix}) == 5

    def test_default_has_the_curves(self):
        found = plots.curves([row_of(case) for case in families.cases("default", CPU)])
        axes = {key: sorted(map(plots.axis_value, part)) for key, part in found.items()}
        assert set(axes) == {
            ("cross_entropy", "pixels"),
            ("cross_entropy", "classes"),
            ("predictive_statistics", "pixels"),
            ("predictive_statistics", "classes"),
            ("predictive_statistics", "samples"),
        }
        assert axes["cross_entropy", "pixels"] == [4 ** (6 + k) for k in range(6)]
        assert axes["cross_entropy", "classes"] == [2**k for k in range(1, 9)]
        assert axes["predictive_statistics", "samples"] == [2, 4, 8, 16, 32, 64]

    def test_cases_come_back_from_their_rows(self):
        for case in families.cases("full", CPU):
            assert families.case_of(row_of(case)) == case

    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("mode", ["forward", "forward+backward"])
    @pytest.mark.parametrize("op", [CrossEntropy, UpsampledCrossEntropy])
    def test_cross_entropy_workload(self, uncompiled, op, dtype, layout, mode):
        work = families.workload(op(SMALL, dtype, layout, mode), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.implementations
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("op", variations.OPS)
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    def test_variation_workload(self, uncompiled, op, dtype):
        work = families.workload(op(SMALL, dtype, mode=BOTH), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.implementations
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("op", [DiceCrossEntropy, UpsampledDiceCrossEntropy, DiceBCE])
    @pytest.mark.parametrize("shape", [SMALL, (2, 4, 3, 5, 4)])
    def test_dice_workload(self, uncompiled, op, shape):
        work = families.workload(op(shape, "fp32", mode=BOTH), CPU)
        work.check()
        assert set(work.unavailable) == not_installed(work)
        calls = work.calls()
        assert tuple(calls) == tuple(work.available)
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("op", [ExpectedCrossEntropy, FactorExpectedCrossEntropy])
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    def test_expected_workload(self, op, dtype):
        work = families.workload(op(SMALL, dtype, mode=BOTH), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.implementations
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("mode", ["forward", BOTH])
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    def test_label_uncertainty_workload(self, uncompiled, dtype, mode):
        work = families.workload(LabelUncertainty((2, 1, 9, 13), dtype, mode=mode), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.implementations
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("op", [DiceCrossEntropy, ExpectedCrossEntropy, *variations.OPS])
    def test_check_finds_a_wrong_part(self, uncompiled, monkeypatch, op):
        work = families.workload(op(SMALL, "fp32", mode=BOTH), CPU)
        right = work._functions[OURS]
        wrong = {**work._functions, OURS: lambda *inputs: right(*inputs) * 1.01}
        monkeypatch.setattr(work, "_functions", wrong)
        with pytest.raises(AssertionError, match="loss of 'ours'"):
            work.check()

    @pytest.mark.parametrize("op", [PredictiveStatistics, UpsampledPredictiveStatistics])
    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_statistics_workload(self, uncompiled, op, dtype, layout):
        work = families.workload(op((4, *SMALL), dtype, layout), CPU)
        work.check()
        assert tuple(work.calls()) == work.implementations

    @pytest.mark.parametrize("content", ["street scene", "noise"])
    def test_component_mean_workload(self, content):
        work = families.workload(ComponentMean((2, 64, 96), "fp32", content), CPU)
        work.check()
        assert set(work.unavailable) == not_installed(work)
        assert tuple(work.calls()) == tuple(work.available)
        for call in work.calls().values():
            call.run()

    def test_check_finds_a_wrong_peer(self, monkeypatch):
        right = components._mean_by_label
        monkeypatch.setattr(components, "_mean_by_label", lambda *arrays: right(*arrays) * 1.001)
        case = ComponentMean((2, 16, 24), "fp32", "noise")
        with pytest.raises(AssertionError, match="mean of 'cc3d and NumPy'"):
            families.workload(case, CPU).check()

    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_linear_workload(self, uncompiled, layout):
        case = LinearCrossEntropy(SMALL, "fp32", layout, "forward+backward")
        work = families.workload(case, CPU)
        work.check()
        assert {OURS, TORCH, TORCH_COMPILED} <= set(work.calls())
        for call in work.calls().values():
            call.run()

    def test_check_finds_a_wrong_gradient_of_a_weight(self, uncompiled, monkeypatch):
        right = linear_cross_entropy._fused_loss

        def wrong(features, weight, target):
            return right(features, 1.01 * weight - 0.01 * weight.detach(), target)

        monkeypatch.setattr(linear_cross_entropy, "_fused_loss", wrong)
        case = LinearCrossEntropy(SMALL, "fp32", "channels_last", "forward+backward")
        with pytest.raises(AssertionError, match="weight's gradient of 'ours'"):
            families.workload(case, CPU).check()

    def test_streaming_needs_no_more_memory_for_more_samples(self):
        def peak(samples: int) -> dict[str, int]:
            shape = (samples, 1, 5, 64, 64)
            case = PredictiveStatistics(shape, "fp32", study="samples")
            calls = families.workload(case, CPU).calls()
            return {name: peak_bytes(call.run, CPU) for name, call in calls.items()}

        few, many = peak(2), peak(16)
        state = 64 * 64 * (2 * 5 + 1) * 4
        assert state < many[STREAMED] == few[STREAMED]
        assert many[EAGER] > 4 * few[EAGER]

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("op", [AccumulateCounts, UpsampledAccumulateCounts])
    def test_counts_workload(self, op, dtype, layout):
        work = families.workload(op(SMALL, dtype, layout), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.implementations
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("op", [BlockUncertainty, UpsampledBlockUncertainty])
    def test_blocks_workload(self, uncompiled, op, dtype, layout):
        work = families.workload(op((1, 5, 64, 128), dtype, layout), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.implementations
        for call in calls.values():
            call.run()

    def test_check_finds_a_wrong_block(self, uncompiled, monkeypatch):
        right = blocks._fused_blocks
        monkeypatch.setattr(blocks, "_fused_blocks", lambda *sizes: right(*sizes) + 1e-3)
        with pytest.raises(AssertionError, match="means of 'ours'"):
            families.workload(BlockUncertainty(SMALL, "fp32"), CPU).check()

    def test_check_finds_a_wrong_count(self, monkeypatch):
        right = counts._fused_counts

        def wrong(tables, inputs):
            right(tables, inputs)
            tables.calibration[3, 1] += 1

        monkeypatch.setattr(counts, "_fused_counts", wrong)
        with pytest.raises(AssertionError, match="calibration error of 'ours'"):
            families.workload(AccumulateCounts(SMALL, "fp32"), CPU).check()

    def test_layouts_are_what_they_are_called(self, uncompiled):
        for layout, last in (("nchw", 13), ("channels_last", 5)):
            case = CrossEntropy(SMALL, "fp32", layout)
            logits = families.workload(case, CPU)._sets[0].logits
            assert logits.shape == SMALL
            assert sorted(logits.stride())[1] == last

    def test_inputs_outgrow_the_cache(self, uncompiled, monkeypatch):
        monkeypatch.setattr(workload, "last_level_cache_bytes", lambda device: 4 << 20)
        case = CrossEntropy((1, 3, 160, 160), "fp32")
        assert families.workload(case, CPU).num_sets * case.bytes_moved >= 3 * (4 << 20)
        tiny = CrossEntropy((1, 3, 16, 16), "fp32")
        assert families.workload(tiny, CPU).num_sets == 1

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda loss: loss * 1.01, "loss of 'ours'"),
            (lambda loss: loss * float("nan"), "loss of 'ours'"),
            (lambda loss: loss.detach() + 1.01 * (loss - loss.detach()), "gradient of 'ours'"),
            (lambda loss: loss.detach().requires_grad_(), "gradient of 'ours'"),
        ],
    )
    @pytest.mark.parametrize("op", [CrossEntropy, UpsampledCrossEntropy])
    def test_check_finds_a_wrong_loss(self, uncompiled, monkeypatch, op, wrong, message):
        right = cross_entropy._fused_cross_entropy
        monkeypatch.setattr(
            cross_entropy,
            "_fused_cross_entropy",
            lambda *args, **options: wrong(right(*args, **options)),
        )
        case = op(SMALL, "fp32", mode="forward+backward")
        with pytest.raises(AssertionError, match=message):
            families.workload(case, CPU).check()

    @pytest.mark.parametrize("index", range(6))
    def test_check_finds_a_wrong_map(self, uncompiled, monkeypatch, index):
        right = statistics._fused_statistics

        def wrong(samples, size):
            maps = list(right(samples, size))
            maps[index] = maps[index].clone()
            maps[index][-1, -1, -1] += 1
            return tuple(maps)

        monkeypatch.setattr(statistics, "_fused_statistics", wrong)
        case = PredictiveStatistics((4, *SMALL), "fp32")
        with pytest.raises(
            AssertionError, match=f"{statistics.StatisticsWorkload.NAMES[index]} of"
        ):
            families.workload(case, CPU).check()

    def test_a_peer_without_a_compiler_is_left_out(self, monkeypatch):
        def broken(function, mode=None):
            def run(*arguments):
                raise RuntimeError("no compiler")

            return run

        for module in (cross_entropy, statistics):
            monkeypatch.setattr(module, "compiled", broken)
        for case in (
            CrossEntropy(SMALL, "fp32"),
            PredictiveStatistics((4, *SMALL), "fp32"),
        ):
            work = families.workload(case, CPU)
            work.check()
            missing = {COMPILED, TORCH_COMPILED} & set(work.implementations)
            assert work.unavailable == dict.fromkeys(missing, "RuntimeError: no compiler")
            assert set(work.calls()) == set(work.implementations) - missing

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_showcases_have_more_peers(self, uncompiled, monkeypatch, dtype):
        monkeypatch.setattr(CrossEntropy, "showcase", (SMALL, "nchw"))
        work = families.workload(CrossEntropy(SMALL, dtype, mode=BOTH), CPU)
        assert {KORNIA, MONAI} <= set(work.implementations)
        assert MAX_AUTOTUNE not in work.implementations
        assert MAX_AUTOTUNE in work.case.implementations(torch.device("cuda"))
        work.check()
        assert set(work.unavailable) == not_installed(work)

    def test_our_own_failure_is_not_left_out(self, uncompiled, monkeypatch):
        def broken(*tensors):
            raise RuntimeError("no kernel")

        monkeypatch.setattr(cross_entropy, "_fused_cross_entropy", broken)
        with pytest.raises(RuntimeError, match="no kernel"):
            families.workload(CrossEntropy(SMALL, "fp32"), CPU).check()

    def test_the_reference_is_not_measured_as_ours(self):
        case = CrossEntropy(SMALL, "fp32")
        with (
            segunc_ops.backend("reference"),
            pytest.raises(RuntimeError, match="expected native kernels on cpu"),
        ):
            families.workload(case, CPU)

    def test_unknown_operation(self):
        row = {**row_of(CrossEntropy(SMALL, "fp32")), "op": "conv"}
        with pytest.raises(ValueError, match="op: expected one of"):
            families.case_of(row)

    def test_every_implementation_is_known_by_its_name(self):
        for device in (CPU, torch.device("cuda")):
            for case in families.cases("full", device):
                for name in case.implementations(device):
                    row = json.loads(json.dumps(row_of(case, name)))
                    assert families.implementation_of(row) is name
        older = {**row_of(CrossEntropy(SMALL, "fp32")), "implementation": "a peer of old"}
        assert families.implementation_of(older).label == "a peer of old"
