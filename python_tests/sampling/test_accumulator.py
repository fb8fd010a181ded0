"""The streaming accumulator, and its agreement with all samples at once."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segunc_ops.functional as sf
from python_tests.sampling.cases import (
    DTYPES,
    MAPS,
    SHAPES,
    accumulate,
    assert_close,
    assert_statistics_close,
    expected_maps,
)
from segunc_ops import PredictiveAccumulator

pytestmark = pytest.mark.usefixtures("each_backend")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_samples", [1, 2, 3, 10])
def test_streaming_agrees_with_definitions_and_with_all_at_once(shape, num_samples, dtype):
    torch.manual_seed(0)
    samples = (3 * torch.randn(num_samples, *shape)).to(dtype)
    accumulator = accumulate(samples)
    streamed = accumulator.compute(return_mean=True)

    assert accumulator.count == num_samples
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    expected = expected_maps(samples)
    for name in (*MAPS, "mean"):
        actual = getattr(streamed, name)
        assert actual.dtype == (torch.int64 if name == "prediction" else accumulated)
        assert actual.shape == expected[name].shape
        assert_close(actual, expected[name], name)
    assert_statistics_close(streamed, sf.predictive_statistics(samples))
    assert streamed.std.isnan().all() == (num_samples == 1) or streamed.std.numel() == 0


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "permuted"])
def test_any_strides(layout):
    torch.manual_seed(0)
    if layout == "channels_last":
        samples = [torch.randn(2, 5, 6, 7).to(memory_format=torch.channels_last) for _ in range(4)]
    elif layout == "sliced":
        samples = [torch.randn(4, 9, 8, 15)[::2, 1:6, 1:7, ::2] for _ in range(4)]
    else:
        samples = [torch.randn(7, 2, 5, 6).permute(1, 2, 3, 0) for _ in range(4)]
    contiguous = accumulate([s.contiguous() for s in samples]).compute()
    assert_statistics_close(accumulate(samples).compute(), contiguous)


def test_small_deviations_keep_their_digits():
    # Near p = 0.95 a naive sum of squares would lose a deviation of 1e-4 in float32.
    torch.manual_seed(0)
    base = torch.tensor([4.0, 1.0, 0.0]).view(1, 3, 1)
    samples = base + 2e-3 * torch.randn(10, 1, 3, 256)
    std = accumulate(samples).compute().std
    torch.testing.assert_close(std.double(), expected_maps(samples)["std"], rtol=3e-3, atol=0)


def test_compute_between_updates_changes_nothing():
    torch.manual_seed(0)
    samples = torch.randn(4, 2, 3, 5)
    accumulator = PredictiveAccumulator()
    for i, sample in enumerate(samples):
        statistics = accumulator.update(sample).compute(return_mean=True)
        assert statistics.mean is not None
        statistics.mean.zero_()
        assert_statistics_close(accumulator.compute(), sf.predictive_statistics(samples[: i + 1]))


def test_nan_logits_give_nan_maps_at_their_pixels_alone():
    torch.manual_seed(0)
    samples = torch.randn(3, 1, 4, 6)
    samples[1, 0, 2, 4] = torch.nan
    statistics = accumulate(samples).compute()
    for name in MAPS[1:]:
        assert getattr(statistics, name).isnan().nonzero().tolist() == [[0, 4]]


def test_never_differentiable():
    samples = torch.randn(3, 2, 4, 5, requires_grad=True)
    statistics = accumulate(samples).compute(return_mean=True)
    assert not any(m.requires_grad for m in statistics)


def test_first_update_in_inference_mode_and_later_ones_outside():
    torch.manual_seed(0)
    samples = torch.randn(4, 2, 3, 5)
    accumulator, other = PredictiveAccumulator(), accumulate(samples[2:])
    with torch.inference_mode():
        accumulator.update(samples[0])
        merged = PredictiveAccumulator().merge(other)
    accumulator.update(samples[1])
    merged.merge(accumulator)
    assert_statistics_close(merged.compute(), sf.predictive_statistics(samples))


@settings(max_examples=40, deadline=None)
@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    order=st.permutations(range(4)),
    seed=st.integers(0, 2**16),
)
def test_merge_of_any_partition_in_any_order(owners, order, seed):
    generator = torch.Generator().manual_seed(seed)
    samples = 3 * torch.randn(len(owners), 2, 3, 5, generator=generator, dtype=torch.float64)
    parts = [
        accumulate([s for s, owner in zip(samples, owners, strict=True) if owner == part])
        for part in order
    ]
    merged = PredictiveAccumulator()
    for part in parts:
        assert merged.merge(part) is merged
    assert merged.count == len(owners)
    assert sum(part.count for part in parts) == len(owners)
    assert_statistics_close(merged.compute(), sf.predictive_statistics(samples))


def test_merge_pairwise_in_float32():
    torch.manual_seed(0)
    samples = 3 * torch.randn(8, 2, 5, 6)
    parts = [accumulate(pair) for pair in samples.split(2)]
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    assert_statistics_close(merged.compute(), sf.predictive_statistics(samples))


def test_merge_leaves_the_other_alone_and_independent():
    torch.manual_seed(0)
    samples = torch.randn(5, 2, 3, 4)
    other = accumulate(samples[:2])
    before = pickle.dumps(other)
    mine = PredictiveAccumulator().merge(other)
    mine.update(samples[2])
    accumulate(samples[3:]).merge(other)
    assert pickle.dumps(other) == before
    assert mine.count == 3


def test_merge_of_empty_accumulators():
    assert PredictiveAccumulator().merge(PredictiveAccumulator()).count == 0
    one = accumulate(torch.randn(2, 1, 3, 4))
    before = one.compute()
    assert_statistics_close(one.merge(PredictiveAccumulator()).compute(), before)


def test_merge_with_itself_counts_every_sample_twice():
    torch.manual_seed(0)
    samples = torch.randn(3, 1, 4, 5)
    accumulator = accumulate(samples)
    doubled = accumulator.merge(accumulator)
    assert doubled.count == 6
    assert_statistics_close(
        doubled.compute(), sf.predictive_statistics(torch.cat([samples, samples]))
    )


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_equal_and_independent(copier):
    torch.manual_seed(0)
    samples = torch.randn(4, 2, 3, 5)
    original = accumulate(samples[:3])
    duplicate = copier(original)
    duplicate.update(samples[3])
    assert (original.count, duplicate.count) == (3, 4)
    assert_statistics_close(original.compute(), sf.predictive_statistics(samples[:3]))
    assert_statistics_close(duplicate.compute(), sf.predictive_statistics(samples))
    assert copier(PredictiveAccumulator()).count == 0


def test_reset_forgets_samples_shape_and_type():
    accumulator = accumulate(torch.randn(3, 2, 4, 5))
    assert accumulator.reset() is accumulator
    assert accumulator.count == 0
    samples = torch.randn(2, 1, 3, 7, dtype=torch.float64)
    for sample in samples:
        accumulator.update(sample)
    assert_statistics_close(accumulator.compute(), sf.predictive_statistics(samples))


def test_state_does_not_grow_with_the_samples():
    few, many = accumulate(torch.randn(2, 1, 3, 8, 8)), accumulate(torch.randn(50, 1, 3, 8, 8))
    assert len(pickle.dumps(few)) == len(pickle.dumps(many))


def test_errors_name_what_came_and_leave_the_state_alone():
    accumulator = PredictiveAccumulator()
    assert repr(accumulator) == "PredictiveAccumulator(count=0)"
    with pytest.raises(RuntimeError, match="at least one sample, got none"):
        accumulator.compute()
    with pytest.raises(TypeError, match="logits: expected a tensor, got list"):
        accumulator.update([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"logits: .*int64"):
        accumulator.update(torch.zeros(1, 3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"logits: expected shape \(N, C, \*\)"):
        accumulator.update(torch.zeros(3))
    assert accumulator.count == 0

    samples = torch.randn(2, 1, 3, 4)
    accumulator = accumulate(samples)
    assert repr(accumulator) == (
        "PredictiveAccumulator(count=2, shape=(1, 3, 4), dtype=torch.float32)"
    )
    with pytest.raises(ValueError, match=r"logits: expected shape \(1, 3, 4\).*got \(1, 3, 5\)"):
        accumulator.update(torch.zeros(1, 3, 5))
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match=rf"logits: expected torch.float32.*got {dtype}"):
            accumulator.update(torch.zeros(1, 3, 4, dtype=dtype))
    with pytest.raises(ValueError, match=r"logits: expected device cpu.*got meta"):
        accumulator.update(torch.zeros(1, 3, 4, device="meta"))
    with pytest.raises(ValueError, match=r"other: expected shape \(1, 3, 4\).*got \(2, 3, 4\)"):
        accumulator.merge(accumulate(torch.zeros(1, 2, 3, 4)))
    with pytest.raises(TypeError, match=r"other: expected torch.float32.*got torch.float64"):
        accumulator.merge(accumulate(torch.zeros(1, 1, 3, 4, dtype=torch.float64)))
    with pytest.raises(TypeError, match="other: expected a PredictiveAccumulator, got Tensor"):
        accumulator.merge(samples)  # type: ignore[arg-type]
    assert accumulator.count == 2
    assert_statistics_close(accumulator.compute(), sf.predictive_statistics(samples))
