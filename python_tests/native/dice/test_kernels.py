"""csrc/dice/cuda/kernels.h, run on the host, against float64 NumPy."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from python_tests.native.dice.cases import Case, make_inputs, run, verify
from python_tests.native.harness import (
    CLASS_COUNTS,
    DTYPES,
    GAPS,
    LAYOUTS,
    TARGET_TYPES,
    drawn_spatial,
    thinned,
    threads_of_report,
)
from python_tests.native.interpolation import SHAPES, Interpolated


def drawn(dtype: str, layout: str, classes: int, seed: int) -> Case:
    """The grid's cases with other arguments drawn for each."""
    generator = np.random.default_rng([seed, classes, LAYOUTS.index(layout)])
    return Case(
        dtype,
        layout,
        classes,
        images=int(generator.integers(1, 4)),
        spatial=drawn_spatial(generator, 2000 // classes + 33),
        target_type=TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))],
        by_image=bool(generator.random() < 0.5),
        squared=bool(generator.random() < 0.4),
        weight=bool(generator.random() < 0.5),
        pixel_weight=bool(generator.random() < 0.5),
        smoothing=float(generator.choice([0.0, 0.1])),
        cross_entropy=bool(generator.random() < 0.8),
        ignore_index=int(generator.choice([255, 1])),
        grad_pixel_weight=bool(generator.random() < 0.5),
        overwrites=bool(generator.random() < 0.4),
        seed=seed,
    )


GRID = [
    drawn(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    if layout != "unaligned"
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(GRID), ids=str)
def test_grid(host: ModuleType, case: Case) -> None:
    verify(host, case)


def in_registers(
    dtype: str, layout: str, classes: int, spatial: tuple[int, ...], seed: int, **arguments: Any
) -> Case:
    """Planar logits without smoothing, of at most 32 classes, with other arguments drawn."""
    generator = np.random.default_rng([seed, classes, *spatial])
    drawn: dict[str, Any] = {
        "images": int(generator.integers(1, 4)),
        "target_type": TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))],
        "by_image": bool(generator.random() < 0.5),
        "squared": bool(generator.random() < 0.3),
        "weight": bool(generator.random() < 0.5),
        "pixel_weight": bool(generator.random() < 0.5),
        "ignore_index": int(generator.choice([255, 0])),
        "grad_pixel_weight": bool(generator.random() < 0.3),
        "overwrites": bool(generator.random() < 0.5),
    }
    return Case(dtype, layout, classes, spatial=spatial, seed=seed, **{**drawn, **arguments})


# Every number of registers, of pixels that are aligned vectors and of others; tiles that are full,
# that end in the middle of a warp, and that the last thread has one pixel of.
IN_REGISTERS = [
    in_registers(dtype, layout, classes, spatial, seed)
    for classes in (1, 2, 4, 7, 12, 19, 21, 27, 32)
    for seed, (dtype, layout, spatial) in enumerate(
        [
            ("f32", "planar", (512,)),
            ("f32", "planar", (5, 77)),
            ("f32", "odd_classes", (3, 100)),
            ("bf16", "planar", (2, 170)),
            ("bf16", "unaligned", (300,)),
            ("f16", "odd_images", (258,)),
            ("f16", "planar", (641,)),
        ]
    )
]


@pytest.mark.parametrize("case", thinned(IN_REGISTERS), ids=str)
def test_in_registers(host: ModuleType, case: Case) -> None:
    verify(host, case)


@pytest.mark.parametrize(
    "case",
    [
        # Threads whose floats are added up several times, in the middle of a tile at last.
        in_registers("f32", "planar", 2, (20000,), 1, images=1, squared=False),
        in_registers("f32", "planar", 3, (101, 90), 2, images=3, by_image=True, squared=False),
        in_registers("f32", "planar", 3, (101, 89), 3, images=2, by_image=False, squared=True),
        # More images than blocks.
        in_registers("f32", "planar", 5, (40,), 4, images=11, by_image=True),
        in_registers("f32", "planar", 5, (39,), 5, images=11, by_image=False, overwrites=True),
    ],
    ids=str,
)
def test_many_tiles_in_registers(host: ModuleType, case: Case) -> None:
    verify(host, case)


@pytest.mark.parametrize(
    "case",
    thinned(
        [
            Case(dtype, layout, 3, spatial=(pixels,), by_image=by_image, seed=7)
            for dtype in ("f32", "f16")
            for layout, pixels in GAPS
            for by_image in (False, True)
        ]
    ),
    ids=str,
)
def test_gaps(host: ModuleType, case: Case) -> None:
    verify(host, case)


