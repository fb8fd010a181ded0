"""csrc/label_uncertainty/cuda/kernels.h, run on the host, against float64 NumPy.

Each case runs under several schedules, which must agree bit for bit. Outputs start as garbage, and
nothing around them may change.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import (
    DTYPES,
    SEEDS,
    SIZES,
    TARGET_TYPES,
    decode,
    drawn_spatial,
    run_under_seeds,
    thinned,
    threads_of_report,
)
from python_tests.native.label_uncertainty.cases import (
    Case,
    Inputs,
    check,
    make_inputs,
    run,
    verify,
)
from python_tests.native.label_uncertainty.references import Options

# channels_last of one channel is planar.
LAYOUTS = ("planar", "crop", "unaligned", "forced", "odd_images")
OPTIONS = (
    Options(),
    Options(bootstrap_weight=0.0),
    Options(uncertainty_weight=0.0),
    Options(0.0, 0.3, 2.0, False),
    Options(2.5, 0.0, 1.5, False),
)


def random_case(dtype: str, layout: str, options: Options, seed: int) -> Case:
    """What a grid of dtype, layout and options leaves open, drawn."""
    generator = np.random.default_rng(
        [seed, DTYPES.index(dtype), LAYOUTS.index(layout), OPTIONS.index(options)]
    )

    def either(p: float = 0.5) -> bool:
        return bool(generator.random() < p)

    spatial = drawn_spatial(generator, 1031)
    target_type = TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))]
    ignore_index = [255, 0, 1] if target_type is np.uint8 else [-100, 255, 0, 1, -1]
    return Case(
        dtype,
        layout,
        images=int(generator.integers(1, 4)) if math.prod(spatial) < 1000 else 1,
        spatial=spatial,
        target_type=target_type,
        pixel_weight=either(),
        bootstrap=either(),
        ignore_index=int(generator.choice(ignore_index)),
        ignored=float(generator.choice([0.0, 0.2, 1.0], p=[0.3, 0.6, 0.1])),
        upstream=str(generator.choice(["none", "scalar", "map"])),
        divided=either(),
        loss=either(),
        partial=either(),
        grad_mean=either(0.8),
        grad_log_variance=either(0.8),
        grad_pixel_weight=either(),
        options=options,
        seed=seed,
    )


CASES = [
    random_case(dtype, layout, options, seed)
    for dtype in DTYPES
    for layout in LAYOUTS
    for options in OPTIONS
    for seed in range(2)
]


@pytest.mark.parametrize("case", thinned(CASES), ids=str)
def test_label_uncertainty(host: ModuleType, case: Case) -> None:
    verify(host, case)


def everything(dtype: str, layout: str, size: int, **other: object) -> Case:
    """All that can be asked for, at once."""
    case = Case(
        dtype,
        layout,
        2,
        (size,),
        np.uint8,
        pixel_weight=True,
        bootstrap=True,
        ignore_index=255,
        ignored=0.2,
        upstream="map",
        divided=True,
        grad_pixel_weight=True,
        options=Options(detach_weight=False),
        seed=size,
    )
    return replace(case, **other)  # type: ignore[arg-type]


# The last sizes are of whole tiles, and around them.
@pytest.mark.parametrize("layout", ["planar", "crop"])
@pytest.mark.parametrize("size", [*SIZES, 1020, 1024, 1028, 2048])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_ragged_sizes(host: ModuleType, dtype: str, size: int, layout: str) -> None:
    verify(host, everything(dtype, layout, size))


@pytest.mark.parametrize("layout", ["planar", "forced"])
@pytest.mark.parametrize(("images", "size"), [(1, 40_000), (1, 40_001), (13, 1100), (45, 3)])
def test_more_tiles_and_images_than_blocks(
    host: ModuleType, images: int, size: int, layout: str
) -> None:
    """Blocks go on to other tiles, of images that are not the next."""
    verify(host, everything("f32", layout, size, images=images))


@pytest.mark.parametrize("layout", ["planar", "crop"])
def test_volumes(host: ModuleType, layout: str) -> None:
    verify(host, replace(everything("f32", layout, 1), spatial=(3, 5, 7)))


VECTORS = (
    *("mean", "log_variance", "grad_mean", "grad_log_variance"),
    *("target", "pixel_weight", "upstream", "loss", "grad_pixel_weight"),
)


@pytest.mark.parametrize("apart", VECTORS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_arrays_of_which_one_is_no_vectors(host: ModuleType, dtype: str, apart: str) -> None:
    """Vectors of pixels move only where all arrays are aligned; sums are of the same pixels."""
    case = everything(dtype, "planar", 2048, images=1)
    inputs = make_inputs(case)
    aligned = verify(host, case, inputs)
    other = verify(host, replace(case, apart=apart), inputs)
    assert other["partial"].shape == aligned["partial"].shape
    np.testing.assert_allclose(other["partial"], aligned["partial"], rtol=1e-12)


@pytest.mark.parametrize("layout", ["crop", "odd_images"])
@pytest.mark.parametrize("apart", VECTORS[:4])
def test_arrays_of_which_one_lies_otherwise(host: ModuleType, apart: str, layout: str) -> None:
    case = everything("f32", "planar", 64)
    # Of the last, images are whole vectors apart.
    for spatial in ((64,), (8, 8), (4, 4, 4), (13, 16)):
        verify(host, replace(case, spatial=spatial, apart=apart, apart_layout=layout))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing(host: ModuleType, shape: tuple[int, int]) -> None:
    case = Case("f32", "planar", shape[0], (shape[1],))
    results = run_under_seeds(host, lambda: run(host, case, make_inputs(case)))
    assert results["partial"].sum() == 0


@pytest.mark.parametrize("layout", ["planar", "crop"])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_bad_targets_are_flagged(host: ModuleType, target_type: type, layout: str) -> None:
    """Their loss is NaN, every other pixel's is right, and there may be no flag."""
    case = everything("f32", layout, 68, target_type=target_type)
    inputs = make_inputs(case)
    least = max(-(2**31), int(np.iinfo(target_type).min))
    beyond = [2, 254] if target_type is np.uint8 else [2, 1000, -1, least]
    if target_type is np.int64:
        beyond += [2**40, -(2**40), 2**32, 2**32 + 1]
    place = slice(3, 3 + len(beyond))
    inputs.target[:, place] = beyond
    for factors in (inputs.pixel_weight, inputs.upstream):
        assert factors is not None
        factors[:, place] = 1
    inputs.mean[..., place] = inputs.log_variance[..., place] = 0.5
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        check(case, inputs, run(host, case, inputs))
        unflagged = replace(case, flag=False)
        check(unflagged, inputs, run(host, unflagged, inputs))


