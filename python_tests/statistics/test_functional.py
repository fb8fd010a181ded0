"""predictive_statistics and the running state against float64 torch, term by term."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import (
    accumulate_dtype,
    assert_close,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.statistics.cases import FIELDS, SHAPES, compare
from python_tests.support import LAYOUTS, LOGITS_DTYPES
from segunc_ops import PredictiveStatistics


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_type_and_layout(layout, dtype):
    choose = random.Random(0)
    for shape in SHAPES:
        count = choose.choice((2, 3, 10))
        logits = [(3 * torch.randn(shape, dtype=torch.float64)).to(dtype) for _ in range(count)]
        samples = [LAYOUTS[layout].make(z) for z in logits]
        stacked = torch.stack([s.contiguous() for s in samples])
        name = f"{layout} {dtype} {shape} x {count}"
        for return_mean in (False, True):
            found = sf.predictive_statistics(samples, return_mean=return_mean)
            compare(found, stacked, name)
            assert (found.mean is not None) == return_mean
        for a, b in zip(found, sf.predictive_statistics(stacked, return_mean=True), strict=True):
            if layout == "contiguous":
                assert_same_bits(a, b, name=f"{name}: a tensor and its samples")


@pytest.mark.parametrize("count", [1, 2, 3, 17, 200])
def test_any_number_of_samples(count):
    samples = torch.randn(count, 2, 5, 33)
    found = sf.predictive_statistics(samples)
    if count == 1:
        assert found.std.isnan().all(), "as torch.std of one sample"
        assert_close(found.mutual_information, torch.zeros(2, 33).double(), name="information")
    else:
        compare(found, samples, f"{count} samples")


def test_samples_of_different_layouts():
    samples = [torch.randn(2, 5, 6, 7) for _ in range(3)]
    mixed = [
        LAYOUTS[name].make(z)
        for name, z in zip(("contiguous", "channels_last", "crop"), samples, strict=True)
    ]
    compare(sf.predictive_statistics(mixed), torch.stack(samples), "mixed layouts")
    compare(sf.predictive_statistics(iter_of(mixed)), torch.stack(samples), "a tuple")


def test_samples_whose_strides_differ_where_nothing_is():
    """An axis of one element may have any stride: a slice keeps that of what it was cut from."""
    samples = [torch.randn(1, 5, 3, 7), torch.randn(2, 9, 3, 7)[:1, :5]]
    assert samples[0].stride() != samples[1].stride()
    assert samples[1].is_contiguous()
    compare(sf.predictive_statistics(samples), torch.stack(samples), "a slice of a batch")


def iter_of(samples: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(samples)


@pytest.mark.parametrize("shape", [(3, 0, 4, 5), (3, 2, 4, 0), (3, 2, 4, 0, 5), (3, 0, 4)])
def test_nothing_to_summarise(shape):
    found = sf.predictive_statistics(torch.randn(shape), return_mean=True)
    assert found.prediction.shape == (shape[1], *shape[3:])
    assert found.mean is not None
    assert found.mean.shape == shape[1:]


def test_small_probabilities_keep_their_digits() -> None:
    gap = torch.linspace(0, 86, 100_003)
    samples = torch.stack((torch.zeros_like(gap), -gap)).view(1, 1, 2, -1)
    found = sf.predictive_statistics(samples, return_mean=True).mean
    assert found is not None
    small, exact = found[0, 1].double(), samples[0, 0].double().softmax(0)[1]
    # An exponential and a quotient of a sum, each rounded.
    assert ((small / exact - 1).abs() < 4 * torch.finfo(torch.float32).eps).all()


def test_ties_go_to_the_lowest_class():
    samples = torch.zeros(3, 1, 7, 40)
    samples[:, :, 3:] = 1
    assert (sf.predictive_statistics(samples).prediction == 3).all()


def test_certainty_has_no_entropy():
    samples = torch.full((4, 1, 5, 8), -200.0)
    samples[:, :, 2] = 200.0
    found = sf.predictive_statistics(samples)
    for field, value in zip(FIELDS, (1.0, 0.0, 0.0, 0.0, 0.0), strict=True):
        assert torch.equal(getattr(found, field), torch.full((1, 8), value)), field


def test_disagreement_is_mutual_information():
    """Samples that are certain of different classes: all of the entropy is between them."""
    samples = torch.full((2, 1, 2, 4), -300.0)
    samples[0, :, 0], samples[1, :, 1] = 300.0, 300.0
    found = sf.predictive_statistics(samples)
    assert_close(found.mutual_information, torch.full((1, 4), math.log(2)).double(), name="MI")
    assert_close(found.std, torch.full((1, 4), math.sqrt(0.5)).double(), name="std")


def test_information_is_never_negative():
    same = torch.randn(1, 2, 11, 300).expand(10, -1, -1, -1)
    assert (sf.predictive_statistics(same).mutual_information >= 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_nan_logits_give_nan_maps_there_alone(dtype, bad):
    samples = torch.randn(3, 1, 4, 50).to(dtype)
    samples[1, 0, 2, 7] = bad
    for found in (sf.predictive_statistics(samples), _streamed(samples)):
        for field in FIELDS:
            nan = getattr(found, field).isnan()
            assert nan[0, 7], field
            assert nan.sum() == 1, field


def test_a_class_without_mass():
    samples = torch.randn(3, 1, 4, 9)
    samples[:, :, 1] = -float("inf")
    found = sf.predictive_statistics(samples)
    keep = sf.predictive_statistics(samples[:, :, [0, 2, 3]])
    for field in FIELDS:
        assert_close(getattr(found, field), getattr(keep, field).double(), name=field)


def _streamed(samples: Sequence[Tensor]) -> PredictiveStatistics:
    dtype, shape = accumulate_dtype(samples[0].dtype), samples[0].shape
    # Whatever the state holds beforehand is overwritten.
    state = (
        torch.full(shape, torch.nan, dtype=dtype),
        torch.full(shape, torch.nan, dtype=dtype),
        torch.full((shape[0], *shape[2:]), torch.nan, dtype=dtype),
    )
    for count, sample in enumerate(samples, 1):
        sf.accumulate_statistics(*state, sample, count)
    return sf.finalize_statistics(*state, len(samples), return_mean=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_a_running_state_gives_the_same(dtype, layout):
    for shape in SHAPES:
        samples = [
            LAYOUTS[layout].make((3 * torch.randn(shape, dtype=torch.float64)).to(dtype))
            for _ in range(4)
        ]
        found = _streamed(samples)
        compare(found, torch.stack(samples), f"streamed {layout} {dtype} {shape}")


def test_one_streamed_sample_has_no_spread():
    found = _streamed(torch.randn(1, 2, 3, 4))
    assert found.std.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_follows_the_definitions(dtype):
    samples = torch.randn(5, 2, 4, 6, 7, dtype=dtype)
    with segunc_ops.backend("reference"):
        compare(sf.predictive_statistics(samples, return_mean=True), samples, "reference")
        compare(_streamed(samples), samples, "streamed reference")
        assert sf.predictive_statistics(samples[:1]).std.isnan().all()


def test_never_differentiable():
    samples = torch.randn(3, 2, 4, 5, requires_grad=True)
    for name in ("native", "reference"):
        with segunc_ops.backend(name):
            found = sf.predictive_statistics(samples, return_mean=True)
        assert not any(t.requires_grad for t in found)


def test_a_mean_of_probabilities_sums_to_one():
    found = sf.predictive_statistics(5 * torch.randn(10, 2, 19, 64), return_mean=True)
    assert found.mean is not None
    assert_close(found.mean.sum(1), torch.ones(2, 64).double(), name="sum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits(dtype):
    samples = torch.randn(4, 2, 7, 65, 67).to(dtype)
    assert_same_bits_on_every_run(
        lambda: sf.predictive_statistics(samples, return_mean=True), name=f"statistics {dtype}"
    )


def test_same_bits_of_a_stream():
    samples = torch.randn(3, 2, 7, 65, 67)

    def run() -> list[Tensor]:
        mean = torch.empty(samples.shape[1:])
        squares, entropy = torch.empty_like(mean), torch.empty_like(mean[:, 0])
        for count, sample in enumerate(samples, 1):
            sf.accumulate_statistics(mean, squares, entropy, sample, count)
        maps = sf.finalize_statistics(mean, squares, entropy, 3)
        return [mean, squares, entropy, *maps[:6]]

    assert_same_bits_on_every_run(run, name="stream")


def test_numpy_arrays():
    samples = np.random.default_rng(1).standard_normal((3, 2, 5, 8, 9), np.float32)
    statistics = sf.predictive_statistics(samples, return_mean=True)
    assert type(statistics) is segunc_ops.PredictiveStatistics
    expected = sf.predictive_statistics(torch.from_numpy(samples), return_mean=True)
    for ours, theirs in zip(statistics, expected, strict=True):
        assert isinstance(ours, np.ndarray)
        assert np.array_equal(ours, theirs.numpy())
    listed = sf.predictive_statistics(list(samples))
    assert np.array_equal(listed.std, statistics.std)