@pytest.mark.parametrize(
    "case",
    [
        # More tiles than blocks, more images than blocks, images of one pixel.
        Case("f32", "planar", 2, images=3, spatial=(3001,), seed=1),
        Case("f32", "planar", 2, images=3, spatial=(3001,), by_image=False, seed=2),
        Case("f32", "planar", 3, images=41, spatial=(2,), ignored=0.5, seed=3),
        Case("bf16", "channels_last", 3, images=41, spatial=(1,), by_image=False, seed=4),
        # Rows of sums that do not fit shared memory.
        Case("f32", "planar", 1000, images=2, spatial=(70,), seed=5),
        Case("f64", "channels_last", 300, images=2, spatial=(300,), by_image=False, seed=6),
        Case("f32", "planar", 19, spatial=(50,), grad_layout="channels_last", seed=8),
        Case("f32", "planar", 5, spatial=(50,), grad_input=False, grad_pixel_weight=True, seed=9),
    ],
    ids=str,
)
def test_sizes(host: ModuleType, case: Case) -> None:
    verify(host, case)


@pytest.mark.parametrize(
    "case",
    thinned(
        [
            Case(
                DTYPES[(i + j) % 4],
                ("planar", "channels_last", "crop")[(i + j) % 3],
                (2, 5, 19)[i % 3],
                spatial=source,
                to=Interpolated(size, bool(j)),
                by_image=bool((i + j) % 2),
                squared=i % 3 == 0,
                weight=i % 2 == 0,
                pixel_weight=True,
                smoothing=0.1 * (i % 2),
                grad_pixel_weight=True,
                ignore_index=255,
                seed=i,
            )
            for i, (source, size) in enumerate(SHAPES)
            for j in range(2)
        ]
    ),
    ids=str,
)
def test_interpolated(host: ModuleType, case: Case) -> None:
    verify(host, case)


@pytest.mark.parametrize("to", [None, Interpolated((9, 40), False)])
@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_targets_that_are_no_class(host: ModuleType, dtype: str, to: Interpolated | None) -> None:
    """Every sum that they have a part in is NaN, and so is their gradient; the host is told."""
    spatial = (7, 30) if to else (300,)
    case = Case(dtype, "planar", 4, spatial=spatial, to=to, grad_pixel_weight=True, seed=3)
    for value in (-1, 4, 2**40):
        inputs = make_inputs(case)
        inputs.target.reshape(case.images, -1)[1, 17] = value
        if to is None:
            inputs.logits[1, :, 17] = 0.5
        verify(host, case, inputs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])  # in registers, and not
@pytest.mark.parametrize("classes", [2, 5, 19])
def test_logits_that_are_no_numbers(host: ModuleType, classes: int, smoothing: float) -> None:
    """They reach the sums of their pixel's probabilities and its gradient, and no other."""
    case = Case("f32", "planar", classes, spatial=(300,), smoothing=smoothing, seed=8)
    for value in (np.nan, np.inf):
        inputs = make_inputs(case)
        inputs.target[1, 17] = classes - 1
        inputs.logits[1, :, 17] = 0.5
        inputs.logits[1, 0, 17] = value
        with np.errstate(invalid="ignore"):
            verify(host, case, inputs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])  # in registers, and not
@pytest.mark.parametrize("spatial", [(300,), (301,)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coefficients_that_are_no_numbers(
    host: ModuleType, spatial: tuple[int, ...], smoothing: float, value: float
) -> None:
    """The gradient of an ignored pixel is 0 all the same."""
    case = Case("f32", "planar", 4, spatial=spatial, smoothing=smoothing, seed=9)
    inputs = make_inputs(case)
    inputs.logits = np.nan_to_num(inputs.logits)
    inputs.coefficients[1, 0, 2] = value
    gradient = run(host, case, inputs)["grad_input"].swapaxes(0, 1).reshape(4, 2, -1)
    ignored = inputs.target.reshape(2, -1) == case.ignore_index
    assert not gradient[:, ignored].any()
    assert np.isfinite(gradient[:, 0]).all()
    assert not np.isfinite(gradient[2, 1, ~ignored[1]]).any()


def test_no_flag_is_no_report(host: ModuleType) -> None:
    """A report is one a warp, not one a pixel."""
    case = Case("f32", "planar", 3, spatial=(2000,), ignored=0.0)
    inputs = make_inputs(case)
    inputs.target[...] = 77
    assert threads_of_report(host, lambda: run(host, case, inputs)) >= 32


@pytest.mark.parametrize("shape", [(0, 3, (5,)), (2, 3, (0,))])
@pytest.mark.parametrize("by_image", [False, True])
def test_no_pixels(host: ModuleType, by_image: bool, shape: tuple[int, int, tuple[int]]) -> None:
    """Sums of nothing are 0."""
    images, classes, spatial = shape
    case = Case("f32", "planar", classes, images=images, spatial=spatial, by_image=by_image)
    results = run(host, case, make_inputs(case))
    assert not results["sums"].any()
    assert results["surprise"] == 0
