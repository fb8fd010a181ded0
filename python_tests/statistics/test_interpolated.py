"""Statistics, their stream and the counts of logits that the kernel interpolates."""

from __future__ import annotations

import copy
import math
import pickle
import random
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import accumulate_dtype, assert_close, assert_same_bits
from python_tests.counts.test_functional import TABLES, assert_counts_agree, away_from_edges, count
from python_tests.cross_entropy import cases
from python_tests.cross_entropy.test_memory import peak_bytes
from python_tests.statistics.test_functional import FIELDS, compare, expected
from python_tests.support import LAYOUTS, LOGITS_DTYPES, TARGET_DTYPES
from segunc_ops import (
    PredictiveAccumulator,
    PredictiveStatistics,
    ensemble_statistics,
    reference,
    sample_statistics,
)

IGNORED = 255
NAN = float("nan")


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors are small: waking threads would take most of the time."""
    torch.set_num_threads(1)


class Call(NamedTuple):
    """Samples, and the size that they are interpolated to."""

    samples: list[Tensor]
    size: tuple[int, ...]
    align_corners: bool
    name: str

    @property
    def options(self) -> dict[str, object]:
        return {"size": self.size, "align_corners": self.align_corners}

    def truth(self) -> Tensor:
        """The interpolated samples in float64."""
        logits = self.samples[0]
        matrices = cases.interpolation_matrices(logits, self.size, self.align_corners)
        return torch.stack([cases.interpolate(z.double(), matrices) for z in self.samples])


def interpolated(logits: Tensor, size: tuple[int, ...], align_corners: bool = False) -> Tensor:
    """By torch, in memory, in the type that logits are computed in."""
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return reference.interpolate(logits, size, mode, align_corners)


def random_call(seed: int, dtype: torch.dtype | None = None) -> Call:
    """The call of this number: every type, layout and size, 1, 3 or 10 samples."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    source, size = cases.random_sizes(choose, volume=choose.random() < 1 / 3)
    images, classes = choose.choice((1, 2, 3)), choose.choice((1, 2, 5, 19, 40))
    if math.prod(size) > 2000:
        images, classes = 1, min(classes, 5)
    dtype = dtype or choose.choice(LOGITS_DTYPES)
    layout = choose.choice([*LAYOUTS])
    shape = (choose.choice((1, 3, 10)), images, classes, *source)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    logits = (choose.choice((0.1, 2.0, 8.0)) * logits).to(dtype)
    return Call(
        samples=[LAYOUTS[layout].make(sample) for sample in logits],
        size=tuple(size),
        align_corners=choose.random() < 0.5,
        name=f"call {seed} ({tuple(logits.shape)} to {size}, {dtype}, {layout})",
    )


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
        source, size = cases.random_sizes(choose, volume=number % 4 == 0)
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
        assert_counts(random_call(seed), probabilities, TARGET_DTYPES[seed % 3])
    with segunc_ops.backend("reference"):
        for seed in range(3000, 3010):
            assert_counts(random_call(seed), probabilities, TARGET_DTYPES[seed % 3])


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
        assert_counts(call, False, torch.uint8)


def test_samples_of_different_layouts_and_many_of_them():
    samples = [torch.randn(1, 3, 4, 5) for _ in range(150)]
    samples[1] = LAYOUTS["channels_last"].make(samples[1])
    call = Call(samples, (7, 9), False, "150 samples")
    assert_statistics(sf.predictive_statistics(samples, **call.options), call)


