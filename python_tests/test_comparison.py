"""The comparison helper must fail where results are wrong, and say where."""

from __future__ import annotations

import pytest
import torch

from python_tests.comparison import (
    assert_close,
    assert_gradients_exist,
    assert_same_bits,
    assert_same_bits_on_every_run,
)


@pytest.fixture
def truth():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 50, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounded_truth_passes(truth, dtype):
    assert_close(truth.to(dtype), truth, name="rounded", peer=truth.to(dtype))


def test_worst_element_is_named(truth):
    actual = truth.float()
    actual[3, 4] += 1e-3
    actual[7, 9] += 1e-1
    with pytest.raises(AssertionError, match=r"loss: 2 of 2000 elements differ; worst at \(7, 9\)"):
        assert_close(actual, truth, name="loss")


def test_nan_mismatch_is_found_both_ways(truth):
    actual = truth.float()
    actual[1, 2] = float("nan")
    with pytest.raises(AssertionError, match=r"NaN mismatch at 1 of 2000 .*\(1, 2\): got nan"):
        assert_close(actual, truth, name="loss")
    with pytest.raises(AssertionError, match=r"NaN mismatch"):
        assert_close(truth.float(), actual.double(), name="loss")
    assert_close(actual, actual.double(), name="loss")


def test_infinity_mismatch_is_found(truth):
    infinite = truth.clone()
    infinite[5, 6] = float("inf")
    with pytest.raises(AssertionError, match=r"infinity mismatch .*\(5, 6\)"):
        assert_close(truth.float(), infinite, name="loss")
    with pytest.raises(AssertionError, match=r"infinity mismatch"):
        assert_close(-infinite.float(), infinite, name="loss")
    assert_close(torch.full((2,), float("inf")).half(), torch.full((2,), 1e6).double(), name="loss")


def test_more_error_than_the_peer_is_found(truth):
    # Within what rounding allows at this scale, yet the peer is exact.
    actual = truth + 10 * torch.finfo(torch.float64).eps
    actual[2, 1] += 4 * torch.finfo(torch.float64).eps
    assert_close(actual, truth, name="loss", bias=False)
    assert_close(actual, truth, name="loss", peer=actual, bias=False)
    with pytest.raises(AssertionError, match=r"at \(2, 1\), the peer's largest is 0"):
        assert_close(actual, truth, name="loss", peer=truth, bias=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_truncation_is_a_bias(truth, dtype):
    # Halves are the upper bits of single precision: cutting instead of rounding leans towards 0.
    bits = 16 if dtype == torch.bfloat16 else 13
    cut = (truth.float().view(torch.int32) >> bits << bits).view(torch.float32)
    with pytest.raises(AssertionError, match=r"elements differ|lean away from 0 by -"):
        assert_close(cut.to(dtype), truth, name="gradient")
    shifted = truth + 0.5 * torch.finfo(torch.float32).eps * 16 * (1 + truth.abs())
    with pytest.raises(AssertionError, match=r"lean upwards by \+"):
        assert_close(shifted, truth, name="gradient", compute=torch.float32)


def test_shape_is_compared(truth):
    with pytest.raises(AssertionError, match=r"expected shape \(40, 50\), got \(50, 40\)"):
        assert_close(truth.t(), truth, name="loss")


def test_missing_and_unwanted_gradients_are_found(truth):
    assert_gradients_exist({"input": truth, "pixel_weight": None}, {"input": True})
    with pytest.raises(AssertionError, match="gradient of pixel_weight: missing"):
        assert_gradients_exist({"input": truth}, {"input": True, "pixel_weight": True})
    with pytest.raises(AssertionError, match="gradient of input: not wanted"):
        assert_gradients_exist({"input": truth}, {"input": False})


def test_bits_are_compared(truth):
    assert_same_bits(truth, truth.clone(), name="loss")
    other = truth.clone()
    other[2, 3] = torch.nextafter(other[2, 3], torch.tensor(9.0, dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"bits differ at 1 of 2000 .*\(2, 3\)"):
        assert_same_bits(other, truth, name="loss")
    with pytest.raises(AssertionError, match="bits differ"):
        assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]), name="zero")
    with pytest.raises(AssertionError, match=r"expected torch\.float64"):
        assert_same_bits(truth.float(), truth, name="loss")


def test_a_run_that_differs_is_named():
    numbers = iter([*[0.0] * 5, 1.0])
    with pytest.raises(AssertionError, match="sum: run 4, result 0: bits differ"):
        assert_same_bits_on_every_run(lambda: [torch.tensor([next(numbers)])], name="sum")
    assert_same_bits_on_every_run(lambda: [torch.empty(3)], name="NaN of fresh memory", runs=6)
