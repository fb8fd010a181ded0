"""Counts of logits that the kernel interpolates."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import (
    accumulate_dtype,
    assert_same_bits,
    assert_same_bits_on_every_run,
)
from python_tests.counts.cases import TABLES, assert_counts_agree, away_from_edges, count
from python_tests.interpolation import Call, interpolated, interpolation_matrix, random_call
from python_tests.memory import peak_bytes
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES, TARGET_DTYPES

# Tensors are small: waking threads would take most of the time.
pytestmark = pytest.mark.usefixtures("one_thread")

NAN = float("nan")


def away_from_decisions(values: Tensor, probabilities: bool) -> Tensor:
    """Pixels whose prediction and bin no rounding of interpolated values changes."""
    confidence = values if probabilities else values.softmax(1)
    decided = away_from_edges(confidence.amax(1))
    if values.shape[1] > 1:
        first, second = values.topk(2, dim=1).values.unbind(1)
        decided &= first - second > 1e-3
    return decided


def counting_batch(call: Call, probabilities: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits or probabilities, targets of the call's size, uncertainties."""
    values = call.samples[0]
    if probabilities:
        values = values.double().softmax(1).to(values.dtype)
    large = call._replace(samples=[values]).truth()[0]
    prediction = large.argmax(1)
    target = torch.where(
        torch.rand(prediction.shape) < 0.5,
        prediction,
        torch.randint(0, values.shape[1], prediction.shape),
    )
    decided = away_from_decisions(large, probabilities)
    target[~decided | (torch.rand(target.shape) < 0.2)] = IGNORED
    uncertainty = torch.exp(torch.empty(target.shape).uniform_(-18, 5))
    uncertainty[target == IGNORED] = NAN
    return values, target, uncertainty


def assert_counts(call: Call, probabilities: bool, target_dtype: torch.dtype) -> None:
    """The tables of logits that torch has interpolated: equal integers where rounding decides
    nothing, else sums that differ by what it explains."""
    values, target, uncertainty = counting_batch(call, probabilities)
    large = interpolated(values, call.size, call.align_corners)
    options = {"from_probabilities": probabilities}
    found = count(values, target.to(target_dtype), uncertainty, **options, **call.options)
    wanted = count(large, target, uncertainty, **options)
    assert_counts_agree(found, wanted, accumulate_dtype(values.dtype), call.name)


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
def test_random_counts(probabilities):
    for seed in range(2000, 2060):
        assert_counts(random_call(seed), probabilities, TARGET_DTYPES[seed % len(TARGET_DTYPES)])
    with segunc_ops.backend("reference"):
        for seed in range(3000, 3010):
            assert_counts(
                random_call(seed), probabilities, TARGET_DTYPES[seed % len(TARGET_DTYPES)]
            )


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_what_only_ignored_pixels_blend_is_nothing(dtype):
    target = torch.randint(0, 3, (2, 36, 84))
    target[:, :, 40:] = IGNORED
    target[0, :18] = IGNORED
    rows, columns = (interpolation_matrix(n, 4 * n, False, torch.float32) for n in (9, 21))
    seen = torch.stack([(rows.T @ (t != IGNORED).double() @ columns) > 0 for t in target])
    x, u = torch.randn(2, 3, 9, 21).to(dtype), torch.rand(2, 36, 84)
    wanted = count(x, target, u, size=(36, 84))
    for poison in (NAN, math.inf):
        values = x.masked_fill(~seen.unsqueeze(1), poison)
        uncertainty = u.masked_fill(target == IGNORED, poison)
        found = count(values, target, uncertainty, size=(36, 84))
        for name, a, b in zip(TABLES, found[0], wanted[0], strict=True):
            assert_same_bits(a, b, name=name)
        assert_same_bits(found[1], wanted[1], name="outcome")


def test_a_bad_target_leaves_the_tables_as_they_were():
    target = torch.zeros(2, 40, 41, dtype=torch.long)
    target[1, 39, 40] = 3
    counts = sf.empty_counts(3, tables=("confusion", "scores"))
    with pytest.raises(IndexError, match=r"target: expected a class in \[0, 3\) or -100, got 3"):
        sf.accumulate_counts(counts, torch.randn(2, 3, 9, 8), target, size=(40, 41))
    assert not counts.confusion.any()
    assert not counts.scores.any()