@pytest.mark.parametrize("layout", ["planar", "crop"])
def test_bad_targets_are_reported_once_a_warp(host: ModuleType, layout: str) -> None:
    case = Case("f32", layout, 1, (8192,))
    inputs = make_inputs(case)
    inputs.target[:] = 255
    assert threads_of_report(host, lambda: run(host, case, inputs)) == 32


def all_pairs(case: Case, numbers: list[float]) -> Inputs:
    """All pairs of numbers for mean and log-variance, as both."""
    pairs = np.array(np.meshgrid(numbers, numbers)).reshape(2, -1)
    inputs = make_inputs(replace(case, spatial=(pairs.shape[1],)))
    inputs.mean[:], inputs.log_variance[:] = pairs[0], pairs[1]
    return inputs


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_numbers(host: ModuleType, dtype: str, options: Options) -> None:
    """Nothing overflows; with each other's signs and sizes there are 144 pixels, whole vectors."""
    numbers = [0.0, 1.0, 20.0, 60.0, 80.0, 1000.0]
    numbers += [-n for n in numbers]
    case = Case(dtype, "planar", 2, (144,), bootstrap=True, partial=False, options=options)
    inputs = all_pairs(case, numbers)
    inputs.bootstrap = np.array([True, False])
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    check(case, inputs, results)
    assert np.isfinite(results["loss"]).all()
    for name in ("grad_mean", "grad_log_variance"):
        assert np.isfinite(decode(results[name], dtype)).all()


@pytest.mark.parametrize("apart", ["mean", "log_variance"])
@pytest.mark.parametrize("options", OPTIONS)
def test_nan_is_not_hidden(host: ModuleType, options: Options, apart: str) -> None:
    case = Case("f32", "planar", 1, (64,), partial=False, options=options)
    inputs = make_inputs(case)
    getattr(inputs, apart)[0, 0, 9] = np.nan
    loss = run(host, case, inputs)["loss"][0]
    assert np.flatnonzero(np.isnan(loss)).tolist() == [9]


def test_float16_gradients_keep_a_large_upstream(host: ModuleType) -> None:
    """A GradScaler's factor arrives before the gradient is rounded, so nothing underflows."""
    case = Case("f16", "planar", 1, (128,), upstream="scalar", divided=True)
    inputs = make_inputs(case)
    inputs.upstream = np.array(65536.0, np.float32)
    inputs.normalizer = np.array([589824.0])
    results = verify(host, case, inputs)
    for name in ("grad_mean", "grad_log_variance"):
        assert (decode(results[name], "f16") != 0).mean() > 0.95


OUTPUTS = ("loss", "partial", "grad_mean", "grad_log_variance", "grad_pixel_weight")


def test_one_output_alone(host: ModuleType) -> None:
    """Nothing but one, for each."""
    base = Case("f32", "planar", 2, (132,), pixel_weight=True)
    base = replace(base, **dict.fromkeys(OUTPUTS, False))
    for output in OUTPUTS:
        for layout in LAYOUTS:
            verify(host, replace(base, layout=layout, **{output: True}))  # type: ignore[arg-type]