def everything(call: Call) -> list[Tensor]:
    """All that the operators give for a call, uncertainties being the deviations."""
    target = torch.arange(math.prod(call.size)).view(1, *call.size) % call.samples[0].shape[1]
    target = target.expand(len(call.samples[0]), *call.size)
    counts = sf.empty_counts(call.samples[0].shape[1])
    maps = sf.predictive_statistics(call.samples, **call.options, return_mean=True)
    uncertainty = maps.std.nan_to_num()
    outcome = sf.accumulate_counts(
        counts, call.samples[0], target, uncertainty, return_outcome=True, **call.options
    )
    return [*maps, *streamed(call), *counts, outcome]  # type: ignore[list-item]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_own_size_is_no_interpolation(backend):
    """To the bit, NaN and infinity included, for any number of axes."""
    with segunc_ops.backend(backend):
        for shape in ((2, 3, 5, 7), (1, 3, 2, 3, 4), (2, 3), (2, 3, 9), (2, 3, 0, 4)):
            samples = torch.randn(3, *shape)
            if samples.numel():
                samples[1].view(-1)[0] = NAN
            target = torch.randint(0, 3, (shape[0], *shape[2:]))
            plain = sf.predictive_statistics(samples, return_mean=True)
            same = sf.predictive_statistics(samples, size=shape[2:], return_mean=True)
            for a, b in zip(same, plain, strict=True):
                assert_same_bits(a, b, name=f"{shape}")
            found, _ = count(samples[1], target, plain.entropy, size=shape[2:])
            for a, b in zip(found, count(samples[1], target, plain.entropy)[0], strict=True):
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
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    for source, size in (((40, 33), (131, 90)), ((60, 90), (31, 44)), ((5, 9, 12), (8, 30, 41))):
        samples = [torch.randn(2, 7, *source).to(dtype) for _ in range(3)]
        call = Call(samples, size, False, f"{source} to {size}")
        first: list[Tensor] = []
        for run in range(12):
            torch.set_num_threads(1 + run % 3)
            results = everything(call)
            first = first or results
            for index, (a, b) in enumerate(zip(results, first, strict=True)):
                assert_same_bits(a, b, name=f"{call.name}: run {run}, result {index}")


@pytest.mark.parametrize("ratio", [1, 2, 3, 0.5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_nan_reaches_what_has_a_share_of_it(dtype, layout, ratio):
    samples = torch.randn(3, 2, 3, 14, 20).to(dtype)
    samples[1, 0, 1, 6, 9] = NAN
    size = (int(14 * ratio), int(20 * ratio))
    rows, columns = (
        cases.interpolation_matrix(n, m, False, torch.float32) != 0
        for n, m in zip((14, 20), size, strict=True)
    )
    touched = torch.zeros(2, *size, dtype=torch.bool)
    touched[0] = rows[:, 6, None] & columns[:, 9]
    call = Call([LAYOUTS[layout].make(sample) for sample in samples], size, False, "NaN")
    for found in (sf.predictive_statistics(call.samples, **call.options), streamed(call)):
        for field in FIELDS:
            assert torch.equal(getattr(found, field).isnan(), touched), field
    target = torch.zeros(2, *size, dtype=torch.long)
    counts, _ = count(call.samples[1], target, torch.rand(2, *size), size=size)
    undefined = int(touched.sum())
    assert counts.scores[4] == counts.calibration[-1, 0] == undefined
    assert counts.confusion.sum() == 2 * math.prod(size)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(12, 20), (7, 3), (3, 40)])
def test_a_class_without_mass_changes_nothing(size, align_corners):
    """Logits of -inf stay that where an infinity has a share of 0, too, as at the borders."""
    logits = torch.randn(1, 4, 3, 5)
    logits[:, 3] = -torch.inf
    target = torch.randint(0, 3, (1, *size))
    options = {"align_corners": align_corners}
    whole, without = (
        sf.predictive_statistics(x[None], size=size, **options) for x in (logits, logits[:, :3])
    )
    for field in ("prediction", "confidence", "entropy"):
        torch.testing.assert_close(getattr(whole, field), getattr(without, field))
    options["upsample"] = "bilinear"
    torch.testing.assert_close(
        sf.cross_entropy(logits, target, **options),
        sf.cross_entropy(logits[:, :3], target, **options),
    )
    counts = [sf.empty_counts(classes, tables=("scores",)) for classes in (4, 3)]
    for table, x in zip(counts, (logits, logits[:, :3]), strict=True):
        sf.accumulate_counts(table, x, target, size=size, align_corners=align_corners)
    # Pixels, sums in units of 2^-24, and none that is undefined.
    torch.testing.assert_close(counts[0].scores, counts[1].scores, rtol=0, atol=2**24 // 1000)
    assert counts[0].scores[3:].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_what_only_ignored_pixels_blend_is_nothing(dtype):
    target = torch.randint(0, 3, (2, 36, 84))
    target[:, :, 40:] = IGNORED
    target[0, :18] = IGNORED
    rows, columns = (cases.interpolation_matrix(n, 4 * n, False, torch.float32) for n in (9, 21))
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
    """Results alone: never the large logits, and nothing that grows with the samples."""
    samples, size = torch.randn(8, 1, 19, 64, 64), (256, 256)
    pixels, slack = math.prod(size), 1 << 16
    target, u = torch.randint(0, 19, (1, *size)), torch.rand(1, *size)
    counts = sf.empty_counts(19)
    accumulator = PredictiveAccumulator()
    maps = (8 + 5 * 4) * pixels
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "2 samples": (lambda: sf.predictive_statistics(samples[:2], size=size), maps),
        "8 samples": (lambda: sf.predictive_statistics(samples, size=size), maps),
        "stream": (lambda: accumulator.update(samples[0], size), 0),
        "counts": (lambda: sf.accumulate_counts(counts, samples[0], target, u, size=size), 0),
    }
    for name, (step, allowed) in steps.items():
        step()  # what is allocated once in a process, or for the first sample, is no part of it
        peak = peak_bytes(lambda step=step: (torch.empty(1), step()))
        assert peak <= allowed + slack, f"{name}: {peak} bytes"
    large = 4 * 19 * pixels
    assert peak_bytes(lambda: F.interpolate(samples[0], size, mode="bilinear")) >= large


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


