"""The kernels of regions of csrc/dice/cuda, run on the host, against float64 NumPy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from python_tests.native.dice.regions import TARGET_TYPES, RegionCase, make_inputs, run, verify
from python_tests.native.harness import (
    CLASS_COUNTS,
    DTYPES,
    LAYOUTS,
    drawn_spatial,
    thinned,
    threads_of_report,
)


def drawn(dtype: str, layout: str, classes: int, seed: int) -> RegionCase:
    """The grid's cases with other arguments drawn for each."""
    generator = np.random.default_rng([seed, classes, LAYOUTS.index(layout), 1])
    return RegionCase(
        dtype,
        layout,
        classes,
        images=int(generator.integers(1, 4)),
        spatial=drawn_spatial(generator, 2000 // classes + 33),
        target_type=TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))],
        gap=int(generator.integers(2)),
        by_image=bool(generator.random() < 0.5),
        squared=bool(generator.random() < 0.4),
        mask=bool(generator.random() < 0.5),
        pos_weight=bool(generator.random() < 0.5),
        pixel_weight=bool(generator.random() < 0.5),
        cross_entropy=bool(generator.random() < 0.8),
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
def test_grid(host: ModuleType, case: RegionCase) -> None:
    verify(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_target_types(host: ModuleType, target_type: str, layout: str) -> None:
    verify(host, RegionCase("f32", layout, 3, target_type=target_type, gap=1, mask=True, seed=1))


@pytest.mark.parametrize(
    "case",
    [
        # One region, more tiles than blocks, more images than blocks, images of one pixel.
        RegionCase("f32", "channels_last", 1, images=3, spatial=(3001,), seed=1),
        RegionCase("f32", "channels_last", 2, images=3, spatial=(3001,), by_image=False, seed=2),
        RegionCase("f32", "planar", 3, images=41, spatial=(2,), mask=True, seed=3),
        RegionCase("bf16", "channels_last", 3, images=41, spatial=(1,), by_image=False, seed=4),
        # Rows of sums that do not fit shared memory.
        RegionCase("f32", "channels_last", 1000, images=2, spatial=(70,), seed=5),
        RegionCase("f32", "planar", 19, spatial=(50,), grad_layout="channels_last", seed=8),
        # A plane a block: threads whose floats are added up several times, in the middle of a tile
        # at last; more planes than blocks; odd strides.
        RegionCase("f32", "planar", 3, images=2, spatial=(101, 90), mask=True, seed=10),
        RegionCase("f32", "planar", 1, images=3, spatial=(3001,), by_image=False, seed=11),
        RegionCase("f32", "class_gap", 40, spatial=(33,), squared=True, overwrites=True, seed=12),
        RegionCase("f16", "odd_classes", 2, spatial=(2, 650), pixel_weight=True, seed=13),
        RegionCase(
            "f32", "planar", 5, spatial=(50,), grad_input=False, grad_pixel_weight=True, seed=9
        ),
    ],
    ids=str,
)
def test_sizes(host: ModuleType, case: RegionCase) -> None:
    verify(host, case)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_coefficients_that_are_no_numbers(host: ModuleType, layout: str, value: float) -> None:
    """The gradient of a masked pixel is 0 all the same."""
    case = RegionCase("f32", layout, 4, spatial=(300,), mask=True, seed=9)
    inputs = make_inputs(case)
    inputs.logits = np.nan_to_num(inputs.logits)
    inputs.coefficients[1, 0, 2] = value
    gradient = run(host, case, inputs)["grad_input"].swapaxes(0, 1)
    assert inputs.mask is not None
    assert not gradient[:, ~inputs.mask].any()
    assert np.isfinite(gradient[:, 0]).all()
    assert not np.isfinite(gradient[2, 1, inputs.mask[1]]).any()


@pytest.mark.parametrize("grad_pixel_weight", [False, True])
@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize(
    ("target_type", "value"),
    [("f32", 0.25), ("f64", np.nan), ("bf16", -1), ("f16", 2), ("i64", 2**32 + 1), ("u8", 255)],
)
def test_targets_that_are_neither_0_nor_1(
    host: ModuleType, dtype: str, target_type: str, value: float, grad_pixel_weight: bool
) -> None:
    """Every sum that they have a part in is NaN, and so is their gradient; the host is told."""
    case = RegionCase(
        dtype,
        "planar",
        4,
        spatial=(300,),
        target_type=target_type,
        grad_pixel_weight=grad_pixel_weight,
        seed=3,
    )
    inputs = make_inputs(case)
    inputs.target[1, 2, 17] = value
    verify(host, case, inputs)


def test_a_report_is_one_a_warp(host: ModuleType) -> None:
    case = RegionCase("f32", "planar", 3, spatial=(2000,))
    inputs = make_inputs(case)
    inputs.target[...] = 77
    assert threads_of_report(host, lambda: run(host, case, inputs)) >= 32


@pytest.mark.parametrize("shape", [(0, 3, (5,)), (2, 3, (0,))])
@pytest.mark.parametrize("by_image", [False, True])
def test_no_pixels(host: ModuleType, by_image: bool, shape: tuple[int, int, tuple[int]]) -> None:
    """Sums of nothing are 0."""
    images, classes, spatial = shape
    case = RegionCase("f32", "planar", classes, images=images, spatial=spatial, by_image=by_image)
    results = run(host, case, make_inputs(case))
    assert not results["sums"].any()
    assert results["surprise"] == 0
