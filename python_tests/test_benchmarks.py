"""The benchmarks measure what they say: clocks, bytes, memory, correctness, reports."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import segunc_ops
from benchmarks import cases, counts, gpu_check, measure, report, sanitizer_cases, timing, workloads
from benchmarks.cases import COMPILED, CUPY, EAGER, KERNEL, OURS, TORCH, TORCH_COMPILED, Case
from benchmarks.memory import peak_bytes, settle_heap, warm_heap
from benchmarks.timing import Call, ReplayClock, Samples, interleave

CPU = torch.device("cpu")
SMALL = (2, 5, 9, 13)
CLOCK = ReplayClock()


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes seconds a case and is exercised by the benchmarks themselves."""
    monkeypatch.setattr(cases, "_compiled", lambda function: function)


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
        case = Case("cross_entropy", shape, "fp32", mode="forward+backward")
        assert case.bytes_moved == 2 * 4 * logits + 12 * pixels
        case = Case("cross_entropy", shape, "bf16")
        assert case.bytes_moved == 2 * logits + 12 * pixels
        case = Case("upsampled_cross_entropy", (1, 19, 192, 192), "fp32", mode="forward+backward")
        assert case.bytes_moved == 2 * 4 * logits // 16 + 12 * pixels
        case = Case("predictive_statistics", (10, *shape), "bf16")
        assert case.bytes_moved == 10 * 2 * logits + 28 * pixels
        case = Case("component_mean", (2, 7, 11), "fp32", "noise")
        assert case.bytes_moved == 9 * (2 * 7 * 11)
        case = Case("accumulate_counts", shape, "fp32")
        assert case.bytes_moved == 4 * logits + 8 * pixels

    def test_suites_grow_and_repeat_nothing(self):
        for device in (CPU, torch.device("cuda")):
            suites = [cases.cases(suite, device) for suite in cases.SUITES]
            for smaller, larger in itertools.pairwise(suites):
                assert larger[: len(smaller)] == smaller
                assert len(larger) > len(smaller)
            for suite in suites:
                assert len({case.id for case in suite}) == len(suite)
                assert {case.op for case in suite} == set(cases.OPS)

    def test_full_covers_the_axes(self):
        full = cases.cases("full", CPU, "cross_entropy")
        assert {case.num_classes for case in full} == {2, 19, 150}
        assert {case.dtype for case in full} == {"fp32", "bf16"}
        assert {case.layout for case in full} == {"nchw", "channels_last"}
        assert "fp16" in {c.dtype for c in cases.cases("default", torch.device("cuda"))}

    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("mode", ["forward", "forward+backward"])
    @pytest.mark.parametrize("op", ["cross_entropy", "upsampled_cross_entropy"])
    def test_cross_entropy_workload(self, uncompiled, op, dtype, layout, mode):
        work = workloads.workload(Case(op, SMALL, dtype, layout, mode), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.case.implementations
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_statistics_workload(self, uncompiled, dtype, layout):
        work = workloads.workload(Case("predictive_statistics", (4, *SMALL), dtype, layout), CPU)
        work.check()
        assert tuple(work.calls()) == work.case.implementations

    @pytest.mark.parametrize("content", ["street scene", "noise"])
    def test_component_mean_workload(self, content):
        work = workloads.workload(Case("component_mean", (2, 64, 96), "fp32", content), CPU)
        work.check()
        calls = work.calls()
        assert set(calls) == set(work.case.implementations) - {CUPY}
        for call in calls.values():
            call.run()

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_counts_workload(self, dtype, layout):
        work = workloads.workload(Case("accumulate_counts", SMALL, dtype, layout), CPU)
        work.check()
        calls = work.calls()
        assert tuple(calls) == work.case.implementations
        for call in calls.values():
            call.run()

    def test_check_finds_a_wrong_count(self, monkeypatch):
        right = counts._fused_counts

        def wrong(tables, inputs):
            right(tables, inputs)
            tables.calibration[3, 1] += 1

        monkeypatch.setattr(counts, "_fused_counts", wrong)
        with pytest.raises(AssertionError, match="calibration error of 'ours'"):
            workloads.workload(Case("accumulate_counts", SMALL, "fp32"), CPU).check()

    def test_layouts_are_what_they_are_called(self, uncompiled):
        for layout, last in (("nchw", 13), ("channels_last", 5)):
            case = Case("cross_entropy", SMALL, "fp32", layout)
            logits = workloads.workload(case, CPU)._sets[0].logits
            assert logits.shape == SMALL
            assert sorted(logits.stride())[1] == last

    def test_inputs_outgrow_the_cache(self, uncompiled, monkeypatch):
        monkeypatch.setattr(cases, "last_level_cache_bytes", lambda device: 4 << 20)
        case = Case("cross_entropy", (1, 3, 160, 160), "fp32")
        assert workloads.workload(case, CPU).num_sets * case.bytes_moved >= 3 * (4 << 20)
        tiny = Case("cross_entropy", (1, 3, 16, 16), "fp32")
        assert workloads.workload(tiny, CPU).num_sets == 1

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda loss: loss * 1.01, "loss of 'ours'"),
            (lambda loss: loss * float("nan"), "loss of 'ours'"),
            (lambda loss: loss.detach() + 1.01 * (loss - loss.detach()), "gradient of 'ours'"),
            (lambda loss: loss.detach().requires_grad_(), "gradient of 'ours'"),
        ],
    )
    @pytest.mark.parametrize("op", ["cross_entropy", "upsampled_cross_entropy"])
    def test_check_finds_a_wrong_loss(self, uncompiled, monkeypatch, op, wrong, message):
        right = cases._fused_cross_entropy
        monkeypatch.setattr(
            cases, "_fused_cross_entropy", lambda *args, **options: wrong(right(*args, **options))
        )
        case = Case(op, SMALL, "fp32", mode="forward+backward")
        with pytest.raises(AssertionError, match=message):
            workloads.workload(case, CPU).check()

    @pytest.mark.parametrize("index", range(6))
    def test_check_finds_a_wrong_map(self, uncompiled, monkeypatch, index):
        right = cases._fused_statistics

        def wrong(samples):
            maps = list(right(samples))
            maps[index] = maps[index].clone()
            maps[index][-1, -1, -1] += 1
            return tuple(maps)

        monkeypatch.setattr(cases, "_fused_statistics", wrong)
        case = Case("predictive_statistics", (4, *SMALL), "fp32")
        with pytest.raises(AssertionError, match=f"{cases.StatisticsWorkload.NAMES[index]} of"):
            workloads.workload(case, CPU).check()

    def test_a_peer_without_a_compiler_is_left_out(self, monkeypatch):
        def broken(function):
            def run(*arguments):
                raise RuntimeError("no compiler")

            return run

        monkeypatch.setattr(cases, "_compiled", broken)
        for case in (
            Case("cross_entropy", SMALL, "fp32"),
            Case("predictive_statistics", (4, *SMALL), "fp32"),
        ):
            work = workloads.workload(case, CPU)
            work.check()
            missing = {COMPILED, TORCH_COMPILED} & set(case.implementations)
            assert work.unavailable == dict.fromkeys(missing, "RuntimeError: no compiler")
            assert set(work.calls()) == set(case.implementations) - missing

    def test_our_own_failure_is_not_left_out(self, uncompiled, monkeypatch):
        def broken(*tensors):
            raise RuntimeError("no kernel")

        monkeypatch.setattr(cases, "_fused_cross_entropy", broken)
        with pytest.raises(RuntimeError, match="no kernel"):
            workloads.workload(Case("cross_entropy", SMALL, "fp32"), CPU).check()

    def test_the_reference_is_not_measured_as_ours(self):
        case = Case("cross_entropy", SMALL, "fp32")
        with (
            segunc_ops.backend("reference"),
            pytest.raises(RuntimeError, match="expected native kernels on cpu"),
        ):
            workloads.workload(case, CPU)

    def test_unknown_operation(self):
        with pytest.raises(ValueError, match="op: expected one of"):
            workloads.workload(Case("conv", SMALL, "fp32"), CPU)