# ---- Streams and models


def test_samples_of_any_resolution_in_one_stream():
    """Members at different output strides; the state stays one, through copies and merging."""
    size = (12, 20)
    sources = ((3, 5), (6, 10), (12, 20), (13, 11))
    samples = [torch.randn(2, 4, *source) for source in sources]
    accumulator = PredictiveAccumulator()
    for sample in samples[:2]:
        accumulator.update(sample, torch.Size(size))
    accumulator = pickle.loads(pickle.dumps(accumulator))
    rest = PredictiveAccumulator().update(samples[2]).update(samples[3], [*size])
    accumulator = copy.deepcopy(accumulator).merge(rest)
    large = torch.stack([interpolated(sample, size) for sample in samples])
    compare(accumulator.compute(), large.double(), "stream", torch.float32)
    assert repr(accumulator).startswith("PredictiveAccumulator(count=4, shape=(2, 4, 12, 20)")


def strided(stride: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride, padding=1), nn.Dropout(0.3))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_statistics_of_models_are_at_the_size_asked(backend, align_corners):
    images = torch.randn(2, 3, 16, 24)
    options = {"size": images.shape[2:], "align_corners": align_corners}

    def enlarged(logits: Tensor) -> Tensor:
        return interpolated(logits, (16, 24), align_corners).double()

    members = [strided(stride, stride) for stride in (1, 2, 4)]
    model = strided(4, 9).train()
    with segunc_ops.backend(backend), torch.no_grad():
        found = ensemble_statistics(members, images, return_mean=True, **options)
        large = torch.stack([enlarged(member.eval()(images)) for member in members])
        compare(found, large, "ensemble", torch.float32)
        torch.manual_seed(5)
        found = sample_statistics(model, images, 4, return_mean=True, **options)
        torch.manual_seed(5)
        large = torch.stack([enlarged(model(images)) for _ in range(4)])
        compare(found, large, "dropout", torch.float32)


# ---- Tracing


class Evaluate(nn.Module):
    """All three operators, as a model that evaluates itself would call them."""

    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        size = labels.shape[1:]
        maps = sf.predictive_statistics([logits, logits.sin()], size=size, return_mean=True)
        mean = torch.empty_like(maps.mean)
        squares, entropy = torch.empty_like(mean), torch.empty_like(maps.entropy)
        sf.accumulate_statistics(mean, squares, entropy, logits, 1)
        counts = sf.empty_counts(3)
        sf.accumulate_counts(counts, logits, labels, maps.entropy, size=size)
        return (*maps, mean, entropy, *counts)


def test_compile_traces_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(Evaluate(), fullgraph=True, dynamic=True, backend="aot_eager")
    for source, size in (((3, 4), (7, 10)), ((5, 3), (6, 11)), ((9, 8), (4, 5))):
        logits, labels = torch.randn(2, 3, *source), torch.randint(0, 3, (2, *size))
        for a, b in zip(compiled(logits, labels), Evaluate()(logits, labels), strict=True):
            assert_same_bits(a, b, name=f"{source} to {size}")


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_size(strict):
    source, size = ([torch.export.Dim(f"{k}{i}", min=2) for i in range(2)] for k in "xy")
    arguments = torch.randn(2, 3, 6, 5), torch.randint(0, 3, (2, 11, 13))
    program = torch.export.export(
        Evaluate(),
        arguments,
        dynamic_shapes=({2: source[0], 3: source[1]}, {1: size[0], 2: size[1]}),
        strict=strict,
    ).module()
    for logits, labels in (arguments, (torch.randn(2, 3, 9, 8), torch.randint(0, 3, (2, 4, 5)))):
        for a, b in zip(program(logits, labels), Evaluate()(logits, labels), strict=True):
            assert_same_bits(a, b, name=f"{tuple(logits.shape)}")


