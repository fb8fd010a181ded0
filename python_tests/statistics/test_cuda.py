"""On a GPU: the same calls against float64 on the CPU, and what only a GPU has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import accumulate_dtype, assert_close, assert_same_bits_on_every_run
from python_tests.gpu import assert_graph_replays, on_cpu, peak_memory, synchronisation_raises
from python_tests.interpolation import FEW_PIXELS, TILED
from python_tests.statistics.cases import FIELDS, SHAPES, compare
from python_tests.support import LAYOUTS, LOGITS_DTYPES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_kernels")]


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics(layout, dtype):
    for shape in SHAPES:
        for count in (2, 10):
            logits = [3 * torch.randn(shape) for _ in range(count)]
            samples = [LAYOUTS[layout].make(z.to(dtype)) for z in logits]
            stacked = torch.stack([s.contiguous() for s in samples])
            name = f"{layout} {dtype} {shape} x {count}"
            on_gpu = [LAYOUTS[layout].make(s.cuda()) for s in samples]
            found = sf.predictive_statistics(on_gpu, return_mean=True)
            compare(on_cpu(found), stacked, name)
            mean = torch.full(shape, torch.nan, device="cuda", dtype=found.std.dtype)
            squares, entropy = torch.empty_like(mean), torch.empty_like(mean[:, 0])
            for number, sample in enumerate(on_gpu, 1):
                sf.accumulate_statistics(mean, squares, entropy, sample, number)
            streamed = sf.finalize_statistics(mean, squares, entropy, count, return_mean=True)
            compare(on_cpu(streamed), stacked, f"streamed {name}")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpolated_statistics(layout, dtype, align_corners):
    """As on the CPU, in the type that both compute in; all at once and as a stream."""
    compute = accumulate_dtype(dtype)
    make = LAYOUTS[layout].make
    for number, (shape, size) in enumerate((*TILED, *FEW_PIXELS)):
        samples = [3 * torch.randn(shape).to(dtype) for _ in range((3, 1, 10)[number % 3])]
        options = {"size": size, "align_corners": align_corners}
        wanted = sf.predictive_statistics([make(s.to(compute)) for s in samples], **options)
        on_gpu = [make(s.cuda()) for s in samples]
        accumulator = segunc_ops.PredictiveAccumulator()
        for sample in on_gpu:
            accumulator.update(sample, **options)
        found = {
            "at once": sf.predictive_statistics(on_gpu, **options),
            "streamed": accumulator.compute(),
        }
        surprise = 1 + 2 * max(float(s.double().abs().max()) for s in samples)
        for kind, statistics in found.items():
            name = f"{layout} {dtype} {shape} to {size} {kind}"
            # Rounding may decide between classes; what is said of one holds for it alone.
            same = statistics.prediction.cpu() == wanted.prediction
            assert same.double().mean() > 0.999, name
            for field in FIELDS:
                got, want = getattr(statistics, field).cpu(), getattr(wanted, field)
                if field in ("confidence", "std"):
                    got, want = got[same], want[same]
                assert_close(
                    got,
                    want.double(),
                    name=f"{name}: {field}",
                    scale=surprise,
                    compute=compute,
                    bias=False,  # of the CPU's result, which is rounded too
                )


def test_interpolated_statistics_take_no_more_memory_than_their_maps():
    samples = torch.randn(4, 1, 19, 64, 64, device="cuda")
    maps = 256 * 256 * (8 + 5 * 4)
    assert peak_memory(lambda: sf.predictive_statistics(samples, size=(256, 256))) <= 1.1 * maps


def test_more_samples_than_one_call_takes():
    samples = torch.randn(300, 1, 5, 40)
    scattered = [s.cuda() for s in samples]
    compare(on_cpu(sf.predictive_statistics(scattered)), samples, "300 tensors")
    found = sf.predictive_statistics(samples.cuda())
    compare(on_cpu(found), samples, "a tensor of 300")


def test_nan_samples_give_nan_maps():
    samples = torch.randn(3, 1, 4, 50, device="cuda")
    samples[1, 0, 2, 7] = torch.nan
    found = sf.predictive_statistics(samples)
    for field in FIELDS:
        nan = getattr(found, field).isnan()
        assert nan[0, 7], field
        assert nan.sum() == 1, field


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_cuda_graphs(dtype):
    samples = torch.randn(4, 2, 11, 32, 33, device="cuda").to(dtype)

    def calls() -> tuple[Tensor, ...]:
        return (
            *sf.predictive_statistics(samples)[:6],
            *sf.predictive_statistics(samples, size=(50, 60))[:6],
        )

    assert_graph_replays(calls, samples.normal_)


def test_nothing_synchronises():
    samples = [torch.randn(2, 19, 64, 64, device="cuda") for _ in range(2)]
    sf.predictive_statistics(samples)
    with synchronisation_raises():
        sf.predictive_statistics(samples)
        sf.predictive_statistics(samples, size=(70, 80))


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_same_bits_on_every_run(dtype):
    x = torch.randn(3, 19, 129, 131, device="cuda").to(dtype)
    samples = [x, 2 * x, -x]

    def calls() -> tuple[Tensor, ...]:
        return (
            *sf.predictive_statistics(samples)[:6],
            *sf.predictive_statistics(samples, size=(250, 270))[:6],
        )

    assert_same_bits_on_every_run(calls, name=str(dtype))