@pytest.fixture
def small_copy(monkeypatch):
    monkeypatch.setattr(
        measure, "copy_call", lambda device, cache: (Call(lambda: time.sleep(1e-3)), 1 << 20)
    )


class TestMeasure:
    def test_figures_are_derived(self, uncompiled, small_copy):
        case = Case("cross_entropy", (1, 3, 160, 160), "fp32", mode="forward+backward")
        measured = measure.measure(case, CPU, budget=0.0)
        assert tuple(measured) == case.implementations
        for name, measurement in measured.items():
            row = measurement.row
            assert row["implementation"] == name
            assert row["gb_per_s"] == pytest.approx(
                case.bytes_moved / measurement.samples.median / 1e9, rel=1e-3
            )
            assert row["fraction_of_copy"] == pytest.approx(
                row["gb_per_s"] / row["copy_gb_per_s"], rel=2e-3
            )
            assert row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
            assert {"device", "isa", "torch", "python", "segunc_ops", "threads", "date"} <= set(row)
        assert measured[OURS].figures.peak_over_logits < 1.1
        assert measured[TORCH].figures.peak_over_logits > 2

    def test_failing_cases_do_not_lose_the_others(
        self, uncompiled, small_copy, monkeypatch, tmp_path, capsys
    ):
        good = Case("cross_entropy", (1, 3, 8, 8), "fp32")
        monkeypatch.setattr(
            measure, "cases", lambda suite, device: [Case("conv", SMALL, "fp32"), good]
        )
        arguments = ["--budget", "0", "--output", str(tmp_path)]
        assert measure.main(arguments) == 1
        assert "conv-2x5x9x13" in capsys.readouterr().err
        (path,) = tmp_path.glob("*.json")
        rows = json.loads(path.read_text())
        assert [row["implementation"] for row in rows] == list(good.implementations)