# ---- Errors


X, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 9, dtype=torch.long)
VOLUME = torch.zeros(2, 3, 2, 4, 5)
COUNTS = sf.empty_counts(3, tables=("confusion",))
STATE = torch.zeros(2, 3, 8, 9), torch.zeros(2, 3, 8, 9), torch.zeros(2, 8, 9)


def accumulated(*updates: tuple[object, ...]) -> None:
    accumulator = PredictiveAccumulator()
    for update in updates:
        accumulator.update(*update)


ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "size no sequence": (
        lambda: sf.predictive_statistics([X], size=8),
        TypeError,
        "size: expected a sequence of integers, got int",
    ),
    "size of no integers": (
        lambda: sf.predictive_statistics([X], size=(8.0, 9)),
        TypeError,
        "size: expected an integer, got float",
    ),
    "size for volumes": (
        lambda: sf.predictive_statistics([X], size=(2, 8, 9)),
        ValueError,
        "size: expected (H, W) for samples of shape (2, 3, 4, 5), got (2, 8, 9)",
    ),
    "size for images": (
        lambda: sf.predictive_statistics([VOLUME], size=(8, 9)),
        ValueError,
        "size: expected (D, H, W) for samples of shape (2, 3, 2, 4, 5), got (8, 9)",
    ),
    "size of the whole label map": (
        lambda: sf.predictive_statistics([X], size=T.shape),
        ValueError,
        "size: expected (H, W) for samples of shape (2, 3, 4, 5), got (2, 8, 9)",
    ),
    "no pixels": (
        lambda: sf.predictive_statistics([X], size=(8, 0)),
        ValueError,
        "size: expected at least 1 along each axis, got (8, 0)",
    ),
    "negative": (
        lambda: sf.predictive_statistics([X], size=(-8, 9)),
        ValueError,
        "size: expected at least 1 along each axis, got (-8, 9)",
    ),
    "no source pixels": (
        lambda: sf.predictive_statistics([X[:, :, :0]], size=(8, 9)),
        ValueError,
        "samples: expected pixels to interpolate to size (8, 9), got (2, 3, 0, 5)",
    ),
    "one spatial axis": (
        lambda: sf.predictive_statistics([X[:, :, 0]], size=(8,)),
        ValueError,
        "samples: expected shape (N, C, H, W) or (N, C, D, H, W) to be interpolated to size (8,), "
        "got (2, 3, 5)",
    ),
    "corners alone": (
        lambda: sf.predictive_statistics([X], align_corners=True),
        ValueError,
        "align_corners: expected False without size, got True",
    ),
    "corners no bool": (
        lambda: sf.predictive_statistics([X], size=(8, 9), align_corners=None),
        TypeError,
        "align_corners: expected a bool, got NoneType",
    ),
    "samples of different sizes": (
        lambda: sf.predictive_statistics([X, X[..., :4]], size=(8, 9)),
        ValueError,
        "samples[1]: expected shape (2, 3, 4, 5) like the first, got (2, 3, 4, 4)",
    ),
    "state of other classes": (
        lambda: sf.accumulate_statistics(*STATE, X[:, :2], 1),
        ValueError,
        "mean: expected a contiguous tensor of shape (2, 2, 4, 5), got shape (2, 3, 8, 9)",
    ),
    "state of two sizes": (
        lambda: sf.accumulate_statistics(STATE[0], X, STATE[2], X, 1),
        ValueError,
        "squared_deviations: expected a contiguous tensor of shape (2, 3, 8, 9), got shape "
        "(2, 3, 4, 5)",
    ),
    "corners of a state": (
        lambda: sf.accumulate_statistics(*STATE, X, 1, align_corners=1),
        TypeError,
        "align_corners: expected a bool, got int",
    ),
    "stream of two sizes": (
        lambda: accumulated((X, (8, 9)), (X, (8, 8))),
        ValueError,
        "size: expected (8, 9) like the samples so far, got (8, 8)",
    ),
    "stream that loses its size": (
        lambda: accumulated((X, (8, 9)), (X,)),
        ValueError,
        "logits: expected shape (2, 3, 8, 9) like the samples so far, got (2, 3, 4, 5); pass "
        "size=(8, 9) to interpolate, or call reset() before samples of another shape",
    ),
    "stream of other classes": (
        lambda: accumulated((X, (8, 9)), (X[:, :2], (8, 9))),
        ValueError,
        "logits: expected shape (2, 3, 8, 9) like the samples so far, got (2, 2, 8, 9); call "
        "reset()",
    ),
    "size of a stream": (
        lambda: accumulated((X, (8, 9, 10))),
        ValueError,
        "size: expected (H, W) for logits of shape (2, 3, 4, 5), got (8, 9, 10)",
    ),
    "counts without a size": (
        lambda: sf.accumulate_counts(COUNTS, X, T),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 8, 9); pass "
        "size=target.shape[1:] to interpolate",
    ),
    "counts of another size": (
        lambda: sf.accumulate_counts(COUNTS, X, T, size=(8, 8)),
        ValueError,
        "size: expected the target's (8, 9), got (8, 8)",
    ),
    "counts of another batch": (
        lambda: sf.accumulate_counts(COUNTS, X, T[:1], size=(8, 9)),
        ValueError,
        "target: expected shape (2, 8, 9) for input of shape (2, 3, 4, 5), got (1, 8, 9)",
    ),
    "counts of a target with a channel": (
        lambda: sf.accumulate_counts(COUNTS, X, T.unsqueeze(1), size=(8, 9)),
        ValueError,
        "target: expected shape (2, 8, 9), got (2, 1, 8, 9); pass target.squeeze(1)",
    ),
    "uncertainty of the logits' size": (
        lambda: sf.accumulate_counts(COUNTS, X, T, X[:, 0], size=(8, 9)),
        ValueError,
        "uncertainty: expected shape (2, 8, 9), got (2, 4, 5)",
    ),
    "counts of statistics": (
        lambda: sf.accumulate_counts(COUNTS, sf.predictive_statistics([X]), T, size=(8, 9)),
        ValueError,
        "size: expected none for PredictiveStatistics, whose maps are interpolated already, got "
        "(8, 9)",
    ),
    "loss without a mode": (
        lambda: sf.cross_entropy(X, T),
        ValueError,
        "target: expected shape (2, 4, 5) for input of shape (2, 3, 4, 5), got (2, 8, 9); pass "
        "upsample='bilinear' to interpolate",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_errors(name, backend):
    call, kind, message = ERRORS[name]
    with (
        segunc_ops.backend(backend),
        pytest.raises(kind, match="^" + re.escape(message)) as caught,
    ):
        call()
    assert caught.type is kind


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_refused_sample_changes_nothing(backend):
    with segunc_ops.backend(backend):
        accumulator = PredictiveAccumulator()
        for bad in ((8,), (0, 9)):
            with pytest.raises(ValueError, match="size"):
                accumulator.update(X, bad)
        assert accumulator.count == 0
        samples = torch.randn(2, 2, 3, 4, 5)
        wanted = accumulator.update(samples[0], (8, 9)).update(samples[1], (8, 9)).compute()
        with pytest.raises(ValueError, match="size"):
            accumulator.update(samples[0], (9, 9))
        assert accumulator.count == 2
        for a, b in zip(accumulator.compute()[:6], wanted[:6], strict=True):
            assert_same_bits(a, b, name="after an error")


def test_bare_operators_check_too():
    ops = torch.ops.segunc_ops
    for call, message in (
        (
            lambda: ops.predictive_statistics([X], [8], False, False),
            "samples: expected shape (N, C, *) for results of shape (2, 8), got (2, 3, 4, 5)",
        ),
        (
            lambda: ops.predictive_statistics([X], [8, 0], False, False),
            "samples: expected 1 to 2^30 positions along each axis",
        ),
        (
            lambda: ops.accumulate_statistics_(*STATE, VOLUME, 1, False),
            "logits: expected shape (N, C, *) for results of shape (2, 8, 9)",
        ),
        (
            lambda: ops.accumulate_counts_(X, T[:1], None, -100, False, False, *[None] * 6),
            "input: expected shape (N, C, *) for results of shape (1, 8, 9)",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


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
