"""On a GPU: the same calls against the CPU, and what only a GPU has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import accumulate_dtype, assert_same_bits
from python_tests.counts.cases import (
    SHAPES,
    assert_counts_agree,
    away_from_edges,
    count,
    random_batch,
)
from python_tests.gpu import on_cpu, synchronisation_raises
from python_tests.interpolation import FEW_PIXELS, TILED
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, TARGET_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts(layout, dtype, probabilities):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for number, shape in enumerate((*SHAPES, (2, 19, 512, 513), (1, 100, 64, 65))):
        values, target, uncertainty = random_batch(shape, dtype, layout, probabilities)
        target = target.to(TARGET_DTYPES[number % len(TARGET_DTYPES)])
        options = {"from_probabilities": probabilities}
        wanted = count(values, target, uncertainty, **options)
        on_gpu = LAYOUTS[layout].make(values.cuda())
        found = count(on_gpu, target.cuda(), uncertainty.cuda(), device="cuda", **options)
        name = f"{layout} {dtype} {shape}"
        assert_counts_agree(on_cpu(found), wanted, compute, name)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_counts_of_maps_and_patches(window):
    statistics = sf.predictive_statistics(torch.randn(4, 2, 19, 130, 131))
    target = torch.randint(0, 19, (2, 130, 131), dtype=torch.uint8)
    target[:, :9, :9] = IGNORED
    on_gpu = sf.PredictiveStatistics(*(None if t is None else t.cuda() for t in statistics))
    options = {"num_classes": 19, "tables": ("confusion", "calibration", "histogram")}
    wanted = count(statistics, target, statistics.std, **options)
    found = count(on_gpu, target.cuda(), on_gpu.std, device="cuda", **options)
    assert_counts_agree(on_cpu(found), wanted, torch.float32, "maps")
    thresholds = torch.tensor([0.1, 0.2], dtype=torch.float64)
    patches = torch.zeros(2, 5, dtype=torch.int64)
    of_gpu = patches.cuda()
    sf.accumulate_patch_counts(patches, wanted[1], statistics.std, thresholds, window=window)
    sf.accumulate_patch_counts(of_gpu, found[1], on_gpu.std, thresholds.cuda(), window=window)
    assert_same_bits(of_gpu.cpu(), patches, name="patches")


def test_a_bad_target_is_in_no_count_and_raised_by_the_next_call():
    values, target = torch.randn(1, 5, 40, 41), torch.randint(0, 5, (1, 40, 41))
    target[0, 3, 4] = 9
    tables = ("confusion", "calibration", "scores")
    counts, outcome = count(values.cuda(), target.cuda(), device="cuda", tables=tables)
    assert counts.confusion.sum() == counts.scores[0] == 40 * 41 - 1
    assert outcome[0, 3, 4] == 2
    with pytest.raises(IndexError, match="out-of-range class 9"):
        segunc_ops.check()


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpolated_counts(layout, dtype, probabilities):
    """As on the CPU where rounding decides neither the class nor the bin of its confidence."""
    compute = accumulate_dtype(dtype)
    make = LAYOUTS[layout].make
    for number, (shape, size) in enumerate((*TILED, *FEW_PIXELS)):
        values = 3 * torch.randn(shape, dtype=torch.float64)
        values = (values.softmax(1) if probabilities else values).to(dtype)
        values[..., 0, 0] = torch.nan
        align_corners = number % 2 == 1
        mode = "bilinear" if len(size) == 2 else "trilinear"
        exact = F.interpolate(values.double(), size, mode=mode, align_corners=align_corners)
        top = exact.topk(2, 1).values
        confidence = (exact if probabilities else exact.softmax(1)).amax(1)
        decided = (top[:, 0] - top[:, 1] > 1e-4 * exact.abs().amax(1)) & away_from_edges(confidence)
        pixels = (shape[0], *size)
        target = torch.where(
            torch.rand(pixels) < 0.5, exact.argmax(1), torch.randint(0, shape[1], pixels)
        )
        target[~decided | (torch.rand(pixels) < 0.1)] = IGNORED
        uncertainty = torch.rand(pixels).to(compute)
        options = {
            "size": size,
            "align_corners": align_corners,
            "from_probabilities": probabilities,
        }
        wanted = count(make(values.to(compute)), target, uncertainty, **options)
        found = count(
            make(values.cuda()), target.cuda(), uncertainty.cuda(), device="cuda", **options
        )
        name = f"{layout} {dtype} {shape} to {size}"
        assert_counts_agree(on_cpu(found), wanted, compute, name)


def test_nothing_synchronises():
    x, u = torch.randn(2, 19, 64, 64, device="cuda"), torch.rand(2, 64, 64, device="cuda")
    target = torch.randint(0, 19, (2, 64, 64), device="cuda")
    counts = sf.empty_counts(19, device="cuda")
    sf.accumulate_counts(counts, x, target, u)
    with synchronisation_raises():
        sf.accumulate_counts(counts, x, target, u)
        sf.accumulate_counts(counts, x[..., ::4, ::4], target, u, size=target.shape[1:])