def example_rows() -> list[dict[str, object]]:
    times = {OURS: 2.0, KERNEL: 1.0, COMPILED: 9.0, EAGER: 30.0}
    return [
        {
            "op": "cross_entropy",
            "shape": "1x19x768x768",
            "dtype": "fp32",
            "layout": "nchw",
            "mode": "forward+backward",
            "implementation": name,
            "median_ms": milliseconds,
            "q1_ms": milliseconds * 0.9,
            "q3_ms": milliseconds * 1.2,
            "gb_per_s": 50.0,
            "copy_gb_per_s": 100.0,
            "fraction_of_copy": 0.5,
            "peak_bytes": 47_500_000,
            "peak_over_logits": 1.06,
            "device": "Example CPU, 2 threads",
            "isa": "x86_64_v3",
            "segunc_ops": "0.1.0",
            "torch": "2.10.0",
            "python": "3.11.0",
            "cuda": "",
            "date": "2026-01-01",
        }
        for name, milliseconds in times.items()
    ]


class TestReport:
    def test_rows_come_from_pytest_benchmark(self):
        rows = example_rows()
        entries = [{"extra_info": row} for row in rows] + [{"extra_info": {}}]
        assert report.rows_of({"benchmarks": entries}) == rows
        with pytest.raises(ValueError, match="expected measurements"):
            report.rows_of({"benchmarks": [{"extra_info": {}}]})

    def test_markdown_states_ratios_and_device(self):
        text = report.markdown(example_rows())
        lines = [line for line in text.splitlines() if line.startswith("| [1, 19, 768, 768]")]
        assert len(lines) == 4
        assert all("Example CPU, 2 threads (x86_64_v3)" in line for line in lines)
        assert all("50%" in line and "47.5 MB" in line for line in lines)
        (eager,) = (line for line in lines if "reference, eager" in line)
        assert "| 30 ms | 27 ms - 36 ms | 15x |" in eager
        header = next(line for line in text.splitlines() if line.startswith("| case"))
        assert all(line.count("|") == header.count("|") for line in lines)

    def test_files(self, tmp_path):
        paths = report.write(example_rows(), tmp_path, suffix="-quick")
        stem = "example-cpu-2-threads-quick"
        assert {path.name for path in paths} == {
            f"{stem}.json",
            f"{stem}.md",
            f"{stem}.png",
            f"{stem}-showcase.png",
        }
        text = (tmp_path / f"{stem}.json").read_text()
        assert json.loads(text) == example_rows()
        assert len(text.splitlines()) == 2 + len(example_rows())
        assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")

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
        assert report._duration(milliseconds) == text


