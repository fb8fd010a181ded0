"""Rows as a benchmark writes them."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.families.cross_entropy import CrossEntropy
from benchmarks.families.statistics import STREAMED, PredictiveStatistics
from benchmarks.implementations import COMPILED, EAGER, KERNEL, OURS

BOTH = "forward+backward"


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
