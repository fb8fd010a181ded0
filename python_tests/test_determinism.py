"""The same bits on every run, for every number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits
from python_tests.support import LAYOUTS

RUNS = 60
THREADS = (1, 2, 3)
IGNORED = 255


def _cross_entropy(dtype: torch.dtype, layout: str, reduction: str) -> Callable[[], list[Tensor]]:
    x = LAYOUTS[layout].make(torch.randn(2, 7, 65, 67).to(dtype)).requires_grad_()
    u = torch.rand(2, 65, 67).requires_grad_()
    target = torch.randint(0, 7, (2, 65, 67))
    target[torch.rand(target.shape) < 0.1] = IGNORED
    weight = torch.rand(7) + 0.5

    def run() -> list[Tensor]:
        loss = sf.cross_entropy(
            x,
            target,
            weight,
            pixel_weight=u,
            ignore_index=IGNORED,
            reduction=reduction,  # type: ignore[arg-type]
            label_smoothing=0.1,
        )
        upstream = torch.full_like(loss, 0.7)
        return [loss.detach(), *torch.autograd.grad(loss, (x, u), upstream)]

    return run


def _statistics(dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    samples = torch.randn(4, 2, 7, 65, 67).to(dtype)
    return lambda: [*sf.predictive_statistics(samples, return_mean=True)]


def _stream(dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    samples = torch.randn(3, 2, 7, 65, 67).to(dtype)

    def run() -> list[Tensor]:
        mean = torch.empty(samples.shape[1:])
        squares, entropy = torch.empty_like(mean), torch.empty_like(mean[:, 0])
        for count, sample in enumerate(samples, 1):
            sf.accumulate_statistics(mean, squares, entropy, sample, count)
        maps = sf.finalize_statistics(mean, squares, entropy, 3)
        return [mean, squares, entropy, *maps[:6]]

    return run


def _counts(dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    logits, target = torch.randn(2, 7, 65, 67).to(dtype), torch.randint(0, 7, (2, 65, 67))
    uncertainty = torch.rand(2, 65, 67)

    def run() -> list[Tensor]:
        counts = sf.empty_counts(7)
        outcome = sf.accumulate_counts(counts, logits, target, uncertainty, return_outcome=True)
        assert outcome is not None
        patches = torch.zeros(1, 5, dtype=torch.int64)
        threshold = torch.tensor([0.5], dtype=torch.float64)
        sf.accumulate_patch_counts(patches, outcome, uncertainty, threshold)
        return [*counts, outcome, patches]  # type: ignore[list-item]

    return run


CALLS = {
    "mean float32": lambda: _cross_entropy(torch.float32, "contiguous", "mean"),
    "sum bfloat16 channels_last": lambda: _cross_entropy(torch.bfloat16, "channels_last", "sum"),
    "mean_all float16 transposed": lambda: _cross_entropy(torch.float16, "transposed", "mean_all"),
    "mean float64": lambda: _cross_entropy(torch.float64, "contiguous", "mean"),
    "none float32 crop": lambda: _cross_entropy(torch.float32, "crop", "none"),
    "statistics float32": lambda: _statistics(torch.float32),
    "statistics bfloat16": lambda: _statistics(torch.bfloat16),
    "stream float32": lambda: _stream(torch.float32),
    "counts float32": lambda: _counts(torch.float32),
    "counts bfloat16": lambda: _counts(torch.bfloat16),
}


@pytest.mark.parametrize("name", CALLS)
def test_same_bits(name):
    torch.use_deterministic_algorithms(True)
    run = CALLS[name]()
    first = run()
    for number in range(RUNS):
        torch.set_num_threads(THREADS[number % len(THREADS)])
        for index, (again, before) in enumerate(zip(run(), first, strict=True)):
            assert_same_bits(again, before, name=f"{name}: run {number}, result {index}")
