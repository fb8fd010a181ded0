"""Clocks and memory: what is measured is the calls and nothing else."""

from __future__ import annotations

import math
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import pytest
import torch

from benchmarks import timing
from benchmarks.memory import peak_bytes, settle_heap, warm_heap
from benchmarks.timing import Call, ReplayClock, Samples, interleave

CPU = torch.device("cpu")
CLOCK = ReplayClock()


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
