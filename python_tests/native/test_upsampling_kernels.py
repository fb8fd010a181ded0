"""csrc/upsampled_cross_entropy/cuda.h, run on the host, against float64 NumPy.

As in test_cuda_kernels.py: several schedules agree bit for bit, outputs start as garbage, and
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

TARGET_TYPES = (np.int64, np.int32, np.uint8)


@dataclass(frozen=True)
class Case:
    dtype: str
    layout: str
    classes: int
    source: tuple[int, ...]
    size: tuple[int, ...]
    align_corners: bool = False
    images: int = 1
    target_type: type = np.uint8
    weight: bool = False
    pixel_weight: bool = False
    smoothing: float = 0.0
    ignore_index: int = 255
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
        source, size = ("x".join(map(str, shape)) for shape in (self.source, self.size))
        corners = "corners" if self.align_corners else "centres"
        return f"{self.dtype}-{self.layout}-{self.classes}-{source}-{size}-{corners}-{self.seed}"


EVERYTHING = {
    "weight": True,
    "pixel_weight": True,
    "smoothing": 0.1,
    "ignored": 0.2,
    "upstream": "map",
    "divided": True,
    "grad_pixel_weight": True,
}

# (source, size): enlarged by whole numbers and others, along one axis alone, reduced, both; the
# last sizes of each are those of more than one tile or warp.
SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 1), (1, 1)),
    ((1, 1), (5, 7)),
    ((4, 5), (16, 20)),
    ((3, 4), (3, 4)),
    ((5, 3), (13, 11)),
    ((7, 9), (7, 31)),
    ((13, 6), (5, 4)),
    ((2, 30), (9, 8)),
    ((6, 9), (21, 33)),
    ((2, 3, 4), (4, 6, 8)),
    ((3, 1, 2), (2, 5, 3)),
    ((5, 4, 3), (2, 9, 7)),
)


def random_case(dtype: str, layout: str, classes: int, seed: int) -> Case:
    """The options that a grid of dtype, layout and classes leaves open, drawn."""
    generator = np.random.default_rng([seed, classes, DTYPES.index(dtype), LAYOUTS.index(layout)])

    def either(p: float = 0.5) -> bool:
        return bool(generator.random() < p)

    shapes = [(s, t) for s, t in SHAPES if math.prod(t) * classes <= 8000]
    source, size = shapes[int(generator.integers(len(shapes)))]
    target_type = TARGET_TYPES[int(generator.integers(3))]
    return Case(
        dtype,
        layout,
        classes,
        source,
        size,
        align_corners=either(),
        images=int(generator.integers(1, 3)),
        target_type=target_type,
        weight=either(),
        pixel_weight=either(),
        smoothing=float(generator.choice([0.0, 0.0, 0.1, 1.0])),
        ignore_index=int(generator.choice([255, 0] if target_type is np.uint8 else [-100, -1, 0])),
        ignored=float(generator.choice([0.0, 0.2, 1.0], p=[0.3, 0.65, 0.05])),
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
class Inputs:
    logits: Array  # float64, as stored
    target: Array  # [N, *size]
    weight: Array | None
    pixel_weight: Array | None
    upstream: Array | None
    normalizer: Array | None


def make_inputs(case: Case) -> Inputs:
    """The factors of ignored pixels are NaN: nobody may read them."""
    generator = np.random.default_rng(case.seed)
    accumulate = accumulate_type(case.dtype)
    shape = (case.images, case.classes, *case.source)
    pixels = (case.images, *case.size)
    logits = decode(encode(generator.normal(size=shape) * 4, case.dtype), case.dtype)
    target = generator.integers(0, min(case.classes, 255), pixels)
    target = np.where(generator.random(pixels) < case.ignored, case.ignore_index, target)
    target = target.astype(case.target_type)
    ignored = target == case.ignore_index
    pixel_weight = np.where(ignored, np.nan, generator.random(pixels) * 3).astype(accumulate)
    weight = (generator.random(case.classes) + 0.05).astype(accumulate)
    upstream = {
        "none": None,
        "scalar": np.array(generator.normal() * 8, accumulate),
        "map": np.where(ignored, np.nan, generator.normal(size=pixels)).astype(accumulate),
    }[case.upstream]
    return Inputs(
        logits,
        target,
        weight if case.weight else None,
        pixel_weight if case.pixel_weight else None,
        upstream,
        np.array([generator.random() * 50 + 1]) if case.divided else None,
    )


def run(host: ModuleType, case: Case, inputs: Inputs) -> dict[str, Array]:
    """One call; the outputs that the case asks for, and bad_target."""
    accumulate = accumulate_type(case.dtype)
    pixels = inputs.target.shape
    logits = place_elements(inputs.logits, case.dtype, case.layout)
    before = logits.buffer.copy()
    outputs = {"bad_target": place((2,), np.int64, values=np.zeros(2, np.int64))}
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
        "align_corners": case.align_corners,
        "ignore_index": case.ignore_index,
        "label_smoothing": case.smoothing,
        "dtype": case.dtype,
        "as_strided": case.layout == "forced",
        **{name: output.view for name, output in outputs.items()},
    }
    if case.partial:
        outputs["partial"] = place(
            (host.upsampled_cross_entropy_partials(**arguments),), np.float64
        )
        arguments["partial"] = outputs["partial"].view
    scratch = place((host.upsampled_cross_entropy_scratch_bytes(**arguments),), np.uint8)
    host.upsampled_cross_entropy(**arguments, scratch=scratch.view)
    scratch.check_surroundings("scratch")
    for name, output in outputs.items():
        output.check_surroundings(name)
    assert np.array_equal(logits.buffer.view(np.uint8), before.view(np.uint8)), (
        "the input has changed"
    )
    return {name: np.array(output.view) for name, output in outputs.items()}


def matrices_of(case: Case) -> list[Array]:
    return [
        references.interpolation_matrix(
            source, size, case.align_corners, accumulate_type(case.dtype)
        )
        for source, size in zip(case.source, case.size, strict=True)
    ]


def check(case: Case, inputs: Inputs, results: dict[str, Array]) -> None:
    eps = float(np.finfo(accumulate_type(case.dtype)).eps)
    n, c = case.images, case.classes
    matrices = matrices_of(case)
    logits = references.interpolate(inputs.logits, matrices).reshape(n, c, -1)
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
        # What rounding errors of the logits are relative to.
        size = np.abs(inputs.logits[np.isfinite(inputs.logits)]).max(initial=0.0)
        weights = np.ones(flat.shape) if pixel_weight is None else np.abs(pixel_weight)
    weights = np.where(expected.valid, weights, 0.0)
    tolerance = 16 * eps * (1 + size) * weights
    if "loss" in results:
        assert_close("loss", results["loss"].reshape(n, -1), expected.loss, tolerance)
    if "partial" in results:
        assert_close(
            "partial",
            np.array(results["partial"].sum()),
            np.array(expected.loss.sum()),
            np.nansum(tolerance) + 1e-12,
        )
    if "grad_pixel_weight" in results:
        assert_close(
            "grad_pixel_weight",
            results["grad_pixel_weight"].reshape(n, -1),
            np.where(expected.valid, expected.unweighted * upstream, 0.0),
            16 * eps * (1 + size) * np.abs(upstream),
        )
    if "grad_input" in results:
        transposed = [matrix.T for matrix in matrices]
        with np.errstate(invalid="ignore"):
            per_pixel = (expected.gradient * upstream[:, None]).reshape(n, c, *case.size)
        # A bad target's gradient is NaN for every class.
        bad = expected.bad.reshape(n, 1, *case.size)
        gradient = references.interpolate(np.where(bad, np.nan, per_pixel), transposed)
        magnitude = np.nan_to_num(expected.magnitude * np.abs(upstream)).reshape(n, 1, *case.size)
        slack = 8 * eps * (1 + size) * references.interpolate(magnitude, transposed)
        relative, absolute = rounding(case.dtype)
        assert_close(
            "grad_input",
            decode(results["grad_input"], case.dtype),
            gradient,
            np.abs(gradient) * relative * (1 + 8 * eps) + absolute + slack + 1e-300,
        )
    found = results["bad_target"]
    if expected.bad.any():
        assert found[0] == 1
        assert found[1] in flat[expected.bad].astype(np.int64)
    else:
        assert found.tolist() == [0, 0]


def verify(host: ModuleType, case: Case, inputs: Inputs | None = None) -> dict[str, Array]:
    inputs = make_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    check(case, inputs, results)
    return results


CASES = [
    random_case(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(CASES), ids=str)
def test_upsampled_cross_entropy(host: ModuleType, case: Case) -> None:
    verify(host, case)


# Around the sizes of warps, tiles and blocks; more tiles than blocks; extreme ratios.
LARGER = (
    ((1, 1), (37, 131)),
    ((37, 131), (1, 1)),
    ((2, 2), (9, 130)),
    ((17, 33), (65, 129)),
    ((9, 40), (70, 131)),
    ((33, 32), (33, 32)),
    ((31, 90), (40, 35)),
    ((3, 40), (70, 5)),
    ((2, 5, 17), (5, 9, 33)),
)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("shape", LARGER)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_larger_shapes(
    host: ModuleType,
    dtype: str,
    shape: tuple[tuple[int, ...], tuple[int, ...]],
    layout: str,
    align_corners: bool,
) -> None:
    """Everything asked for at once."""
    source, size = shape
    verify(host, Case(dtype, layout, 3, source, size, align_corners, **EVERYTHING))


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", [24, 25, 97, 400, 800])
def test_many_classes(host: ModuleType, classes: int, layout: str) -> None:
    """Around the largest teams, and beyond."""
    verify(host, Case("bf16", layout, classes, (3, 2), (5, 7), **EVERYTHING))


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4)])
def test_nothing(host: ModuleType, shape: tuple[int, ...]) -> None:
    images, classes, *source = shape
    case = Case("f32", "planar", classes, tuple(source), (9, 9), images=images)
    inputs = replace_target(make_inputs(replace(case, classes=1)), case)
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    assert results["partial"].sum() == 0


def replace_target(inputs: Inputs, case: Case) -> Inputs:
    """Logits of the case's shape, which may be empty."""
    inputs.logits = np.zeros((case.images, case.classes, *case.source))
    return inputs


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_bad_targets_are_flagged(
    host: ModuleType, target_type: type, classes: int, dtype: str
) -> None:
    """Their loss is NaN, and so are the gradients of the logits that they blend."""
    case = Case(
        dtype, "planar", classes, (5, 6), (9, 23), target_type=target_type, images=2, **EVERYTHING
    )
    inputs = make_inputs(case)
    beyond = [classes, 254] if target_type is np.uint8 else [classes, 1000, -1, -(2**31)]
    if target_type is np.int64:
        beyond += [2**40, -(2**40), 2**32]
    inputs.target[:, 4, 3 : 3 + len(beyond)] = beyond
    for factors in (inputs.pixel_weight, inputs.upstream):
        assert factors is not None
        factors[:, 4, 3 : 3 + len(beyond)] = 1
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        check(case, inputs, run(host, case, inputs))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", ["planar", "crop"])
@pytest.mark.parametrize("shape", [((6, 7), (11, 25)), ((6, 7), (4, 5)), ((2, 3, 4), (3, 5, 8))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_goes_no_further_than_its_share(
    host: ModuleType,
    dtype: str,
    shape: tuple[tuple[int, ...], tuple[int, ...]],
    layout: str,
    align_corners: bool,
) -> None:
    """A source logit spoils the pixels that blend it, these the gradients of what they blend, but
    an ignored pixel spoils nothing."""
    source, size = shape
    case = Case(dtype, layout, 5, source, size, align_corners, ignored=0.2, pixel_weight=True)
    inputs = make_inputs(case)
    inputs.logits[(0, 2, *(length // 2 for length in source))] = np.nan
    # To the left of it everything is ignored.
    inputs.target[..., : size[-1] // 2] = case.ignore_index
    assert inputs.pixel_weight is not None
    inputs.pixel_weight[..., : size[-1] // 2] = np.nan
    results = verify(host, case, inputs)
    gradient = decode(results["grad_input"], dtype)
    assert np.isnan(results["loss"]).any()
    assert np.isnan(gradient).any()
    assert not gradient[..., 0].any()


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(host: ModuleType, dtype: str, classes: int) -> None:
    """Large logits do not overflow, in neighbouring source pixels or classes."""
    case = Case(dtype, "planar", classes, (4, 5), (12, 15))
    inputs = make_inputs(case)
    inputs.logits[0, 0, :2] = 3e4
    inputs.logits[0, 1, 1:3] = -3e4
    inputs.logits[0, :, 3, 2] = 3e4
    inputs.logits = decode(encode(inputs.logits, dtype), dtype)
    verify(host, case, inputs)


def test_float16_gradients_keep_a_large_upstream(host: ModuleType) -> None:
    """A GradScaler's factor arrives before the gradient is rounded, so nothing underflows."""
    case = Case("f16", "planar", 19, (8, 8), (32, 32), upstream="scalar", divided=True)
    inputs = make_inputs(case)
    inputs.upstream = np.array(65536.0, np.float32)
    inputs.normalizer = np.array([589824.0])
    results = verify(host, case, inputs)
    assert (decode(results["grad_input"], "f16") != 0).mean() > 0.95


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_one_output_alone(host: ModuleType, dtype: str) -> None:
    base = Case(
        dtype,
        "planar",
        19,
        (5, 6),
        (13, 17),
        pixel_weight=True,
        loss=False,
        partial=False,
        grad_input=False,
    )
    for output in ("loss", "partial", "grad_input", "grad_pixel_weight"):
        verify(host, replace(base, **{output: True}))


@pytest.mark.parametrize(("classes", "at_most"), [(19, 1.8), (150, 2.5)])
def test_scratch_is_of_the_size_of_the_source(
    host: ModuleType, classes: int, at_most: float
) -> None:
    """In units of the gradient, at four times its height and width."""
    gradient = np.zeros((2, classes, 128, 128), np.float32)
    target = np.zeros((2, 512, 512), np.uint8)
    found = host.upsampled_cross_entropy_scratch_bytes(
        input=gradient,
        grad_input=gradient,
        target=target,
        align_corners=False,
        ignore_index=255,
        label_smoothing=0.0,
        dtype="f32",
    )
    assert gradient.nbytes < found <= at_most * gradient.nbytes
