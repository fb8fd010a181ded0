"""The benchmarks measure what they say: clocks, bytes, memory, correctness, reports."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import segunc_ops
from benchmarks import (
    costs,
    docs,
    families,
    measure,
    plots,
    report,
    rows,
    timing,
    workload,
)
from benchmarks.case import SUITES, Case
from benchmarks.families import (
    components,
    counts,
    cross_entropy,
    linear_cross_entropy,
    statistics,
)
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
from benchmarks.families.linear_cross_entropy import LinearCrossEntropy
from benchmarks.families.statistics import (
    STREAMED,
    PredictiveStatistics,
    UpsampledPredictiveStatistics,
)
from benchmarks.implementations import (
    COMPILED,
    EAGER,
    KERNEL,
    MAX_AUTOTUNE,
    OURS,
    TORCH,
    TORCH_COMPILED,
)
from benchmarks.memory import peak_bytes, settle_heap, warm_heap
from benchmarks.timing import Call, ReplayClock, Samples, interleave

CPU = torch.device("cpu")
SMALL = (2, 5, 9, 13)
BOTH = "forward+backward"
PACKAGES = {
    KORNIA: "kornia",
    MONAI: "monai",
    CC3D: "cc3d",
    CC3D_LABELS: "cc3d",
    SKIMAGE: "skimage",
    SKIMAGE_LABELS: "skimage",
    OPENCV: "cv2",
    SCIPY: "scipy",
}
CLOCK = ReplayClock()


def not_installed(work: workload.Workload) -> set[str]:
    """The peers of a workload that can only be left out here."""
    return {
        name
        for name in work.implementations
        if name in PACKAGES and not importlib.util.find_spec(PACKAGES[name])
    }


@pytest.fixture
def clock(monkeypatch):
    """A clock for the timing core that only the timed calls advance."""
    clock = ReplayClock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


class TestTiming:
    def test_times_exactly_the_calls(self, clock):
        timed = interleave(
            {"slow": Call(lambda: clock.advance(3.0)), "fast": Call(lambda: clock.advance(0.5))},
            CPU,
            budget=70.0,  # every timed call has an untimed one before it
        )
        assert timed["slow"].seconds == (3.0,) * 10
        assert timed["fast"].seconds == (0.5,) * 10

    def test_repeats_short_calls_within_a_round(self, clock):
        timed = interleave({"a": Call(lambda: clock.advance(2**-12))}, CPU, budget=1.0)["a"]
        assert timed.calls == math.ceil(2e-3 * 2**12)
        assert timed.seconds == pytest.approx([2**-12] * len(timed.seconds))

    def test_alternates_the_order(self, clock):
        order = []

        def call(name: str) -> Call:
            return Call(lambda: (order.append(name), clock.advance(1.0)))

        interleave({"a": call("a"), "b": call("b")}, CPU, budget=0.0, min_rounds=3)
        assert order == [*"aaaabbbb", *"aabb", *"bbaa", *"aabb"]

    def test_context_is_not_timed(self, clock):
        entered = []

        @contextmanager
        def context():
            clock.advance(100.0)
            entered.append("in")
            yield
            entered.append("out")

        call = Call(lambda: (entered.append("run"), clock.advance(1.0)), context)
        timed = interleave({"a": call}, CPU, budget=0.0, min_rounds=2)["a"]
        assert timed.seconds == (1.0, 1.0)
        assert entered == ["in", "run", "run", "out"] * 4

    def test_rounds_stay_within_their_bounds(self, clock):
        call = {"a": Call(lambda: clock.advance(1.0))}
        assert len(interleave(call, CPU, budget=1e9, max_rounds=7)["a"].seconds) == 7
        assert len(interleave(call, CPU, budget=0.0, min_rounds=4)["a"].seconds) == 4

    def test_median_and_quartiles(self):
        samples = Samples((5.0, 1.0, 2.0, 4.0, 3.0), 1)
        assert samples.median == 3.0
        assert samples.quartiles == (2.0, 4.0)
        assert Samples((2.0,), 1).quartiles == (2.0, 2.0)

    def test_errors_name_the_argument(self):
        call = {"a": Call(lambda: None)}
        with pytest.raises(ValueError, match="calls: expected at least one"):
            interleave({}, CPU)
        with pytest.raises(ValueError, match="min_rounds: expected between 1 and max_rounds"):
            interleave(call, CPU, min_rounds=9, max_rounds=8)
        with pytest.raises(ValueError, match="clock: expected 'wall' on cpu"):
            interleave(call, CPU, clock="device")

    @pytest.mark.benchmark(timer=CLOCK)
    def test_replayed_times_arrive_in_pytest_benchmark(self, benchmark):
        times = [3.0, 1.0, 2.0, 10.0, 2.5]
        remaining = iter(times)
        benchmark.pedantic(CLOCK.advance, setup=lambda: ((next(remaining),), {}), rounds=len(times))
        if benchmark.enabled:
            assert benchmark.stats.stats.sorted_data == pytest.approx(sorted(times))

    def test_copy_reads_and_writes_more_than_the_cache(self):
        call, moved = timing.copy_call(CPU, 20 << 20)
        assert moved == 2 * 80 << 20
        call.run()


class TestMemory:
    def test_peak_counts_results_but_not_inputs(self):
        held = torch.ones(1 << 20)

        def run():
            first = torch.empty(1 << 18)  # 1 MiB
            second = held[: 1 << 19] + 1  # 2 MiB
            del first
            third = held[: 1 << 17] + 1  # 0.5 MiB
            return second, third

        assert 0 <= peak_bytes(run, CPU) - (3 << 20) < 4096  # and a few scalars

    def test_peak_of_backward_holds_the_gradient(self):
        leaf = torch.ones(1 << 18, requires_grad=True)
        peak = peak_bytes(lambda: leaf.sum().backward(), CPU)
        assert 1 << 20 <= peak <= (1 << 20) + 4096

    @pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")
    def test_heap_is_warm_inside_and_fresh_outside(self):
        # In a process of its own: earlier tests leave memory of other page sizes.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            before, first, second, after = pool.submit(shares_of_fresh_pages).result()
        assert before > 0.9
        assert first < 0.1
        assert second < 0.1
        assert after > 0.9


def shares_of_fresh_pages() -> list[float]:
    """Page faults by pages of large allocations: before, twice inside, and after `warm_heap`."""
    import resource

    size = 48 << 20

    def share() -> float:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        return faults / (size // os.sysconf("SC_PAGE_SIZE"))

    settle_heap()
    shares = [share()]
    with warm_heap(3 * size):
        shares += [share(), share()]
    return [*shares, share()]


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
        case = LinearCrossEntropy(shape, "fp32", mode="forward+backward")
        assert case.bytes_moved == 2 * 4 * 256 * (pixels + 19) + 8 * pixels

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


@pytest.fixture
def small_copy(monkeypatch):
    monkeypatch.setattr(
        measure, "copy_call", lambda device, cache: (Call(lambda: time.sleep(1e-3)), 1 << 20)
    )
    monkeypatch.setattr(measure, "matmul_rate", lambda device: 100.0)


class TestMeasure:
    def test_figures_are_derived(self, uncompiled, small_copy):
        case = CrossEntropy((1, 3, 160, 160), "fp32", mode="forward+backward")
        measured = measure.measure(case, CPU, budget=0.0)
        assert tuple(measured) == case.implementations(CPU)
        for name, measurement in measured.items():
            row = measurement.row
            assert row["implementation"] == name
            assert row["gb_per_s"] == pytest.approx(
                case.bytes_moved / measurement.samples.median / 1e9, rel=1e-3
            )
            assert row["fraction_of_copy"] == pytest.approx(
                row["gb_per_s"] / row["copy_gb_per_s"], rel=2e-3
            )
            assert row["gflop_per_s"] == pytest.approx(
                case.operations / measurement.samples.median / 1e9, rel=1e-3
            )
            assert row["matmul_gflop_per_s"] == 100.0
            assert row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
            assert {"device", "isa", "torch", "python", "segunc_ops", "threads", "date"} <= set(row)
        assert measured[OURS].figures.peak_over_logits < 1.1
        assert measured[TORCH].figures.peak_over_logits > 2

    def test_what_is_left_out_is_told(self, uncompiled, small_copy):
        case = CrossEntropy(SMALL, "fp32")
        peers = (COMPILED, TORCH_COMPILED)
        told = []
        measured = measure.measure(
            case, CPU, budget=0.0, leave_out=peers, tell=lambda *what: told.append(what)
        )
        assert set(measured) == set(case.implementations(CPU)) - set(peers)
        assert told == [(name, "as asked") for name in peers]

    def test_a_reason_is_told_once(self, capsys):
        measure.tell_left_out.cache_clear()
        for why in ("it is missing", "it is broken", "it is missing"):
            measure.tell_left_out("a peer", why)
        lines = capsys.readouterr().err.splitlines()
        reasons = ("it is missing", "it is broken")
        assert lines == [f"benchmarks: a peer left out: {why}" for why in reasons]

    def test_failing_cases_do_not_lose_the_others(
        self, uncompiled, small_copy, monkeypatch, tmp_path, capsys
    ):
        good = CrossEntropy((1, 3, 8, 8), "fp32")
        bad = CrossEntropy(SMALL, "fp8")
        monkeypatch.setattr(measure, "cases", lambda suite, device: [bad, good])
        arguments = ["--budget", "0", "--output", str(tmp_path)]
        assert measure.main(arguments) == 1
        assert "cross_entropy-2x5x9x13-fp8" in capsys.readouterr().err
        (path,) = tmp_path.glob("*.json")
        rows = json.loads(path.read_text())
        assert [row["implementation"] for row in rows] == list(good.implementations(CPU))


def row_of(
    case: Case, implementation: str = OURS, milliseconds: float = 2.0, **others: object
) -> dict[str, object]:
    """A row as `python -m benchmarks` would measure it on an example of a device."""
    return {
        "op": case.op,
        "shape": "x".join(map(str, case.shape)),
        "dtype": case.dtype,
        "layout": case.layout,
        "mode": case.mode,
        "study": case.study,
        "implementation": implementation,
        "median_ms": milliseconds,
        "q1_ms": milliseconds * 0.9,
        "q3_ms": milliseconds * 1.2,
        "bytes_moved": case.bytes_moved,
        "gb_per_s": 50.0,
        "copy_gb_per_s": 100.0,
        "fraction_of_copy": 0.5,
        "operations": case.operations,
        "gflop_per_s": case.operations / milliseconds * 1e-6,
        "matmul_gflop_per_s": 200.0,
        "peak_bytes": 47_500_000,
        "peak_over_logits": 1.06,
        "device": "Example CPU, 2 threads",
        "device_type": "cpu",
        "isa": "x86_64_v3",
        "segunc_ops": "0.1.0",
        "torch": "2.10.0",
        "python": "3.11.0",
        "cuda": "",
        "peers": "",
        "date": "2026-01-01",
        **others,
    }


def example_rows() -> list[dict[str, object]]:
    case = CrossEntropy((1, 19, 768, 768), "fp32", mode=BOTH)
    times = {OURS: 2.0, KERNEL: 1.0, COMPILED: 9.0, EAGER: 30.0}
    return [row_of(case, name, milliseconds) for name, milliseconds in times.items()]


def curve_rows(**others: object) -> list[dict[str, object]]:
    """Statistics whose time is linear in the samples and whose memory is theirs or none of it."""
    found = []
    for samples in (2, 4, 8):
        case = PredictiveStatistics((samples, 1, 19, 256, 256), "fp32", study="samples")
        for name, memory in ((OURS, samples), (STREAMED, 5)):
            bytes_held = memory * 1_000_000
            found.append(row_of(case, name, 3.0 * samples, peak_bytes=bytes_held, **others))
    return found


class TestReport:
    def test_rows_come_from_pytest_benchmark(self):
        rows = example_rows()
        entries = [{"extra_info": row} for row in rows] + [{"extra_info": {}}]
        assert report.rows_of({"benchmarks": entries}) == rows
        with pytest.raises(ValueError, match="expected measurements"):
            report.rows_of({"benchmarks": [{"extra_info": {}}]})

    def test_markdown_states_ratios_and_device(self):
        text = report.markdown(example_rows())
        assert text.startswith("Measured on Example CPU, 2 threads (x86_64_v3), segunc_ops 0.1.0,")
        lines = [line for line in text.splitlines() if line.startswith("| [1, 19, 768, 768]")]
        assert len(lines) == 4
        assert all("50%" in line and "47.5 MB" in line for line in lines)
        (eager,) = (line for line in lines if "reference, eager" in line)
        assert "| 30 ms | 27 ms - 36 ms | 15x |" in eager
        header = next(line for line in text.splitlines() if line.startswith("| case"))
        assert all(line.count("|") == header.count("|") for line in lines)

    def test_curves_are_told_apart(self):
        text = report.markdown([*example_rows(), *curve_rows()])
        ordinary, curves = text.split("## Against pixels, classes and samples")
        assert "### predictive_statistics against samples" in curves
        assert curves.count("| [") == 6
        assert ordinary.count("| [") == 4

    def test_plots_draw_what_they_are_for(self):
        types = row_of(CrossEntropy((1, 11, 768, 768), "fp32", mode=BOTH, study="types"))
        measured = [*example_rows(), *curve_rows(), types]
        drawn = report.plots_of(measured)
        assert drawn == {
            ".png": example_rows(),
            "-showcase.png": example_rows(),
            "-scaling.png": curve_rows(),
            "-roofline.png": example_rows(),
        }
        older = [{k: v for k, v in row.items() if k != "operations"} for row in example_rows()]
        assert "-roofline.png" not in report.plots_of(older)

    def test_files(self, tmp_path):
        measured = [*example_rows(), *curve_rows()]
        paths = report.write(measured, tmp_path, suffix="-quick")
        stem = "example-cpu-2-threads-quick"
        assert {path.name for path in paths} == {
            f"{stem}.json",
            f"{stem}.md",
            f"{stem}.png",
            f"{stem}-showcase.png",
            f"{stem}-scaling.png",
            f"{stem}-roofline.png",
        }
        text = (tmp_path / f"{stem}.json").read_text()
        assert json.loads(text) == measured
        assert len(text.splitlines()) == 2 + len(measured)
        for path in paths:
            assert path.suffix != ".png" or path.read_bytes().startswith(b"\x89PNG")

    def test_one_device_a_file(self, tmp_path):
        rows = example_rows()
        rows[0]["device"] = "another"
        with pytest.raises(ValueError, match="one device, got"):
            report.write(rows, tmp_path)

    def test_a_results_file_is_reported_again(self, tmp_path):
        source = tmp_path / "rows.json"
        source.write_text(report.compact_json(example_rows()))
        assert report.main([str(source), "--output", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "example-cpu-2-threads.md").exists()

    @pytest.mark.parametrize(
        ("milliseconds", "text"), [(0.0123, "12.3 µs"), (4.5678, "4.57 ms"), (2345.0, "2.35 s")]
    )
    def test_durations(self, milliseconds, text):
        assert rows.duration(milliseconds) == text


def committed_results() -> list[Path]:
    """Not those that somebody has just measured here."""
    command = ["git", "ls-files", "-z", "*.json"]
    listed = subprocess.run(command, cwd=report.RESULTS, capture_output=True, text=True)
    if listed.returncode:
        return list(report.RESULTS.glob("*.json"))
    return [report.RESULTS / name for name in listed.stdout.split("\0") if name]


class TestDocs:
    def page(self, folder: Path, *files: tuple[str, list[dict[str, object]]]) -> str:
        for name, measured in files:
            (folder / f"{name}.json").write_text(report.compact_json(measured))
        return docs.page(folder)

    def test_the_page_is_that_of_the_results(self, tmp_path):
        for path in committed_results():
            shutil.copy(path, tmp_path)
        written = docs.PAGE.read_text(encoding="utf-8")
        assert written == docs.page(tmp_path), "`python -m benchmarks.docs` brings it up to date"

    def test_every_operation_has_a_paragraph(self, tmp_path):
        rows = [row_of(op.shown()) for op in families.OPS.values()]
        text = self.page(tmp_path, ("cpu", rows)).split("## What each kernel costs")[1]
        assert re.findall("^### (.*_.*)$", text, re.MULTILINE) == list(families.OPS)

    def test_links_lead_somewhere(self):
        links = re.findall(r"\]\(([^)]*)\)", docs.PAGE.read_text(encoding="utf-8"))
        assert links
        assert [link for link in links if not (docs.PAGE.parent / link).exists()] == []

    def test_figures(self, tmp_path):
        text = self.page(tmp_path, ("cpu", [*example_rows(), *curve_rows()]))
        # Showcase: ours, compiled, eager, no other peer, share of copy, memory.
        assert "| 2 ms | 9 ms (4.5x) | 30 ms (15x) |  | 50% | 47.5 MB (47.5 MB) |" in text
        assert "| fp32 | 2 ms |" in text  # the matrix, without the peers that it compares with
        assert "| ours | S^1.00 | 6 ms | 24 ms | 2 MB | 8 MB |" in text
        assert "| ours, streamed | S^1.00 | 6 ms | 24 ms | 5 MB | 5 MB |" in text
        # Costs: 19 classes in and out in fp32 with 12 bytes of a pixel, at 100 GB/s; operations
        # at 200 GFLOP/s.
        pixels = 768 * 768
        moved = pixels * (2 * 4 * 19 + 12)
        operations = pixels * (19 * (costs.EXP + 4) + costs.LOG + 11)
        cells = (
            *(f"{moved / 1e6:.3g} MB", f"{moved / 1e6:.3g} MB", f"{pixels * 76 / 1e6:.3g} MB"),
            *(rows.duration(moved / 1e8), rows.duration(operations / 2e8), "50", "50%"),
        )
        assert f"forward+backward: ours | 2 ms | {' | '.join(cells)} |" in text
        assert f"ours, kernel alone | 1 ms | {cells[0]} | {cells[1]} |  |" in text
        for ending in ("-showcase.png", "-scaling.png", "-roofline.png"):
            assert f"(../benchmarks/results/cpu{ending})" in text
        assert "Not measured" in text

    def test_a_gpu(self, tmp_path):
        here = {"device": "Example GPU", "device_type": "cuda", "cuda": "13.0"}
        case = CrossEntropy((1, 19, 768, 768), "fp32", mode=BOTH)
        quick = [row_of(case, **here)]
        everything = [row_of(case, **here), row_of(case, EAGER, 20.0, **here)]
        text = self.page(
            tmp_path,
            ("a-gpu", quick),
            ("cpu", example_rows()),
            ("gpu-quick", everything),
            ("gpu-selection", everything * 2),
        )
        assert "Not measured" not in text
        # After the processor, from the file with the most rows that is not a part of one.
        assert text.index("## Example CPU, 2 threads") < text.index("## Example GPU")
        assert "(../benchmarks/results/gpu-quick-showcase.png)" in text
        assert "| 2 ms |  | 20 ms (10x) |" in text
        # What a CPU kernel moves is not known of a GPU's.
        assert "ours | 2 ms | 96.7 MB |  |  |" in text

    def test_without_results(self, tmp_path):
        (tmp_path / "gpu-check.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match="expected results"):
            docs.page(tmp_path)

    def test_slope(self):
        assert docs.slope([(x, 3 * x**1.5) for x in (2, 4, 8, 64)]) == pytest.approx(1.5)
