"""csrc/cross_entropy/cuda/kernels.h, run on the host, against float64 NumPy: interpolated logits.

Each case runs under several schedules, which must agree bit for bit. Outputs start as garbage, and
nothing around them may change.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from python_tests.native.cross_entropy.cases import (
    PLAIN,
    VARIATIONS,
    Case,
    check,
    make_inputs,
    run,
    verify,
)
from python_tests.native.harness import (
    CLASS_COUNTS,
    DTYPES,
    LAYOUTS,
    SEEDS,
    TARGET_TYPES,
    decode,
    encode,
    run_under_seeds,
    shared_bytes,
    thinned,
    threads_of_report,
)
from python_tests.native.interpolation import Interpolated


def case_of(
    dtype: str,
    layout: str,
    classes: int,
    source: tuple[int, ...],
    size: tuple[int, ...],
    align_corners: bool = False,
    **options: Any,
) -> Case:
    """One image of bytes as targets, unless the options say otherwise."""
    to = Interpolated(size, align_corners)
    defaults = {"images": 1, "target_type": np.uint8, "ignore_index": 255}
    return Case(dtype, layout, classes, spatial=source, to=to, **(defaults | options))


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
    target_type = TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))]
    return case_of(
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
        varied=VARIATIONS[str(generator.choice([*VARIATIONS]))] if either(0.3) else PLAIN,
        seed=seed,
    )


CASES = [
    random_case(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(CASES), ids=str)
def test_interpolated_cross_entropy(host: ModuleType, case: Case) -> None:
    verify(host, case)


# By tiles, whose threads have few classes or many, and by pixels.
@pytest.mark.parametrize(
    ("dtype", "classes", "source", "size"),
    [
        ("f32", 3, (4, 5), (16, 20)),
        ("bf16", 19, (5, 9), (21, 33)),
        ("f32", 40, (3, 4), (9, 8)),
        ("f64", 3, (4, 5), (16, 20)),
    ],
)
@pytest.mark.parametrize("varied", VARIATIONS)
def test_variations(
    host: ModuleType,
    varied: str,
    dtype: str,
    classes: int,
    source: tuple[int, ...],
    size: tuple[int, ...],
) -> None:
    for smoothing in (0.0, 0.1):
        options = {**EVERYTHING, "images": 2, "smoothing": smoothing}
        options["varied"] = VARIATIONS[varied]
        verify(host, case_of(dtype, "planar", classes, source, size, **options))


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
    verify(host, case_of(dtype, layout, 3, source, size, align_corners, **EVERYTHING))


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", [24, 25, 97, 400, 800])
def test_many_classes(host: ModuleType, classes: int, layout: str) -> None:
    """Around the largest teams, and beyond."""
    verify(host, case_of("bf16", layout, classes, (3, 2), (5, 7), **EVERYTHING))


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4)])
def test_nothing(host: ModuleType, shape: tuple[int, ...]) -> None:
    images, classes, *source = shape
    case = case_of("f32", "planar", classes, tuple(source), (9, 9), images=images)
    inputs = make_inputs(replace(case, classes=1))
    inputs.logits = np.zeros((images, classes, *source))
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    assert results["partial"].sum() == 0


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_bad_targets_are_flagged(
    host: ModuleType, target_type: type, classes: int, dtype: str
) -> None:
    """Their loss is NaN, and so are the gradients of the logits that they blend."""
    case = case_of(
        dtype, "planar", classes, (5, 6), (9, 23), target_type=target_type, images=2, **EVERYTHING
    )
    inputs = make_inputs(case)
    least = max(-(2**31), int(np.iinfo(target_type).min))
    beyond = [classes, 254] if target_type is np.uint8 else [classes, 1000, -1, least]
    if target_type is np.int64:
        beyond += [2**40, -(2**40), 2**32]
    inputs.target[:, 4, 3 : 3 + len(beyond)] = beyond
    for factors in (inputs.pixel_weight, inputs.upstream):
        assert factors is not None
        factors[:, 4, 3 : 3 + len(beyond)] = 1
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        check(case, inputs, run(host, case, inputs))


@pytest.mark.parametrize("classes", [19, 60])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_bad_targets_are_reported_once_a_warp_or_block(
    host: ModuleType, dtype: str, classes: int
) -> None:
    case = case_of(dtype, "planar", classes, (5, 6), (64, 96), ignore_index=254, grad_input=False)
    inputs = make_inputs(case)
    inputs.target[:] = 255
    threads = threads_of_report(host, lambda: run(host, case, inputs))
    if dtype == "f64":
        assert threads == 32
    else:
        assert threads > 32


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
    case = case_of(dtype, layout, 5, source, size, align_corners, ignored=0.2, pixel_weight=True)
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
    case = case_of(dtype, "planar", classes, (4, 5), (12, 15))
    inputs = make_inputs(case)
    inputs.logits[0, 0, :2] = 3e4
    inputs.logits[0, 1, 1:3] = -3e4
    inputs.logits[0, :, 3, 2] = 3e4
    inputs.logits = decode(encode(inputs.logits, dtype), dtype)
    verify(host, case, inputs)


def test_float16_gradients_keep_a_large_upstream(host: ModuleType) -> None:
    """A GradScaler's factor arrives before the gradient is rounded, so nothing underflows."""
    case = case_of("f16", "planar", 19, (8, 8), (32, 32), upstream="scalar", divided=True)
    inputs = make_inputs(case)
    inputs.upstream = np.array(65536.0, np.float32)
    inputs.normalizer = np.array([589824.0])
    results = verify(host, case, inputs)
    assert (decode(results["grad_input"], "f16") != 0).mean() > 0.95


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_one_output_alone(host: ModuleType, dtype: str) -> None:
    base = case_of(
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
    found = host.cross_entropy_scratch_bytes(
        input=gradient,
        grad_input=gradient,
        target=target,
        align_corners=False,
        ignore_index=255,
        label_smoothing=0.0,
        dtype="f32",
    )
    assert gradient.nbytes < found <= at_most * gradient.nbytes


@pytest.mark.parametrize("width", [237, 241, 243, 245, 247])
def test_static_and_dynamic_shared_memory_fit_together(host: ModuleType, width: int) -> None:
    """Two rows of these logits take about all that a block can have, static arrays included."""
    verify(host, case_of("f32", "planar", 19, (3, width), (5, 128)))


@pytest.mark.parametrize("classes", thinned([1, 3, 19, 24, 25, 48, 97, 150]))
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_widest_rows_that_fit_shared_memory(host: ModuleType, dtype: str, classes: int) -> None:
    """And those just beyond, which are left to another kernel."""

    def case(width: int) -> Case:
        return case_of(dtype, "planar", classes, (1, width), (1, 128), grad_pixel_weight=True)

    def shared(width: int) -> int:
        wide = case(width)
        return shared_bytes(host, lambda: run(host, wide, make_inputs(wide)))

    team = 1 << max(0, math.ceil(math.log2(classes / 23)))
    pitch = team * (math.ceil(classes / team) | 1)
    fits, too_wide = 2, team * host.max_shared_bytes // (4 * pitch)
    assert shared(too_wide) < 1024 < shared(fits)
    while too_wide - fits > 1:
        width = (fits + too_wide) // 2
        fits, too_wide = (width, too_wide) if shared(width) > 1024 else (fits, width)
    # A source column more for every tile, or two, and what is static beside it.
    assert shared(fits) + 2 * 4 * (2 * pitch + 1) + 1024 > host.max_shared_bytes
    for width in range(fits - 3, fits + 4):
        verify(host, case(width))