class TestGpuCheck:
    def run(self, code: str, limit: float = 60.0, **extra: object) -> gpu_check.Step:
        command = [sys.executable, "-c", code]
        return gpu_check.run_step(
            "step", command, cwd=Path.cwd(), env=os.environ, limit=limit, **extra
        )

    def test_steps(self):
        passed = self.run("print('fine')")
        assert (passed.status, passed.returncode, passed.output_tail) == ("passed", 0, "fine\n")
        failed = self.run("import sys; sys.exit('broken')")
        assert (failed.status, failed.returncode) == ("failed", 1)
        assert "broken" in failed.output_tail

    def test_a_step_over_its_limit_ends_with_its_children(self, tmp_path):
        mark = tmp_path / "mark"
        child = f"import time; time.sleep(6); open({str(mark)!r}, 'w')"
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        begin = time.monotonic()
        step = self.run(code, limit=2.0)
        assert step.status == "timeout"
        assert time.monotonic() - begin < 5.5
        time.sleep(max(0.0, 7.0 - (time.monotonic() - begin)))
        assert not mark.exists()

    def test_folders_are_redacted_longest_first(self):
        redact = gpu_check.Redactor({Path("/a"): "<a>", Path("/a/b"): "<b>"})
        assert redact("in /a/b/c and /a/d") == "in <b>/c and <a>/d"

    def test_the_newest_wheel(self, tmp_path, monkeypatch):
        monkeypatch.setattr(gpu_check, "_REPOSITORY", tmp_path)
        assert gpu_check.find_wheel(None) == tmp_path
        (tmp_path / "dist").mkdir()
        for age, version in enumerate(("0.10.0", "0.9.0")):
            wheel = tmp_path / "dist" / f"segunc_ops-{version}-py3-none-any.whl"
            wheel.touch()
            os.utime(wheel, (1000 - age, 1000 - age))
        assert "0.10.0" in gpu_check.find_wheel(None).name
        with pytest.raises(FileNotFoundError, match="--wheel: expected"):
            gpu_check.find_wheel(tmp_path / "none.whl")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu(self, capsys):
        assert gpu_check.main([]) == 3
        assert "nothing to check here" in capsys.readouterr().err

    @pytest.fixture
    def check(self, tmp_path, monkeypatch) -> Callable[..., tuple[int, dict]]:
        """Runs the whole check with every command replaced by a given outcome."""

        def run(limit: float = 400.0, sanitizer: str | None = "tool", **outcomes: str):
            def step(name, command, *, cwd, env, limit, redact):
                assert (cwd / "benchmarks" / "sanitizer_cases.py").exists()
                assert not (cwd / "segunc_ops").exists()
                commands.append(list(command))
                return gpu_check.Step(name, outcomes.get(name, "passed"))

            commands: list[list[str]] = []
            monkeypatch.setattr(gpu_check, "run_step", step)
            monkeypatch.setattr(gpu_check, "_sanitizer", lambda: sanitizer)
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Example GPU")
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
            monkeypatch.setenv("OUT", str(tmp_path))
            code = gpu_check.main([f"--time-limit={limit}"])
            return code, json.loads((tmp_path / "gpu-check.json").read_text()), commands

        return run

    def test_all_steps(self, check):
        code, summary, commands = check()
        assert code == 0
        assert summary["passed"]
        names = [step["name"] for step in summary["steps"]]
        sanitizers = ["memcheck", "racecheck", "initcheck", "synccheck"]
        assert names == ["install", "import", "tests", *sanitizers, "benchmarks"]
        install = commands[0]
        assert {"--no-index", "--no-deps", "--target"} <= set(install)
        assert "--kernel-regex=kns=segunc" in commands[names.index("memcheck")]
        assert "--kernel-regex=kns=segunc" not in commands[names.index("initcheck")]

    def test_a_failed_step_does_not_stop_the_others(self, check):
        code, summary, _ = check(tests="failed", racecheck="timeout")
        assert code == 1
        assert not summary["passed"]
        assert summary["steps"][-1]["name"] == "benchmarks"

    def test_nothing_runs_without_an_installation(self, check):
        code, summary, _ = check(install="failed")
        assert code == 1
        assert [step["name"] for step in summary["steps"]] == ["install"]

    def test_what_is_missing_is_skipped_and_said(self, check):
        code, summary, _ = check(limit=10.0, sanitizer=None)
        assert code == 0
        skipped = {
            s["name"]: s["output_tail"] for s in summary["steps"] if s["status"] == "skipped"
        }
        assert skipped["memcheck"] == "compute-sanitizer was not found"
        assert "time limit" in skipped["benchmarks"]


def test_sanitizer_cases_run():
    assert sanitizer_cases.run("cpu") == 4 * 5 * 4 * 3


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
        for op, shape in (("cross_entropy", SMALL), ("predictive_statistics", (4, *SMALL))):
            for mode in ("forward", "forward+backward"):
                work = workloads.workload(Case(op, shape, dtype, layout, mode), self.device)
                work.check()
                for call in work.calls().values():
                    call.run()

    def test_peak_memory(self):
        held = torch.ones(1 << 20, device=self.device)
        assert peak_bytes(lambda: held + 1, self.device) == 4 << 20
