"""Statistics take the memory of their maps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

import segunc_ops.functional as sf
from python_tests.memory import peak_bytes
from segunc_ops import PredictiveAccumulator


def test_statistics_need_their_maps():
    samples = torch.randn(4, 1, 19, 256, 256)
    maps = (8 + 5 * 4) * 256 * 256
    assert peak_bytes(lambda: sf.predictive_statistics(samples)) <= 1.01 * maps + 4096


def test_memory():
    """Results alone: never the large logits, and nothing that grows with the samples."""
    samples, size = torch.randn(8, 1, 19, 64, 64), (256, 256)
    pixels, slack = math.prod(size), 1 << 16
    accumulator = PredictiveAccumulator()
    maps = (8 + 5 * 4) * pixels
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "2 samples": (lambda: sf.predictive_statistics(samples[:2], size=size), maps),
        "8 samples": (lambda: sf.predictive_statistics(samples, size=size), maps),
        "stream": (lambda: accumulator.update(samples[0], size), 0),
    }
    for name, (step, allowed) in steps.items():
        step()  # what is allocated once in a process, or for the first sample, is no part of it
        peak = peak_bytes(lambda step=step: (torch.empty(1), step()))
        assert peak <= allowed + slack, f"{name}: {peak} bytes"
    large = 4 * 19 * pixels
    assert peak_bytes(lambda: F.interpolate(samples[0], size, mode="bilinear")) >= large