def test_memory():
    """The tables are there already, and the large logits never are."""
    logits, size = torch.randn(1, 19, 64, 64), (256, 256)
    target, u = torch.randint(0, 19, (1, *size)), torch.rand(1, *size)
    counts = sf.empty_counts(19)

    def step() -> None:
        sf.accumulate_counts(counts, logits, target, u, size=size)

    step()  # what is allocated once in a process is no part of it
    assert peak_bytes(lambda: (torch.empty(1), step())) <= 1 << 16


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_type_and_layout(layout, dtype):
    """Past every tile and strip, enlarged and reduced, in volumes."""
    for source, size in (((19, 33), (40, 70)), ((9, 80), (5, 33)), ((3, 9, 11), (5, 12, 20))):
        logits = (3 * torch.randn(2, 35, *source, dtype=torch.float64)).to(dtype)
        name = f"{layout} {dtype} {source} to {size}"
        assert_counts(Call([LAYOUTS[layout].make(logits)], size, False, name), False, torch.uint8)


def everything(call: Call) -> list[Tensor]:
    """All that the operator gives for a call, uncertainties being the deviations."""
    target = torch.arange(math.prod(call.size)).view(1, *call.size) % call.samples[0].shape[1]
    target = target.expand(len(call.samples[0]), *call.size)
    uncertainty = sf.predictive_statistics(call.samples, **call.options).std.nan_to_num()
    counts = sf.empty_counts(call.samples[0].shape[1])
    outcome = sf.accumulate_counts(
        counts, call.samples[0], target, uncertainty, return_outcome=True, **call.options
    )
    return [*counts, outcome]  # type: ignore[list-item]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_own_size_is_no_interpolation(backend):
    """To the bit, NaN included, for any number of axes."""
    with segunc_ops.backend(backend):
        for shape in ((2, 3, 5, 7), (1, 3, 2, 3, 4), (2, 3), (2, 3, 9), (2, 3, 0, 4)):
            samples = torch.randn(3, *shape)
            if samples.numel():
                samples[1].view(-1)[0] = NAN
            target = torch.randint(0, 3, (shape[0], *shape[2:]))
            entropy = sf.predictive_statistics(samples).entropy
            found, _ = count(samples[1], target, entropy, size=shape[2:])
            for a, b in zip(found, count(samples[1], target, entropy)[0], strict=True):
                assert_same_bits(a, b, name=f"{shape}")


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
    logits = torch.randn(2, 3, 14, 20).to(dtype)
    logits[0, 1, 6, 9] = NAN
    size = (int(14 * ratio), int(20 * ratio))
    rows, columns = (
        interpolation_matrix(n, m, False, torch.float32) != 0
        for n, m in zip((14, 20), size, strict=True)
    )
    undefined = int((rows[:, 6, None] & columns[:, 9]).sum())
    target = torch.zeros(2, *size, dtype=torch.long)
    values = LAYOUTS[layout].make(logits)
    counts, _ = count(values, target, torch.rand(2, *size), size=size)
    assert counts.scores[4] == counts.calibration[-1, 0] == undefined
    assert counts.confusion.sum() == 2 * math.prod(size)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(12, 20), (7, 3), (3, 40)])
def test_a_class_without_mass_changes_nothing(size, align_corners):
    """Logits of -inf stay that where an infinity has a share of 0, too, as at the borders."""
    logits = torch.randn(1, 4, 3, 5)
    logits[:, 3] = -torch.inf
    target = torch.randint(0, 3, (1, *size))
    counts = [sf.empty_counts(classes, tables=("scores",)) for classes in (4, 3)]
    for table, x in zip(counts, (logits, logits[:, :3]), strict=True):
        sf.accumulate_counts(table, x, target, size=size, align_corners=align_corners)
    # Pixels, sums in units of 2^-24, and none that is undefined.
    torch.testing.assert_close(counts[0].scores, counts[1].scores, rtol=0, atol=2**24 // 1000)
    assert counts[0].scores[3:].tolist() == [0, 0]


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
