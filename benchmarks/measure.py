"""Measures a case: checks it, times it beside a copy, and records its peak memory."""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import report
from .case import SUITES, Case
from .environment import describe, last_level_cache_bytes, warn_if_busy
from .families import OPTIONAL, PACKAGES, cases, workload
from .memory import peak_bytes, settle_heap
from .timing import Samples, copy_call, interleave, matmul_call

_COPY = "copy"
_MATMUL_SECONDS = 1.0
_STUDY_SHARE = 1 / 3


@dataclass(frozen=True)
class Figures:
    """What is derived from a measurement.

    Times are in milliseconds, rates in 1e9 bytes or floating-point operations a second.
    """

    op: str
    shape: str
    dtype: str
    layout: str
    mode: str
    study: str
    implementation: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    rounds: int
    calls_per_round: int
    input_sets: int
    bytes_moved: int
    gb_per_s: float
    copy_gb_per_s: float
    fraction_of_copy: float
    operations: int
    gflop_per_s: float
    matmul_gflop_per_s: float
    peak_bytes: int
    peak_over_logits: float


@dataclass(frozen=True)
class Measurement:
    """One implementation's figures, the samples behind them, and where they were taken."""

    figures: Figures
    samples: Samples
    environment: Mapping[str, str | int]

    @property
    def row(self) -> dict[str, str | int | float]:
        """The flat row of the results: figures, device and versions."""
        return {**asdict(self.figures), **self.environment}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


@functools.cache
def matmul_rate(device: torch.device) -> float:
    """1e9 operations a second of an fp32 matrix product: what arithmetic can at most come to."""
    call, operations = matmul_call(device)
    samples = interleave({"product": call}, device, budget=_MATMUL_SECONDS)["product"]
    return operations / samples.median * 1e-9


@functools.cache
def tell_left_out(name: str, why: str) -> None:
    """Says so once a run, not once a case."""
    print(f"benchmarks: {name} left out: {why}", file=sys.stderr, flush=True)


def measure(
    case: Case,
    device: torch.device,
    *,
    budget: float = 4.0,
    leave_out: Collection[str] = (),
    tell: Callable[[str, str], None] = tell_left_out,
) -> dict[str, Measurement]:
    """Every implementation of a case by name, timed interleaved with each other and a copy.

    A peer whose compiler or package does not work here is left out.

    Args:
        case: what to measure.
        device: where.
        budget: seconds for the timed rounds; checking and compiling come on top. Studies, whose
            many cases make one figure, get a third of it.
        leave_out: peers that are not tried.
        tell: called with the name of a peer that is left out and why.

    Raises:
        AssertionError: an implementation disagrees with float64.
        RuntimeError: segunc_ops has no native kernels on `device`.
    """
    settle_heap()
    # Without this the compiler's recompilation limit would turn later cases into eager ones.
    torch.compiler.reset()
    gc.collect()
    work = workload(case, device)
    work.unavailable.update(dict.fromkeys(leave_out, "as asked"))
    work.check()
    for name, why in work.unavailable.items():
        tell(name, why)
    calls = work.calls()
    copy, copied = copy_call(device, last_level_cache_bytes(device))
    budget *= _STUDY_SHARE if case.study else 1
    timing = functools.partial(interleave, device=device, min_rounds=case.min_rounds)
    # A small input's calls are timed by the wall clock, a copy always by the device's own.
    if case.clock is None:
        timed = timing({_COPY: copy, **calls}, budget=budget)
        copy_samples = timed.pop(_COPY)
    else:
        timed = timing(calls, clock=case.clock, budget=budget)
        copy_samples = timing({_COPY: copy}, budget=budget / 4)[_COPY]
    copy_rate = copied / copy_samples.median * 1e-9
    product_rate = matmul_rate(device)
    environment = describe(device, PACKAGES)

    def measurement(name: str, samples: Samples) -> Measurement:
        rate = case.bytes_moved / samples.median * 1e-9
        peak = peak_bytes(calls[name].run, device)
        first, third = samples.quartiles
        figures = Figures(
            op=case.op,
            shape="x".join(map(str, case.shape)),
            dtype=case.dtype,
            layout=case.layout,
            mode=case.mode,
            study=case.study,
            implementation=str(name),
            median_ms=_rounded(samples.median * 1e3),
            q1_ms=_rounded(first * 1e3),
            q3_ms=_rounded(third * 1e3),
            rounds=len(samples.seconds),
            calls_per_round=samples.calls,
            input_sets=work.num_sets,
            bytes_moved=case.bytes_moved,
            gb_per_s=_rounded(rate),
            copy_gb_per_s=_rounded(copy_rate),
            fraction_of_copy=_rounded(rate / copy_rate),
            operations=case.operations,
            gflop_per_s=_rounded(case.operations / samples.median * 1e-9),
            matmul_gflop_per_s=_rounded(product_rate),
            peak_bytes=peak,
            peak_over_logits=_rounded(peak / case.logits_bytes),
        )
        return Measurement(figures, samples, environment)

    return {name: measurement(name, samples) for name, samples in timed.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and reports without pytest; cases that fail or no longer fit are named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure", description=main.__doc__)
    parser.add_argument("--suite", choices=SUITES, default="default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of rounds per case")
    parser.add_argument(
        "--leave-out",
        action="append",
        choices=OPTIONAL,
        default=[],
        help="a peer not to measure; may be given several times",
    )
    parser.add_argument("--time-limit", type=float, help="seconds after which no case is begun")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder for results")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    warn_if_busy()
    begin = time.monotonic()
    rows = []
    problems = 0
    for case in cases(options.suite, device):
        if options.time_limit and time.monotonic() - begin > options.time_limit:
            print(f"{case.id}: not begun, the time limit has passed", flush=True)
            continue
        try:
            measured = measure(case, device, budget=options.budget, leave_out=options.leave_out)
        except Exception as error:
            problems += 1
            print(f"{case.id}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        rows += [measurement.row for measurement in measured.values()]
        times = ", ".join(f"{n} {m.figures.median_ms:g} ms" for n, m in measured.items())
        print(f"{case.id}: {times}", flush=True)
    if rows:
        suffix = "" if options.suite == "default" else f"-{options.suite}"
        for path in report.write(rows, options.output, suffix=suffix):
            print(path)
    return 1 if problems or not rows else 0


if __name__ == "__main__":
    raise SystemExit(main())
