"""Every entry point of csrc/*/cuda.h, run on the host, against float64 NumPy.

Each case runs under several schedules, which must agree bit for bit. Outputs start as garbage, and
nothing around them may change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from python_tests.native import references
from python_tests.native.harness import (
    CLASS_COUNTS,
    DTYPES,
    LAYOUTS,
    SEEDS,
    Array,
    accumulate_type,
    assert_close,
    decode,
    encode,
    place,
    place_elements,
    place_output,
    rounding,
    run_under_seeds,
    thinned,
)

# Around the sizes of warps, vectors, tiles and blocks.
SIZES = (1, 31, 32, 33, 127, 129, 1031)
TARGET_TYPES = (np.int64, np.int32, np.uint8)
SHAPES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((), (1,), (1, 1)),
    31: ((31,), (1, 31)),
    32: ((32,), (4, 8), (2, 4, 4)),
    33: ((33,), (3, 11), (11, 3)),
    127: ((127,), (127, 1)),
    129: ((129,), (3, 43)),
    1031: ((1031,), (1031, 1)),
}


def epsilon(dtype: str) -> float:
    return float(np.finfo(accumulate_type(dtype)).eps)


def pixels_last(values: Array) -> Array:
    """[N, C, *spatial] to [N, C, P]."""
    return np.ascontiguousarray(values).reshape(*values.shape[:2], -1)


@dataclass(frozen=True)
class Interpolated:
    """Results of another size than the logits'."""

    size: tuple[int, ...]
    align_corners: bool

    def __str__(self) -> str:
        corners = "corners" if self.align_corners else "centres"
        return f"-{'x'.join(map(str, self.size))}-{corners}"


def interpolated(values: Array, case: StatisticsCase | CountsCase) -> Array:
    """[N, C, *spatial] as the results have them: [N, C, *size], float64."""
    if case.to is None:
        return values
    matrices = [
        references.interpolation_matrix(
            source, size, case.to.align_corners, accumulate_type(case.dtype)
        )
        for source, size in zip(case.spatial, case.to.size, strict=True)
    ]
    return references.interpolate(values, matrices)


# ---- Cross-entropy


@dataclass(frozen=True)
class CrossEntropyCase:
    dtype: str
    layout: str
    classes: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    target_type: type = np.int64
    weight: bool = False
    pixel_weight: bool = False
    smoothing: float = 0.0
    ignore_index: int = -100
    ignored: float = 0.0
    upstream: str = "none"  # none, scalar, map
    divided: bool = False
    grad_layout: str | None = None  # that of the input without
    loss: bool = True
    partial: bool = True
    grad_input: bool = True
    grad_pixel_weight: bool = False
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        return f"{self.dtype}-{self.layout}-{self.classes}-{self.images}x{spatial}-{self.seed}"


def random_cross_entropy_case(dtype: str, layout: str, classes: int, seed: int) -> CrossEntropyCase:
    """The options that a grid of dtype, layout and classes leaves open, drawn."""
    generator = np.random.default_rng([seed, classes, DTYPES.index(dtype), LAYOUTS.index(layout)])

    def either(p: float = 0.5) -> bool:
        return bool(generator.random() < p)

    sizes = [size for size in SIZES if size * classes <= 1031 * 21]
    shapes = SHAPES[int(generator.choice(sizes))]
    spatial = shapes[int(generator.integers(len(shapes)))]
    target_type = TARGET_TYPES[int(generator.integers(3))]
    ignore_index = int(
        generator.choice(
            [255, 0, classes - 1] if target_type is np.uint8 else [-100, 255, 0, classes - 1, -1]
        )
    )
    return CrossEntropyCase(
        dtype,
        layout,
        classes,
        images=int(generator.integers(1, 4)) if math.prod(spatial) < 1000 else 1,
        spatial=spatial,
        target_type=target_type,
        weight=either(),
        pixel_weight=either(),
        smoothing=float(generator.choice([0.0, 0.0, 0.1, 1.0])),
        ignore_index=ignore_index,
        ignored=float(generator.choice([0.0, 0.2, 0.2, 1.0], p=[0.3, 0.3, 0.35, 0.05])),
        upstream=str(generator.choice(["none", "scalar", "map"])),
        divided=either(),
        grad_layout="channels_last" if layout == "planar" and either(0.15) else None,
        loss=either(),
        partial=either(),
        grad_input=either(0.8),
        grad_pixel_weight=either(),
        seed=seed,
    )


@dataclass
class CrossEntropyInputs:
    logits: Array  # float64, as stored
    target: Array  # [N, *spatial]
    weight: Array | None
    pixel_weight: Array | None
    upstream: Array | None
    normalizer: Array | None


def cross_entropy_inputs(case: CrossEntropyCase) -> CrossEntropyInputs:
    """NaN wherever nothing may be read: ignored pixels' logits and weights."""
    generator = np.random.default_rng(case.seed)
    accumulate = accumulate_type(case.dtype)
    shape = (case.images, case.classes, *case.spatial)
    pixels = (case.images, *case.spatial)
    logits = decode(encode(generator.normal(size=shape) * 4, case.dtype), case.dtype)
    target = generator.integers(0, case.classes, pixels)
    ignored = generator.random(pixels) < case.ignored
    target = np.where(ignored, case.ignore_index, target).astype(case.target_type)
    # A class may be the ignored one.
    ignored = target == case.ignore_index
    logits = np.where(ignored[:, None], np.nan, logits)
    pixel_weight = np.where(ignored, np.nan, generator.random(pixels) * 3).astype(accumulate)
    weight = (generator.random(case.classes) + 0.05).astype(accumulate)
    upstream = {
        "none": None,
        "scalar": np.array(generator.normal() * 8, accumulate),
        "map": np.where(ignored, np.nan, generator.normal(size=pixels)).astype(accumulate),
    }[case.upstream]
    return CrossEntropyInputs(
        logits,
        target,
        weight if case.weight else None,
        pixel_weight if case.pixel_weight else None,
        upstream,
        np.array([generator.random() * 50 + 1]) if case.divided else None,
    )


