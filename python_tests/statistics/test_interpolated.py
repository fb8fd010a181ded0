"""Statistics and their stream of logits that the kernel interpolates."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import (
    accumulate_dtype,
    assert_close,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.interpolation import (
    Call,
    interpolated,
    interpolation_matrix,
    random_call,
    random_sizes,
)
from python_tests.statistics.cases import FIELDS, compare, expected
from python_tests.support import LAYOUTS, LOGITS_DTYPES
from segunc_ops import PredictiveAccumulator, PredictiveStatistics

# Tensors are small: waking threads would take most of the time.
pytestmark = pytest.mark.usefixtures("one_thread")

NAN = float("nan")


def assert_statistics(found: PredictiveStatistics, call: Call) -> None:
    """Every map against its definition in float64, of samples interpolated in float64."""
    if len(call.samples) == 1:
        assert found.std.isnan().all(), call.name
        found = found._replace(std=torch.full_like(found.std, NAN))
    compare(found, call.truth(), call.name, accumulate_dtype(call.samples[0].dtype))


def streamed(call: Call) -> PredictiveStatistics:
    accumulator = PredictiveAccumulator()
    for sample in call.samples:
        accumulator.update(sample, call.size, call.align_corners)
    return accumulator.compute(return_mean=True)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_calls(first):
    """200 calls, at once and streamed: arguments, types, layouts and sizes drawn independently."""
    for seed in range(first, first + 50):
        call = random_call(seed)
        found = sf.predictive_statistics(call.samples, **call.options, return_mean=True)
        assert_statistics(found, call)
        assert_statistics(streamed(call), call)


def test_reference_follows_the_definitions():
    with segunc_ops.backend("reference"):
        for seed in range(1000, 1030):
            call = random_call(seed)
            assert_statistics(sf.predictive_statistics(call.samples, **call.options), call)
            assert_statistics(streamed(call), call)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_torch_in_float64(dtype, tolerance, align_corners):
    """Coordinates in float64 for both: what single precision makes of them is in the tolerance."""
    choose = random.Random(3)
    for number in range(24):
        source, size = random_sizes(choose, volume=number % 4 == 0)
        samples = torch.randn((1, 3, 10)[number % 3], 2, 4, *source, dtype=torch.float64).to(dtype)
        large = [interpolated(z.double(), size, align_corners) for z in samples]
        found = sf.predictive_statistics(
            samples, size=size, align_corners=align_corners, return_mean=True
        )
        for name, wanted in expected(torch.stack(large), found.prediction).items():
            torch.testing.assert_close(
                getattr(found, name).double(),
                wanted,
                rtol=tolerance,
                atol=tolerance,
                equal_nan=True,
                msg=lambda m, name=name, source=source, size=size: f"{name} {source} {size}: {m}",
            )


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_type_and_layout(layout, dtype):
    """Past every tile and strip, enlarged and reduced, in volumes."""
    for source, size in (((19, 33), (40, 70)), ((9, 80), (5, 33)), ((3, 9, 11), (5, 12, 20))):
        logits = (3 * torch.randn(3, 2, 35, *source, dtype=torch.float64)).to(dtype)
        samples = [LAYOUTS[layout].make(sample) for sample in logits]
        call = Call(samples, size, False, f"{layout} {dtype} {source} to {size}")
        assert_statistics(sf.predictive_statistics(samples, **call.options), call)
        assert_statistics(streamed(call), call)


def test_samples_of_different_layouts_and_many_of_them():
    samples = [torch.randn(1, 3, 4, 5) for _ in range(150)]
    samples[1] = LAYOUTS["channels_last"].make(samples[1])
    call = Call(samples, (7, 9), False, "150 samples")
    assert_statistics(sf.predictive_statistics(samples, **call.options), call)


def everything(call: Call) -> list[Tensor]:
    """All that the operators give for a call."""
    maps = sf.predictive_statistics(call.samples, **call.options, return_mean=True)
    return [*maps, *streamed(call)]  # type: ignore[list-item]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_own_size_is_no_interpolation(backend):
    """To the bit, NaN and infinity included, for any number of axes."""
    with segunc_ops.backend(backend):
        for shape in ((2, 3, 5, 7), (1, 3, 2, 3, 4), (2, 3), (2, 3, 9), (2, 3, 0, 4)):
            samples = torch.randn(3, *shape)
            if samples.numel():
                samples[1].view(-1)[0] = NAN
            plain = sf.predictive_statistics(samples, return_mean=True)
            same = sf.predictive_statistics(samples, size=shape[2:], return_mean=True)
            for a, b in zip(same, plain, strict=True):
                assert_same_bits(a, b, name=f"{shape}")
            accumulators = PredictiveAccumulator(), PredictiveAccumulator()
            for sample in samples:
                accumulators[0].update(sample)
                accumulators[1].update(sample, shape[2:])
            streams = (each.compute(return_mean=True) for each in accumulators)
            for a, b in zip(*streams, strict=True):
                assert_same_bits(a, b, name=f"{shape} streamed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype):
    for source, size in (((40, 33), (131, 90)), ((60, 90), (31, 44)), ((5, 9, 12), (8, 30, 41))):
        samples = [torch.randn(2, 7, *source).to(dtype) for _ in range(3)]
        call = Call(samples, size, False, f"{source} to {size}")
        assert_same_bits_on_every_run(partial(everything, call), name=call.name, runs=12)


@pytest.mark.parametrize("ratio", [1, 2, 3, 0.5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_nan_reaches_what_has_a_share_of_it(dtype, layout, ratio):
    samples = torch.randn(3, 2, 3, 14, 20).to(dtype)
    samples[1, 0, 1, 6, 9] = NAN
    size = (int(14 * ratio), int(20 * ratio))
    rows, columns = (
        interpolation_matrix(n, m, False, torch.float32) != 0
        for n, m in zip((14, 20), size, strict=True)
    )
    touched = torch.zeros(2, *size, dtype=torch.bool)
    touched[0] = rows[:, 6, None] & columns[:, 9]
    call = Call([LAYOUTS[layout].make(sample) for sample in samples], size, False, "NaN")
    for found in (sf.predictive_statistics(call.samples, **call.options), streamed(call)):
        for field in FIELDS:
            assert torch.equal(getattr(found, field).isnan(), touched), field


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(12, 20), (7, 3), (3, 40)])
def test_a_class_without_mass_changes_nothing(size, align_corners):
    """Logits of -inf stay that where an infinity has a share of 0, too, as at the borders."""
    logits = torch.randn(1, 4, 3, 5)
    logits[:, 3] = -torch.inf
    whole, without = (
        sf.predictive_statistics(x[None], size=size, align_corners=align_corners)
        for x in (logits, logits[:, :3])
    )
    for field in ("prediction", "confidence", "entropy"):
        torch.testing.assert_close(getattr(whole, field), getattr(without, field))


def test_never_differentiable():
    samples = torch.randn(3, 2, 4, 5, 6, requires_grad=True)
    for name in ("native", "reference"):
        with segunc_ops.backend(name):
            found = sf.predictive_statistics(samples, size=(9, 7), return_mean=True)
            again = streamed(Call([*samples], (9, 7), False, name))
        assert not any(t.requires_grad for t in (*found, *again))


def test_autocast_interpolates_in_float32():
    samples = torch.randn(3, 2, 4, 5, 6).bfloat16()
    call = Call([*samples], (11, 13), True, "autocast")
    for name in ("native", "reference"):
        with segunc_ops.backend(name):
            wanted = everything(call)
            with torch.autocast("cpu", torch.bfloat16):
                found = everything(call)
        for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
            assert_same_bits(a, b, name=f"{name}: result {index}")


def test_numpy_arrays():
    samples = torch.randn(3, 2, 4, 5, 6)
    found = sf.predictive_statistics(samples.numpy(), size=(9, 7))
    assert isinstance(found.entropy, np.ndarray)
    wanted = sf.predictive_statistics(samples, size=(9, 7))
    assert_same_bits(torch.from_numpy(found.entropy), wanted.entropy, name="entropy")
    listed = sf.predictive_statistics([*samples.numpy()], size=[np.int64(9), 7])
    assert_same_bits(torch.from_numpy(listed.entropy), wanted.entropy, name="entropy")


def test_the_instrument_sees_another_interpolation():
    """What the comparisons above are worth: half a pixel's shift, or other corners, fails them."""
    call = random_call(7, torch.float32)._replace(size=(19, 23), align_corners=False)
    call = call._replace(samples=[3 * torch.randn(1, 4, 7, 9) for _ in range(3)])
    wrong = sf.predictive_statistics(call.samples, size=call.size, align_corners=True)
    with pytest.raises(AssertionError):
        assert_statistics(wrong, call)
    small = sf.predictive_statistics(call.samples, size=(20, 24))
    shifted = PredictiveStatistics(*(m[:, 1:, 1:] for m in small[:6]))
    with pytest.raises(AssertionError):
        assert_statistics(shifted, call)
    assert_close(
        call.truth(),
        torch.stack([F.interpolate(z.double(), call.size, mode="bilinear") for z in call.samples]),
        name="truth",
        scale=100.0,
        compute=torch.float32,
    )
