"""Times several implementations of one computation fairly: interleaved, in one process.

Free of pytest, so that a machine without pytest-benchmark measures with the same code.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

Clock = Literal["device", "wall"]

_MIN_SAMPLE_SECONDS = 2e-3
_MAX_CALLS_PER_SAMPLE = 1000
# CUDA queues about a thousand launches, beyond which the host would wait for the GPU.
_MAX_ENQUEUED_CALLS = 50
# Upper estimate of a GPU's clock: a slower one only sleeps longer than needed.
_GPU_CYCLES_PER_SECOND = 2.2e9
_ENQUEUE_MARGIN = 1.5
_COPY_CACHES = 4
_MIN_COPY_BYTES = 64 << 20
_MATRIX_SIZES = {"cpu": 1536, "cuda": 8192}


@dataclass(frozen=True)
class Call:
    """One implementation: `run` does the work once, inside `context`, which is not timed.

    The context is for what an implementation must find or leave behind, a warm heap for instance;
    it is entered before one untimed call and the timed ones of a sample.
    """

    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] | None = None


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one figure per round; each round's is the mean of `calls` calls."""

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile; their difference is the spread."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _wall_seconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds for `calls` calls as the caller sees them, with the device idle at both ends."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _device_seconds(
    run: Callable[[], object], calls: int, device: torch.device, enqueue: float
) -> float:
    """Seconds between two events around `calls` calls, the GPU never waiting for the host.

    The GPU is kept busy while the host enqueues the calls, which takes it `enqueue` seconds each;
    otherwise launches that take longer than their kernels would be what is measured.
    """
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(device):
        torch.cuda._sleep(int(_ENQUEUE_MARGIN * calls * enqueue * _GPU_CYCLES_PER_SECOND))
        start.record()
        for _ in range(calls):
            run()
        end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def _sample(call: Call, calls: int, device: torch.device, clock: Clock, enqueue: float) -> float:
    with call.context() if call.context else nullcontext():
        # Calls of a training run follow others of their own kind, and find the memory that those
        # have freed; not what another implementation has left of it.
        call.run()
        if clock == "device":
            return _device_seconds(call.run, calls, device, enqueue) / calls
        return _wall_seconds(call.run, calls, device) / calls


def interleave(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    clock: Clock | None = None,
    budget: float = 4.0,
    min_rounds: int = 5,
    max_rounds: int = 60,
) -> dict[str, Samples]:
    """Times every call once a round, in alternating order, for as many rounds as fit.

    A disturbance of the machine thus meets all implementations alike. An untimed call goes before
    each sample.

    Args:
        calls: implementations by name.
        device: where they run.
        clock: ``"device"`` times the device's work by events, without synchronising in between
            (the default on CUDA); ``"wall"`` is what the caller waits, call overhead included.
        budget: seconds that all rounds should take; fast calls are repeated within a round.
        min_rounds: rounds that are run even when they exceed the budget.
        max_rounds: rounds after which more would not change a median.

    Returns:
        The samples of each call, all with the same number of rounds.

    Raises:
        ValueError: no calls, fewer than one round, or a device clock without a CUDA device.
    """
    clock = clock or ("device" if device.type == "cuda" else "wall")
    if not calls:
        raise ValueError("calls: expected at least one, got none")
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(
            f"min_rounds: expected between 1 and max_rounds, got {min_rounds} and {max_rounds}"
        )
    if clock == "device" and device.type != "cuda":
        raise ValueError(f"clock: expected 'wall' on {device.type}, got 'device'")

    most = _MAX_ENQUEUED_CALLS if clock == "device" else _MAX_CALLS_PER_SAMPLE
    repeats: dict[str, int] = {}
    enqueue: dict[str, float] = {}
    round_seconds = 0.0
    with _without_garbage_collection():
        for name, call in calls.items():
            # The first call compiles, the second meets caches and allocators as later ones do.
            _sample(call, 1, device, "wall", 0.0)
            start = time.perf_counter()
            once = _sample(call, 1, device, "wall", 0.0)
            preparation = time.perf_counter() - start - once  # the untimed call among it
            repeats[name] = min(max(math.ceil(_MIN_SAMPLE_SECONDS / once), 1), most)
            enqueue[name] = once
            round_seconds += once * repeats[name] + preparation
        if clock == "device":
            round_seconds *= 1 + _ENQUEUE_MARGIN
        rounds = min(max(int(budget / round_seconds), min_rounds), max_rounds)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for index in range(rounds):
            order = list(calls) if index % 2 == 0 else list(reversed(list(calls)))
            for name in order:
                seconds[name].append(
                    _sample(calls[name], repeats[name], device, clock, enqueue[name])
                )
    return {name: Samples(tuple(seconds[name]), repeats[name]) for name in calls}


def copy_call(device: torch.device, cache_bytes: int) -> tuple[Call, int]:
    """A copy of a buffer well beyond the cache, and the bytes that it reads and writes."""
    size = max(_COPY_CACHES * cache_bytes, _MIN_COPY_BYTES)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device).view(torch.int32)
    destination = torch.empty_like(source).copy_(source)
    return Call(lambda: destination.copy_(source)), 2 * source.nbytes


def matmul_call(device: torch.device) -> tuple[Call, int]:
    """A product of two large fp32 matrices, and its floating-point operations."""
    size = _MATRIX_SIZES[device.type]
    left, right = torch.randn((2, size, size), device=device)
    product = torch.empty_like(left)
    return Call(lambda: torch.mm(left, right, out=product)), 2 * size**3


class ReplayClock:
    """A clock in seconds that stands still but for `advance`: hands measured times to others."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