def run_cross_entropy(
    host: ModuleType, case: CrossEntropyCase, inputs: CrossEntropyInputs
) -> dict[str, Array]:
    """One call; the outputs that the case asks for, decoded, and bad_target."""
    accumulate = accumulate_type(case.dtype)
    pixels = inputs.target.shape
    logits = place_elements(inputs.logits, case.dtype, case.layout)
    before = logits.buffer.copy()
    bad_target = place((2,), np.int64, values=np.zeros(2, np.int64))
    outputs = {"bad_target": bad_target}
    if case.loss:
        outputs["loss"] = place(pixels, accumulate)
    if case.grad_input:
        outputs["grad_input"] = place_output(
            inputs.logits.shape, case.dtype, case.grad_layout or case.layout
        )
    if case.grad_pixel_weight:
        outputs["grad_pixel_weight"] = place(pixels, accumulate)

    def placed(values: Array | None) -> Array | None:
        return None if values is None else place(values.shape, values.dtype, values=values).view

    arguments: dict[str, Any] = {
        "input": logits.view,
        "target": placed(inputs.target),
        "weight": placed(inputs.weight),
        "pixel_weight": placed(inputs.pixel_weight),
        "upstream": placed(inputs.upstream),
        "normalizer": placed(inputs.normalizer),
        "ignore_index": case.ignore_index,
        "label_smoothing": case.smoothing,
        "dtype": case.dtype,
        "as_strided": case.layout == "forced",
        **{name: output.view for name, output in outputs.items()},
    }
    if case.partial:
        count = host.cross_entropy_partials(**arguments)
        outputs["partial"] = place((count,), np.float64)
        arguments["partial"] = outputs["partial"].view
    host.cross_entropy(**arguments)
    for name, output in outputs.items():
        output.check_surroundings(name)
    assert np.array_equal(logits.buffer.view(np.uint8), before.view(np.uint8)), (
        "the input has changed"
    )
    return {name: np.array(output.view) for name, output in outputs.items()}


def check_cross_entropy(
    case: CrossEntropyCase, inputs: CrossEntropyInputs, results: dict[str, Array]
) -> None:
    eps = epsilon(case.dtype)
    logits = pixels_last(inputs.logits)
    n = case.images
    flat = inputs.target.reshape(n, -1)
    pixel_weight = None if inputs.pixel_weight is None else inputs.pixel_weight.reshape(n, -1)
    expected = references.cross_entropy(
        logits, flat, inputs.weight, pixel_weight, case.ignore_index, case.smoothing
    )
    upstream = np.ones(flat.shape)
    if inputs.upstream is not None:
        is_map = inputs.upstream.ndim > 0
        upstream = upstream * (inputs.upstream.reshape(n, -1) if is_map else float(inputs.upstream))
    if inputs.normalizer is not None:
        upstream = upstream / inputs.normalizer[0]
    upstream = np.where(expected.valid, upstream, 0.0)
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(np.ptp(np.where(expected.valid[:, None], logits, 0), axis=1))
        scale = np.where(expected.valid, 1.0 + spread, 1.0)
    weights = np.ones(flat.shape) if pixel_weight is None else np.abs(pixel_weight)
    tolerance = 16 * eps * scale * np.where(expected.valid, weights, 0)
    if "loss" in results:
        assert_close("loss", results["loss"].reshape(n, -1), expected.loss, tolerance)
    if "partial" in results:
        total = results["partial"].sum()
        allowed = np.nansum(tolerance) + 1e-12
        assert_close("partial", np.array(total), np.array(expected.loss.sum()), allowed)
    if "grad_pixel_weight" in results:
        assert_close(
            "grad_pixel_weight",
            results["grad_pixel_weight"].reshape(n, -1),
            np.where(expected.valid, expected.unweighted * upstream, 0.0),
            16 * eps * scale * np.abs(upstream),
        )
    if "grad_input" in results:
        gradient = expected.gradient * upstream[:, None]
        relative, absolute = rounding(case.dtype)
        slack = 16 * eps * (expected.magnitude * np.abs(upstream))[:, None]
        actual = pixels_last(decode(results["grad_input"], case.dtype))
        judged = ~np.broadcast_to(expected.bad[:, None], gradient.shape)
        assert_close(
            "grad_input",
            np.where(judged, actual, 0),
            np.where(judged, gradient, 0),
            np.abs(gradient) * relative * (1 + 8 * eps) + absolute + slack + 1e-300,
        )
        ignored = ~np.broadcast_to(expected.valid[:, None], gradient.shape)
        assert not actual[ignored].any(), "an ignored pixel has a gradient"
    bad = results["bad_target"]
    if expected.bad.any():
        assert bad[0] == 1
        assert bad[1] in flat[expected.bad].astype(np.int64)
    else:
        assert bad.tolist() == [0, 0]


def verify_cross_entropy(
    host: ModuleType, case: CrossEntropyCase, inputs: CrossEntropyInputs | None = None
) -> dict[str, Array]:
    inputs = cross_entropy_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run_cross_entropy(host, case, inputs))
    check_cross_entropy(case, inputs, results)
    return results


CROSS_ENTROPY_CASES = [
    random_cross_entropy_case(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(CROSS_ENTROPY_CASES), ids=str)
def test_cross_entropy(host: ModuleType, case: CrossEntropyCase) -> None:
    verify_cross_entropy(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_cross_entropy_of_ragged_sizes(
    host: ModuleType, dtype: str, size: int, layout: str
) -> None:
    """Everything asked for at once, at sizes around those of tiles."""
    case = CrossEntropyCase(
        dtype,
        layout,
        5,
        2,
        (size,),
        np.uint8,
        True,
        True,
        0.1,
        255,
        0.2,
        "map",
        True,
        grad_pixel_weight=True,
        seed=size,
    )
    verify_cross_entropy(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_cross_entropy_of_many_classes(host: ModuleType, dtype: str, layout: str) -> None:
    case = CrossEntropyCase(dtype, layout, 700, 1, (37,), weight=True, ignored=0.1, smoothing=0.1)
    verify_cross_entropy(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(("classes", "size"), [(2, 9001), (40, 3000)])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_cross_entropy_of_more_tiles_than_blocks(
    host: ModuleType, dtype: str, classes: int, size: int, layout: str
) -> None:
    case = CrossEntropyCase(dtype, layout, classes, 1, (size,), np.uint8, ignored=0.1)
    verify_cross_entropy(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
def test_cross_entropy_of_volumes(host: ModuleType, layout: str) -> None:
    verify_cross_entropy(host, CrossEntropyCase("f32", layout, 4, 2, (3, 5, 7), ignored=0.2))


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_cross_entropy_of_nothing(host: ModuleType, shape: tuple[int, ...]) -> None:
    images, classes, *spatial = shape
    case = CrossEntropyCase("f32", "planar", classes, images, tuple(spatial))
    results = run_under_seeds(
        host, lambda: run_cross_entropy(host, case, cross_entropy_inputs(case))
    )
    assert results["partial"].sum() == 0


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 21, 150])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_bad_targets_are_flagged(
    host: ModuleType, target_type: type, classes: int, layout: str
) -> None:
    """Their loss is NaN, every other pixel's is right, nothing is read or written out of bounds."""
    case = CrossEntropyCase(
        "f32",
        layout,
        classes,
        2,
        (67,),
        target_type,
        True,
        True,
        0.1,
        255,
        0.2,
        "map",
        grad_pixel_weight=True,
    )
    inputs = cross_entropy_inputs(case)
    beyond = [classes, 254] if target_type is np.uint8 else [classes, 1000, -1, -(2**31)]
    if target_type is np.int64:
        beyond += [2**40, -(2**40), 2**32]
    inputs.target[:, 3 : 3 + len(beyond)] = beyond
    for factors in (inputs.pixel_weight, inputs.upstream):
        assert factors is not None
        factors[:, 3 : 3 + len(beyond)] = 1
    inputs.logits[..., 3 : 3 + len(beyond)] = 0.5
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        check_cross_entropy(case, inputs, run_cross_entropy(host, case, inputs))


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(host: ModuleType, dtype: str, classes: int, layout: str) -> None:
    """Large logits do not overflow; infinite and NaN ones behave as torch's formula does."""
    case = CrossEntropyCase(dtype, layout, classes, 1, (40,), partial=False)
    inputs = cross_entropy_inputs(case)
    large = 3e4
    inputs.target[0, :12] = 1
    inputs.logits[0, :, :4] = large
    inputs.logits[0, 1, 0] = -large
    inputs.logits[0, 0, 1] = -large
    inputs.logits[0, :, 2] = -large
    inputs.logits[0, 0, 4] = -np.inf
    inputs.logits[0, 1, 5] = -np.inf
    inputs.logits[0, 1, 6] = np.inf
    inputs.logits[0, 0, 7] = np.inf
    inputs.logits[0, :, 8] = -np.inf
    inputs.logits[0, 2, 9] = np.nan
    inputs.logits = decode(encode(inputs.logits, dtype), dtype)
    results = run_under_seeds(host, lambda: run_cross_entropy(host, case, inputs))
    expected = references.cross_entropy(inputs.logits, inputs.target, None, None, -100, 0.0)
    loss = results["loss"][0]
    assert loss[5] == np.inf
    assert np.isnan(loss[6:10]).all()
    finite = np.r_[0:5, 10:40]
    assert_close(
        "loss",
        loss[finite],
        expected.loss[0, finite],
        64 * epsilon(dtype) * np.maximum(1, expected.loss[0, finite]),
    )
    gradient = decode(results["grad_input"], dtype)[0]
    assert np.isnan(gradient[:, 6:10]).any(0).all()
    assert_close(
        "grad_input",
        gradient[:, finite],
        expected.gradient[0][:, finite],
        rounding(dtype)[0] + 64 * epsilon(dtype),
    )


def test_float16_gradients_keep_a_large_upstream(host: ModuleType) -> None:
    """A GradScaler's factor arrives before the gradient is rounded, so nothing underflows."""
    case = CrossEntropyCase("f16", "planar", 19, 1, (129,), upstream="scalar", divided=True)
    inputs = cross_entropy_inputs(case)
    inputs.upstream = np.array(65536.0, np.float32)
    inputs.normalizer = np.array([589824.0])
    results = verify_cross_entropy(host, case, inputs)
    gradient = decode(results["grad_input"], "f16")
    assert (gradient != 0).mean() > 0.95


def test_one_gradient_alone(host: ModuleType) -> None:
    """Nothing but one output, for each output."""
    base = CrossEntropyCase(
        "f32",
        "planar",
        19,
        2,
        (129,),
        pixel_weight=True,
        loss=False,
        partial=False,
        grad_input=False,
    )
    for output in ("loss", "partial", "grad_input", "grad_pixel_weight"):
        for layout in LAYOUTS:
            verify_cross_entropy(host, replace(base, layout=layout, **{output: True}))


# ---- Normalizer and loss


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
@pytest.mark.parametrize("count", [0, *SIZES, 40_000])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_normalizer(
    host: ModuleType, dtype: str, count: int, target_type: type, weighted: bool
) -> None:
    generator = np.random.default_rng(count)
    classes, ignore_index = 19, 255
    accumulate = accumulate_type(dtype)
    target = generator.integers(0, classes, count)
    target[generator.random(count) < 0.3] = ignore_index
    target = place((count,), target_type, values=target).view
    weight = place((classes,), accumulate, values=generator.random(classes)).view
    weight = weight if weighted else None

    def run() -> dict[str, Array]:
        result = place((1,), np.float64)
        arguments = {
            "target": target,
            "weight": weight,
            "classes": classes,
            "ignore_index": ignore_index,
            "dtype": dtype,
        }
        partial = place((host.normalizer_partials(**arguments),), np.float64)
        host.normalizer(**arguments, partial=partial.view, normalizer=result.view)
        result.check_surroundings("normalizer")
        partial.check_surroundings("partial")
        return {"normalizer": result.view.copy()}

    expected = references.normalizer(target, weight, ignore_index)
    tolerance = 0.0 if not weighted else 8 * epsilon(dtype) * max(expected, 1)
    assert_close(
        "normalizer", run_under_seeds(host, run)["normalizer"], np.array([expected]), tolerance
    )


def test_normalizer_skips_bad_targets(host: ModuleType) -> None:
    target = np.array([0, 1, 2, 3, -1, 2**40, 255, 2], np.int64)
    arguments = {
        "target": target,
        "classes": 3,
        "ignore_index": 255,
        "dtype": "f32",
        "weight": np.array([1, 10, 100], np.float32),
    }
    result = np.zeros(1)
    partial = np.zeros(host.normalizer_partials(**arguments))
    host.normalizer(**arguments, partial=partial, normalizer=result)
    assert result[0] == 211


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("count", [0, 1, 33, 1031, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_finish_loss(host: ModuleType, dtype: str, count: int, divided: bool) -> None:
    generator = np.random.default_rng(count)
    partial = place((count,), np.float64, values=generator.normal(size=count)).view
    normalizer = np.array([7.0]) if divided else None

    def run() -> dict[str, Array]:
        loss = place((1,), accumulate_type(dtype))
        host.finish_loss(
            partial=partial, count=count, normalizer=normalizer, loss=loss.view, dtype=dtype
        )
        loss.check_surroundings("loss")
        return {"loss": loss.view.copy()}

    expected = np.array([partial.sum() / (7.0 if divided else 1.0)])
    assert_close(
        "loss",
        run_under_seeds(host, run)["loss"],
        expected,
        epsilon(dtype) * np.abs(expected) + 1e-12,
    )


def test_a_mean_over_no_valid_pixel_is_nan(host: ModuleType) -> None:
    loss = np.zeros(1, np.float32)
    host.finish_loss(partial=np.zeros(3), count=3, normalizer=np.zeros(1), loss=loss, dtype="f32")
    assert np.isnan(loss[0])


# ---- Scale


@pytest.mark.parametrize("factor", [2.5, 1.0, 0.0, np.inf])
@pytest.mark.parametrize("layout", ["planar", "unaligned"])
@pytest.mark.parametrize("count", [0, *SIZES, 40_003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(host: ModuleType, dtype: str, count: int, layout: str, factor: float) -> None:
    values = np.random.default_rng(count).normal(size=count)
    stored = encode(values, dtype)
    if factor == 1 and count:
        # A signalling NaN, which arithmetic makes a quiet one.
        infinity = encode(np.array([np.inf]), dtype).view(f"u{stored.itemsize}")
        stored[0] = (infinity | 1).view(stored.dtype)[0]
    factor_dtype = "f64" if dtype == "f64" else "f32"

    def run() -> dict[str, Array]:
        data = place((count,), stored.dtype, layout, stored)
        host.scale(
            data=data.view,
            factor=np.array([factor], accumulate_type(factor_dtype)),
            dtype=dtype,
            factor_dtype=factor_dtype,
        )
        data.check_surroundings("data")
        return {"data": data.view.copy()}

    actual = run_under_seeds(host, run)["data"]
    if factor == 1:
        assert actual.tobytes() == stored.tobytes()
        return
    with np.errstate(invalid="ignore"):
        expected = decode(encode(decode(stored, dtype) * factor, dtype), dtype)
    assert np.array_equal(decode(actual, dtype), expected, equal_nan=True)


# ---- Predictive statistics

MAPS = ("confidence", "std", "entropy", "expected_entropy", "mutual_information")


@dataclass(frozen=True)
class StatisticsCase:
    dtype: str
    layout: str
    classes: int
    samples: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    return_mean: bool = True
    spaced: bool = True  # the samples lie in one array
    to: Interpolated | None = None
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        return (
            f"{self.dtype}-{self.layout}-{self.classes}-{self.samples}of{self.images}x{spatial}"
            f"{self.to or ''}-{'spaced' if self.spaced else 'scattered'}"
        )

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.images, *(self.to.size if self.to else self.spatial))


def random_statistics_case(dtype: str, layout: str, classes: int, seed: int) -> StatisticsCase:
    generator = np.random.default_rng([seed, classes, DTYPES.index(dtype), LAYOUTS.index(layout)])
    sizes = [size for size in SIZES if size * classes <= 1031 * 5]
    shapes = SHAPES[int(generator.choice(sizes))]
    spatial = shapes[int(generator.integers(len(shapes)))]
    return StatisticsCase(
        dtype,
        layout,
        classes,
        samples=int(generator.choice([1, 2, 3, 10])),
        images=int(generator.integers(1, 3)) if math.prod(spatial) < 1000 else 1,
        spatial=spatial,
        return_mean=bool(generator.random() < 0.5),
        spaced=bool(generator.random() < 0.5),
        seed=seed,
    )


def statistics_samples(case: StatisticsCase) -> list[Array]:
    generator = np.random.default_rng(case.seed)
    shape = (case.images, case.classes, *case.spatial)
    common = generator.normal(size=shape) * 2
    samples = [common + generator.normal(size=shape) * 2 for _ in range(case.samples)]
    return [decode(encode(sample, case.dtype), case.dtype) for sample in samples]


def place_samples(case: StatisticsCase, samples: list[Array]) -> list[Array]:
    """Arrays at equal distances in one buffer, or wherever memory was free."""
    if not case.spaced:
        return [place_elements(sample, case.dtype, case.layout).view for sample in samples]
    first = place_elements(samples[0], case.dtype, case.layout)
    buffers = np.empty((len(samples), first.buffer.size), first.buffer.dtype)
    offset = first.view.__array_interface__["data"][0] - first.buffer.__array_interface__["data"][0]
    views = []
    for sample, buffer in zip(samples, buffers, strict=True):
        placed = place_elements(sample, case.dtype, case.layout)
        buffer[:] = placed.buffer
        views.append(
            np.lib.stride_tricks.as_strided(
                buffer[offset // buffer.itemsize :], sample.shape, placed.view.strides
            )
        )
    return views


def check_statistics(
    samples: list[Array], dtype: str, results: dict[str, Array], error: float = 1.0
) -> None:
    """error: of the logits, in units of what rounding their softmax alone gives."""
    expected = references.statistics([pixels_last(sample) for sample in samples])
    images, classes = samples[0].shape[:2]
    eps = epsilon(dtype) * error
    prediction = results["prediction"].reshape(images, -1)
    assert ((prediction >= 0) & (prediction < classes)).all()
    at = prediction[:, None]
    confidence = np.take_along_axis(expected.mean, at, 1)[:, 0]
    assert_close("prediction", confidence, expected.mean.max(1), 8 * eps)
    chosen = np.stack([np.take_along_axis(p, at, 1)[:, 0] for p in expected.probabilities])
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = ((chosen - chosen.mean(0)) ** 2).sum(0) / np.float64(len(samples) - 1)
    by_name = {
        "confidence": confidence,
        "std": np.sqrt(variance),
        "entropy": expected.entropy,
        "expected_entropy": expected.expected_entropy,
        "mutual_information": np.maximum(expected.entropy - expected.expected_entropy, 0),
    }
    for name, value in by_name.items():
        actual = results[name].reshape(images, -1)
        assert_close(name, actual, value, (16 if name == "confidence" else 64) * eps)
    if "mean" in results:
        assert_close("mean", pixels_last(results["mean"]), expected.mean, 16 * eps)


def place_maps(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    maps = {name: place(shape, accumulate_type(dtype)) for name in MAPS}
    return {"prediction": place(shape, np.int64), **maps}


def run_statistics(
    host: ModuleType, case: StatisticsCase, samples: list[Array]
) -> dict[str, Array]:
    outputs = place_maps(case.pixels, case.dtype)
    if case.return_mean:
        outputs["mean"] = place(
            (case.images, case.classes, *case.pixels[1:]), accumulate_type(case.dtype)
        )
    host.predictive_statistics(
        samples=place_samples(case, samples),
        dtype=case.dtype,
        as_strided=case.layout == "forced",
        align_corners=case.to.align_corners if case.to else None,
        **{name: output.view for name, output in outputs.items()},
    )
    for name, output in outputs.items():
        output.check_surroundings(name)
    return {name: output.view.copy() for name, output in outputs.items()}


STATISTICS_CASES = [
    random_statistics_case(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(STATISTICS_CASES), ids=str)
def test_predictive_statistics(host: ModuleType, case: StatisticsCase) -> None:
    samples = statistics_samples(case)
    results = run_under_seeds(host, lambda: run_statistics(host, case, samples))
    check_statistics(samples, case.dtype, results)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_statistics_of_ragged_sizes(host: ModuleType, dtype: str, size: int, layout: str) -> None:
    case = StatisticsCase(dtype, layout, 5, 3, 2, (size,), seed=size)
    samples = statistics_samples(case)
    results = run_under_seeds(host, lambda: run_statistics(host, case, samples))
    check_statistics(samples, dtype, results)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(("classes", "size"), [(2, 6001), (19, 3001), (40, 2001)])
def test_statistics_of_more_tiles_than_blocks(
    host: ModuleType, classes: int, size: int, layout: str
) -> None:
    case = StatisticsCase("f32", layout, classes, 2, 1, (size,))
    samples = statistics_samples(case)
    results = run_under_seeds(host, lambda: run_statistics(host, case, samples))
    check_statistics(samples, "f32", results)
    results = run_under_seeds(host, lambda: run_accumulator(host, case, samples))
    check_statistics(samples, "f32", results)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize(
    ("classes", "samples", "spaced"), [(3, 130, True), (3, 128, False), (700, 2, False)]
)
def test_statistics_of_many(
    host: ModuleType, classes: int, samples: int, spaced: bool, layout: str
) -> None:
    """More samples than addresses fit into a launch's arguments; more classes than fit a thread."""
    case = StatisticsCase("f32", layout, classes, samples, 1, (35,), spaced=spaced)
    values = statistics_samples(case)
    results = run_under_seeds(host, lambda: run_statistics(host, case, values))
    check_statistics(values, "f32", results)


def test_too_many_scattered_samples_are_refused(host: ModuleType) -> None:
    case = StatisticsCase("f32", "planar", 2, host.max_scattered_samples + 1, 1, (3,), spaced=False)
    with pytest.raises((RuntimeError, ValueError), match="samples"):
        run_statistics(host, case, statistics_samples(case))


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 21, 150])
def test_ties_go_to_the_lowest_class(host: ModuleType, classes: int, layout: str) -> None:
    case = StatisticsCase("f32", layout, classes, 2, 1, (37,))
    samples = statistics_samples(case)
    for sample in samples:
        sample[:, :, :5] = 0.25
        sample[:, 1:3, 5:9] = 20.0
    results = run_under_seeds(host, lambda: run_statistics(host, case, samples))
    assert results["prediction"][0, :5].tolist() == [0] * 5
    assert results["prediction"][0, 5:9].tolist() == [1] * 4
    assert results["std"][0, :5].max() < 1e-6


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 40])
def test_statistics_of_nan_and_infinity(host: ModuleType, classes: int, layout: str) -> None:
    """NaN in any sample makes the pixel's maps NaN; a class of logit -inf has no mass."""
    case = StatisticsCase("f32", layout, classes, 3, 1, (40,))
    samples = statistics_samples(case)
    samples[1][0, 2, 3] = np.nan
    samples[0][0, :, 4] = np.nan
    samples[2][0, 1, 5] = np.inf
    for sample in samples:
        sample[0, 0, 6] = -np.inf
        sample[0, :, 7] = 1e4
    results = run_under_seeds(host, lambda: run_statistics(host, case, samples))
    for name in MAPS:
        assert np.isnan(results[name][0, 3:6]).all(), name
        assert np.isfinite(np.delete(results[name][0], [3, 4, 5])).all(), name
    assert not np.isin(results["prediction"][0, 6], 0)
    keep = np.r_[0:3, 6:40]
    check_statistics(
        [sample[:, :, keep] for sample in samples],
        "f32",
        {name: value[..., keep] for name, value in results.items()},
    )


def run_accumulator(
    host: ModuleType, case: StatisticsCase, samples: list[Array]
) -> dict[str, Array]:
    """The samples one by one, then the maps of the state."""
    accumulate = accumulate_type(case.dtype)
    of_classes = (case.images, case.classes, *case.pixels[1:])
    state = {
        "mean": place(of_classes, accumulate),
        "squared_deviations": place(of_classes, accumulate),
        "entropy_sum": place(case.pixels, accumulate),
    }
    views = {name: placed.view for name, placed in state.items()}
    for count, sample in enumerate(samples, 1):
        host.accumulate(
            sample=place_elements(sample, case.dtype, case.layout).view,
            dtype=case.dtype,
            as_strided=case.layout == "forced",
            align_corners=case.to.align_corners if case.to else None,
            count=count,
            **views,
        )
    outputs = place_maps(case.pixels, case.dtype)
    host.finalize(
        **views,
        count=len(samples),
        dtype="f64" if case.dtype == "f64" else "f32",
        **{name: output.view for name, output in outputs.items()},
    )
    for name, output in {**state, **outputs}.items():
        output.check_surroundings(name)
    return {name: output.view.copy() for name, output in {**state, **outputs}.items()}


ACCUMULATOR_CASES = [
    replace(case, return_mean=True, samples=min(case.samples, 4)) for case in STATISTICS_CASES[::2]
]


@pytest.mark.parametrize("case", thinned(ACCUMULATOR_CASES), ids=str)
def test_accumulator(host: ModuleType, case: StatisticsCase) -> None:
    samples = statistics_samples(case)
    results = run_under_seeds(host, lambda: run_accumulator(host, case, samples))
    check_statistics(samples, case.dtype, results)


def test_accumulator_of_nan(host: ModuleType) -> None:
    case = StatisticsCase("f32", "planar", 5, 3, 1, (33,))
    samples = statistics_samples(case)
    samples[1][0, 2, 3] = np.nan
    results = run_under_seeds(host, lambda: run_accumulator(host, case, samples))
    for name in MAPS:
        assert np.flatnonzero(np.isnan(results[name][0])).tolist() == [3], name


def test_statistics_of_nothing(host: ModuleType) -> None:
    for images, spatial in ((0, (5,)), (2, (0,))):
        case = StatisticsCase("f32", "planar", 3, 2, images, spatial)
        samples = statistics_samples(case)
        run_statistics(host, case, samples)
        run_accumulator(host, case, samples)


# ---- Counts

TABLES = ("confusion", "uncertainty_sums", "calibration", "scores", "histogram")


@dataclass(frozen=True)
class CountsCase:
    dtype: str
    layout: str
    classes: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    target_type: type = np.int64
    ignore_index: int = -100
    ignored: float = 0.2
    probabilities: bool = False
    bins: int = 15
    tables: tuple[str, ...] = TABLES
    outcome: bool = True
    to: Interpolated | None = None
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        to = self.to or ""
        return f"{self.dtype}-{self.layout}-{self.classes}-{self.images}x{spatial}{to}-{self.seed}"

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.images, *(self.to.size if self.to else self.spatial))


def random_counts_case(dtype: str, layout: str, classes: int, seed: int) -> CountsCase:
    generator = np.random.default_rng([seed, classes, DTYPES.index(dtype), LAYOUTS.index(layout)])
    sizes = [size for size in SIZES if size * classes <= 1031 * 5]
    shapes = SHAPES[int(generator.choice(sizes))]
    spatial = shapes[int(generator.integers(len(shapes)))]
    target_type = TARGET_TYPES[int(generator.integers(3))]
    return CountsCase(
        dtype,
        layout,
        classes,
        images=int(generator.integers(1, 4)) if math.prod(spatial) < 1000 else 1,
        spatial=spatial,
        target_type=target_type,
        ignore_index=int(generator.choice([255, 0] if target_type is np.uint8 else [-100, 255, 0])),
        ignored=float(generator.choice([0.0, 0.2, 1.0], p=[0.3, 0.65, 0.05])),
        probabilities=bool(generator.random() < 0.4),
        bins=int(generator.choice([1, 15, 15, 1600])),  # so many do not fit into shared memory
        tables=tuple(name for name in TABLES if generator.random() < 0.75),
        outcome=bool(generator.random() < 0.6),
        seed=seed,
    )


@dataclass
class CountsInputs:
    values: Array  # [N, C, *spatial], float64, as stored
    target: Array  # [N, *spatial]
    uncertainty: Array  # [N, *spatial]


def counts_inputs(case: CountsCase) -> CountsInputs:
    """NaN where nothing may be read. Confidences near an edge of a bin are ignored, too: rounding
    decides which bin they are in."""
    generator = np.random.default_rng(case.seed)
    shape = (case.images, case.classes, *case.spatial)
    values = generator.normal(size=shape) * 3
    if case.probabilities:
        values = np.exp(references.log_softmax(values))
    values = decode(encode(values, case.dtype), case.dtype)
    if case.to is not None:  # an ignored pixel's NaN is in what it blends
        values = np.where(generator.random((case.images, 1, *case.spatial)) < 0.05, np.nan, values)
    target = generator.integers(0, case.classes, case.pixels)
    counted = interpolated(values, case)
    confidence = counted.max(1)
    if not case.probabilities:
        confidence = np.exp(references.log_softmax(counted)).max(1)
    from_edge = np.abs(confidence * case.bins - np.rint(confidence * case.bins))
    ignored = generator.random(case.pixels) < case.ignored
    ignored |= (from_edge < 1e-3) & (confidence < 1) | np.isnan(confidence)
    if case.to is not None and case.classes > 1:  # rounding decides between classes, too
        first, second = -np.partition(-counted, 1, axis=1)[:, :2].swapaxes(0, 1)
        ignored |= ~(first - second > 1e-4 * np.abs(counted).max(1))
    target = np.where(ignored, case.ignore_index, target).astype(case.target_type)
    ignored = target == case.ignore_index
    if case.to is None:
        values = np.where(ignored[:, None], np.nan, values)
    uncertainty = np.exp(generator.uniform(np.log(1e-8), np.log(250), case.pixels))
    uncertainty = np.where(generator.random(case.pixels) < 0.1, 0, uncertainty)
    uncertainty = np.where(ignored, np.nan, uncertainty).astype(accumulate_type(case.dtype))
    return CountsInputs(values, target, uncertainty)


def place_tables(
    names: tuple[str, ...], classes: int, bins: int, seed: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Tables that are not empty, placed, and copies of their contents."""
    shapes = {
        "confusion": (classes, classes),
        "uncertainty_sums": (2, classes, classes),
        "calibration": (bins + 1, 3),
        "scores": (5,),
        "histogram": (2, references.UNCERTAINTY_BINS + 1),
    }
    generator = np.random.default_rng(seed)
    before = {name: generator.integers(0, 2**40, shapes[name]) for name in names}
    return {name: place(shapes[name], np.int64, values=before[name]) for name in names}, before


def run_counts(host: ModuleType, case: CountsCase, inputs: CountsInputs) -> dict[str, Array]:
    """What one call adds to the tables, the outcomes and bad_target."""
    tables, before = place_tables(case.tables, case.classes, case.bins, case.seed)
    values = place_elements(inputs.values, case.dtype, case.layout)
    outputs = {"bad_target": place((2,), np.int64, values=np.zeros(2, np.int64))}
    if case.outcome:
        outputs["outcome"] = place(inputs.target.shape, np.uint8)
    uncertainty = place(
        inputs.uncertainty.shape, inputs.uncertainty.dtype, values=inputs.uncertainty
    )
    host.counts(
        input=values.view,
        target=place(inputs.target.shape, inputs.target.dtype, values=inputs.target).view,
        uncertainty=uncertainty.view,
        probabilities=case.probabilities,
        ignore_index=case.ignore_index,
        bins=case.bins,
        dtype=case.dtype,
        as_strided=case.layout == "forced",
        align_corners=case.to.align_corners if case.to else None,
        **{name: output.view for name, output in {**tables, **outputs}.items()},
    )
    for name, output in {**tables, **outputs}.items():
        output.check_surroundings(name)
    results = {name: output.view.copy() for name, output in outputs.items()}
    return results | {name: table.view - before[name] for name, table in tables.items()}


def check_counts(
    expected: references.Counts, results: dict[str, Array], pixel_tolerance: float
) -> None:
    for name in ("confusion", "uncertainty_sums", "histogram"):
        if name in results:
            assert np.array_equal(results[name], getattr(expected, name)), name
    if "outcome" in results:
        assert np.array_equal(results["outcome"].ravel(), expected.outcome), "outcome"
    if "calibration" in results:
        assert expected.calibration is not None
        actual, wanted = results["calibration"], expected.calibration
        assert np.array_equal(actual[:, :2], wanted[:, :2]), "pixels of bins"
        tolerance = wanted[:, 0] * (pixel_tolerance * references.UNITS + 1)
        assert_close("confidence", actual[:, 2], wanted[:, 2], tolerance)


def verify_counts(
    host: ModuleType, case: CountsCase, inputs: CountsInputs | None = None
) -> dict[str, Array]:
    inputs = counts_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run_counts(host, case, inputs))
    values = pixels_last(interpolated(inputs.values, case))
    rows = np.moveaxis(values, 1, -1).reshape(-1, case.classes)
    target = inputs.target.ravel().astype(np.int64)
    known = np.where(np.isnan(rows), -np.inf, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = np.log(rows) if case.probabilities else references.log_softmax(rows)
        probabilities = rows if case.probabilities else np.exp(log_p)
    confidence = probabilities.max(1)  # NaN if one is
    expected = references.counts(
        known.argmax(1),
        confidence,
        target,
        inputs.uncertainty.ravel(),
        case.classes,
        case.bins,
        case.ignore_index,
    )
    eps = epsilon(case.dtype)
    check_counts(expected, results, 16 * eps)
    if "scores" in results:
        valid = expected.outcome != 2
        at = target[valid]
        negative_log = -log_p[valid, at]
        wanted = references.scores(probabilities[valid], negative_log, at)
        assert np.array_equal(results["scores"][[0, 3, 4]], wanted[[0, 3, 4]])
        size = np.where(np.isfinite(negative_log), np.abs(negative_log), 0).sum() + valid.sum()
        tolerance = 64 * eps * references.UNITS * size + valid.sum()
        assert_close("sums", results["scores"][1:3], wanted[1:3], tolerance)
    return results


COUNTS_CASES = [
    random_counts_case(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(COUNTS_CASES), ids=str)
def test_counts(host: ModuleType, case: CountsCase) -> None:
    results = verify_counts(host, case)
    assert results["bad_target"].tolist() == [0, 0]


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(("classes", "size"), [(1, 9001), (19, 1501), (33, 1501), (80, 1001)])
def test_counts_of_more_tiles_than_blocks(
    host: ModuleType, classes: int, size: int, layout: str
) -> None:
    """All tables, with sums of more than 32 bits in a block."""
    verify_counts(host, CountsCase("f32", layout, classes, 1, (size,), np.uint8, 255))


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_counts_of_nan_and_infinity(
    host: ModuleType, dtype: str, classes: int, layout: str, probabilities: bool
) -> None:
    """What is not finite is counted apart, in every table."""
    case = CountsCase(dtype, layout, classes, 1, (70,), ignored=0.1, probabilities=probabilities)
    inputs = counts_inputs(case)
    inputs.target[0, :14] = 1
    inputs.values[0, :, :14] = 1 / classes if probabilities else 0.0
    inputs.values[0, 0, :14] += 0.25
    inputs.values[0, 2, 0] = np.nan
    inputs.values[0, 1, 1] = np.nan
    inputs.values[0, :, 2] = np.nan
    inputs.values[0, 1, 3] = 0.0 if probabilities else -np.inf  # impossible
    if not probabilities:
        inputs.values[0, :, 4] = -np.inf
        inputs.values[0, 3, 5] = np.inf
        inputs.values[0, 1, 6] = -2000.0
        inputs.values[0, 1, 7] = -900.0
    inputs.values = decode(encode(inputs.values, dtype), dtype)
    inputs.uncertainty[0, :14] = 0.5
    inputs.uncertainty[0, 8:14] = [np.nan, np.inf, -np.inf, -0.25, 256.0, -0.0]
    results = verify_counts(host, case, inputs)
    assert results["uncertainty_sums"][1].sum() == results["histogram"][:, -1].sum() == 5
    assert results["calibration"][-1, 0] == results["scores"][4] == (3 if probabilities else 5)
    assert results["scores"][3] == (1 if probabilities else 2)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 21, 150])
def test_equal_values_are_counted_for_the_lowest_class(
    host: ModuleType, classes: int, layout: str
) -> None:
    case = CountsCase("f32", layout, classes, 1, (37,), ignored=0.0, tables=("confusion",))
    inputs = counts_inputs(case)
    inputs.values[:] = 0.25
    inputs.values[:, 1:3, 5:9] = 20.0
    inputs.target[:] = 2
    results = verify_counts(host, case, inputs)
    assert results["confusion"][2, :2].tolist() == [33, 4]


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_bad_targets_are_not_counted(host: ModuleType, target_type: type, layout: str) -> None:
    case = CountsCase("f32", layout, 19, 2, (67,), target_type, 255)
    inputs = counts_inputs(case)
    beyond = [19, 254] if target_type is np.uint8 else [19, 1000, -1, -(2**31)]
    inputs.target[:, 3 : 3 + len(beyond)] = beyond
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        results = run_counts(host, case, inputs)
        assert results["bad_target"][0] == 1
        assert results["bad_target"][1] in beyond
        ignored = np.isin(inputs.target, [255, *beyond])
        assert np.array_equal(results["outcome"] == 2, ignored)
        assert results["confusion"].sum() == results["scores"][0] == (~ignored).sum()


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_counts_of_nothing(host: ModuleType, shape: tuple[int, ...]) -> None:
    images, classes, *spatial = shape
    case = CountsCase("f32", "planar", classes, images, tuple(spatial))
    results = run_counts(host, case, counts_inputs(case))
    assert not any(results[name].any() for name in TABLES)


@pytest.mark.parametrize("tables", [TABLES, ("histogram",), ("calibration", "confusion")])
@pytest.mark.parametrize("classes", [19, 100])
@pytest.mark.parametrize("size", [1, 255, 257, 2500])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_map_counts(
    host: ModuleType, dtype: str, size: int, classes: int, tables: tuple[str, ...]
) -> None:
    generator = np.random.default_rng(size)
    bins, ignore_index = 15, 255
    names = tuple(name for name in tables if name != "scores")
    target_type, prediction_type = TARGET_TYPES[size % 3], TARGET_TYPES[classes % 3]
    accumulate = accumulate_type(dtype)
    prediction = generator.integers(0, classes, size)
    target = np.where(
        generator.random(size) < 0.5, prediction, generator.integers(0, classes, size)
    )
    target = np.where(generator.random(size) < 0.2, ignore_index, target).astype(target_type)
    # Multiples of 2^-24 fall onto the edges of bins, and have exact sums.
    confidence = (np.rint(generator.random(size) * 2**24) / 2**24).astype(accumulate)
    confidence[:3] = [1.0, 0.0, np.nan][:size]
    uncertainty = np.exp(generator.uniform(-18, 5, size)).astype(accumulate)

    def run() -> dict[str, Array]:
        placed, before = place_tables(names, classes, bins, size)
        outcome = place((size,), np.uint8)
        host.map_counts(
            prediction=prediction.astype(prediction_type),
            confidence=confidence,
            target=target,
            uncertainty=uncertainty,
            outcome=outcome.view,
            classes=classes,
            bins=bins,
            ignore_index=ignore_index,
            dtype=dtype,
            bad_target=np.zeros(2, np.int64),
            **{name: table.view for name, table in placed.items()},
        )
        for name, table in {**placed, "outcome": outcome}.items():
            table.check_surroundings(name)
        results = {name: table.view - before[name] for name, table in placed.items()}
        return {**results, "outcome": outcome.view.copy()}

    expected = references.counts(
        prediction, confidence, target, uncertainty, classes, bins, ignore_index
    )
    results = run_under_seeds(host, run)
    check_counts(expected, results, 0.0)
    if "calibration" in results:
        assert expected.calibration is not None
        assert np.array_equal(results["calibration"], expected.calibration), "exact confidences"


def test_bad_predictions_are_not_counted(host: ModuleType) -> None:
    flag, confusion = np.zeros(2, np.int64), np.zeros((3, 3), np.int64)
    host.map_counts(
        prediction=np.array([0, 3, 2, -1]),
        target=np.array([0, 1, 2, 255]),
        confusion=confusion,
        classes=3,
        bins=1,
        ignore_index=255,
        dtype="f32",
        bad_target=flag,
    )
    assert confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert flag.tolist() == [1, 3]


@pytest.mark.parametrize("window", [1, 3, 4])
@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 9), (3, 13, 22), (1, 70, 121)])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_patch_counts(host: ModuleType, dtype: str, shape: tuple[int, ...], window: int) -> None:
    generator = np.random.default_rng(shape[1])
    outcome = generator.integers(0, 2, shape).astype(np.uint8)
    outcome[generator.random(shape) < 0.3] = 2
    outcome[:, :window, :window] = 2  # no valid pixel
    uncertainty = generator.random(shape).astype(accumulate_type(dtype))
    uncertainty[-1, -window:, -window:] = [np.nan]
    uncertainty[outcome == 2] = np.nan
    thresholds = np.array([0.5, 0.0, 0.3, 2.0])

    def run() -> dict[str, Array]:
        before = generator.integers(0, 2**40, (4, 5))
        counts = place((4, 5), np.int64, values=before)
        host.patch_counts(
            outcome=place(shape, np.uint8, values=outcome).view,
            uncertainty=place(shape, uncertainty.dtype, values=uncertainty).view,
            thresholds=thresholds,
            counts=counts.view,
            window=window,
            accuracy_threshold=0.5,
            dtype=dtype,
        )
        counts.check_surroundings("counts")
        return {"counts": counts.view - before}

    expected = references.patch_counts(outcome, uncertainty, thresholds, window, 0.5)
    assert np.array_equal(run_under_seeds(host, run)["counts"], expected)
