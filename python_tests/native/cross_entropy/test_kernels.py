"""csrc/cross_entropy/cuda/kernels.h, run on the host, against float64 NumPy: stored logits.

Each case runs under several schedules, which must agree bit for bit. Outputs start as garbage, and
nothing around them may change.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from python_tests.native.cross_entropy import references
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
    GAPS,
    LAYOUTS,
    SEEDS,
    SIZES,
    TARGET_TYPES,
    assert_close,
    decode,
    drawn_spatial,
    encode,
    epsilon,
    place_far_apart,
    rounding,
    run_under_seeds,
    thinned,
    threads_of_report,
)


def random_case(dtype: str, layout: str, classes: int, seed: int) -> Case:
    """The options that a grid of dtype, layout and classes leaves open, drawn."""
    generator = np.random.default_rng([seed, classes, DTYPES.index(dtype), LAYOUTS.index(layout)])

    def either(p: float = 0.5) -> bool:
        return bool(generator.random() < p)

    spatial = drawn_spatial(generator, 1031 * 21 // classes)
    target_type = TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))]
    ignore_index = int(
        generator.choice(
            [255, 0, classes - 1] if target_type is np.uint8 else [-100, 255, 0, classes - 1, -1]
        )
    )
    case = Case(
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
        varied=VARIATIONS[str(generator.choice([*VARIATIONS]))] if either(0.3) else PLAIN,
        seed=seed,
    )
    overwrites = case.grad_input and case.grad_layout is None and either(0.4)
    return replace(case, overwrites=overwrites)


CASES = [
    random_case(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(CASES), ids=str)
def test_cross_entropy(host: ModuleType, case: Case) -> None:
    verify(host, case)


# Numbers of classes with kernels of their own for variations, and of general ones; the last size is
# of no vectors.
@pytest.mark.parametrize("size", [64, 67])
@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(
    ("varied", "classes"),
    thinned([(varied, classes) for varied in VARIATIONS for classes in (2, 19, 23, 40, 150)]),
)
def test_variations(host: ModuleType, varied: str, classes: int, layout: str, size: int) -> None:
    case = Case(
        "f32",
        layout,
        classes,
        2,
        (size,),
        weight=True,
        pixel_weight=True,
        ignored=0.2,
        upstream="map",
        grad_pixel_weight=True,
        overwrites=size == 64,
        varied=VARIATIONS[varied],
        seed=classes,
    )
    verify(host, case)
    # The slope of an exponent below 1 has no bound where a smoothed loss has not gone.
    if size == 64 and varied != "focal_below_1":
        for smoothing in (0.1, 1.0):
            verify(host, replace(case, smoothing=smoothing))


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("varied", ["focal", "focal_below_1", "focal_0", "falling", "rising"])
def test_modulation_of_certain_pixels(host: ModuleType, varied: str, layout: str) -> None:
    """Where the labelled class has all of the mass, or none, loss and gradient are finite."""
    case = Case("f32", layout, 19, 1, (64,), varied=VARIATIONS[varied])
    inputs = make_inputs(case)
    inputs.logits[0, :, :] = -300.0
    inputs.logits[0, 3, :] = 300.0
    inputs.target[:] = np.where(np.arange(64) % 2, 3, 5)
    results = verify(host, case, inputs)
    assert np.isfinite(results["loss"]).all()
    assert np.isfinite(results["grad_input"]).all()
    assert np.abs(results["loss"][0, 1::2]).max() < 1e-6
    assert np.abs(results["grad_input"][0, :, 1::2]).max() < 1e-6


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_cross_entropy_of_ragged_sizes(
    host: ModuleType, dtype: str, size: int, layout: str
) -> None:
    """Everything asked for at once, at sizes around those of tiles."""
    case = Case(
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
    verify(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_cross_entropy_of_many_classes(host: ModuleType, dtype: str, layout: str) -> None:
    case = Case(dtype, layout, 700, 1, (37,), weight=True, ignored=0.1, smoothing=0.1)
    verify(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(("classes", "size"), [(2, 9000), (2, 9001), (40, 3000)])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_cross_entropy_of_more_tiles_than_blocks(
    host: ModuleType, dtype: str, classes: int, size: int, layout: str
) -> None:
    case = Case(dtype, layout, classes, 1, (size,), np.uint8, ignored=0.1)
    verify(host, case)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", [2, 40])
def test_cross_entropy_of_more_images_than_blocks(
    host: ModuleType, classes: int, layout: str
) -> None:
    """Blocks go on from one image to another that is not the next."""
    verify(host, Case("f32", layout, classes, 11, (133,), ignored=0.1))


@pytest.mark.parametrize("size", [256, 257])
@pytest.mark.parametrize("classes", thinned(list(range(1, 34))))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_number_of_classes(
    host: ModuleType, smoothing: float, classes: int, size: int
) -> None:
    """Around the registers that planar kernels have for them; whole vectors of pixels, and not."""
    case = Case(
        "bf16", "planar", classes, 1, (size,), weight=True, smoothing=smoothing, ignored=0.1
    )
    verify(host, case)


# Tiles that are full, end within a row of vectors, or have elements beyond the last one.
@pytest.mark.parametrize("size", [32, 40, 67, 256, 264, 300])
@pytest.mark.parametrize(
    ("classes", "layout"),
    [(150, "planar"), *((classes, "channels_last") for classes in (2, 11, 19, 21, 150))],
)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_numbers_of_classes_with_tiles_of_their_own(
    host: ModuleType, dtype: str, classes: int, layout: str, size: int
) -> None:
    verify(host, Case(dtype, layout, classes, 1, (size,), pixel_weight=True, ignored=0.1))


@pytest.mark.parametrize("layout", ["planar", "unaligned", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [19, 40])
def test_bad_targets_are_reported_once_a_warp(host: ModuleType, classes: int, layout: str) -> None:
    """However many pixels a thread has."""
    case = Case("f32", layout, classes, 1, (8192,))
    inputs = make_inputs(case)
    inputs.target[:] = 255
    assert threads_of_report(host, lambda: run(host, case, inputs)) == 32


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
def test_cross_entropy_of_volumes(host: ModuleType, layout: str) -> None:
    verify(host, Case("f32", layout, 4, 2, (3, 5, 7), ignored=0.2))


VECTORS = ("input", "grad_input", "target", "pixel_weight", "upstream", "loss", "grad_pixel_weight")


@pytest.mark.parametrize("unaligned", VECTORS)
@pytest.mark.parametrize(
    ("classes", "layout"), [(3, "planar"), (40, "planar"), (3, "channels_last")]
)
def test_arrays_of_which_one_is_no_vectors(
    host: ModuleType, classes: int, layout: str, unaligned: str
) -> None:
    """Kernels move vectors of pixels only where all arrays are aligned."""
    case = Case(
        "f32",
        layout,
        classes,
        2,
        (64,),
        np.uint8,
        pixel_weight=True,
        upstream="map",
        grad_pixel_weight=True,
        unaligned=unaligned,
    )
    verify(host, case)


@pytest.mark.parametrize(("layout", "size"), GAPS)
@pytest.mark.parametrize("classes", [4, 40])  # the first in registers, the others in a tile
def test_gaps_between_classes_and_images(
    host: ModuleType, classes: int, layout: str, size: int
) -> None:
    """In the logits, in the gradient or in both."""
    dense = "channels_last" if layout == "images_apart" else "planar"
    case = Case("f32", layout, classes, 3, (size,), ignored=0.1)
    verify(host, case)
    verify(host, replace(case, grad_input=False))
    verify(host, replace(case, grad_layout=dense))
    verify(host, replace(case, layout=dense, grad_layout=layout))


@pytest.mark.parametrize("size", [49, 98, 103])
def test_sizes_whose_inverse_is_rounded_down(host: ModuleType, size: int) -> None:
    """So that products with it are just below the quotient."""
    assert size * (1 / size) < 1
    verify(host, Case("f32", "forced", 3, 3, (size,)))


@pytest.mark.parametrize("far", ["input", "grad_input"])
def test_classes_beyond_32_bits_of_each_other(host: ModuleType, far: str) -> None:
    """Of two 16-bit classes, which is what fits an address space with room to spare."""
    case = Case("bf16", "planar", 2, 1, (64,))
    inputs = make_inputs(case)
    arrays = {"input": encode(inputs.logits, "bf16"), "grad_input": np.zeros((1, 2, 64), np.uint16)}
    arrays[far] = place_far_apart(arrays[far])
    results = {"loss": np.zeros((1, 64), np.float32), "bad_target": np.zeros(2, np.int64)}
    host.cross_entropy(
        **arrays,
        **results,
        target=inputs.target,
        ignore_index=case.ignore_index,
        label_smoothing=0.0,
        dtype="bf16",
    )
    check(case, inputs, {**results, "grad_input": np.array(arrays["grad_input"])})


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_cross_entropy_of_nothing(host: ModuleType, shape: tuple[int, ...]) -> None:
    images, classes, *spatial = shape
    case = Case("f32", "planar", classes, images, tuple(spatial))
    results = run_under_seeds(host, lambda: run(host, case, make_inputs(case)))
    assert results["partial"].sum() == 0


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 21, 150])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_bad_targets_are_flagged(
    host: ModuleType, target_type: type, classes: int, layout: str
) -> None:
    """Their loss is NaN, every other pixel's is right, nothing is read or written out of bounds,
    the flag included where there is none."""
    case = Case(
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
    inputs = make_inputs(case)
    least = max(-(2**31), int(np.iinfo(target_type).min))
    beyond = [classes, 254] if target_type is np.uint8 else [classes, 1000, -1, least]
    if target_type is np.int64:
        beyond += [2**40, -(2**40), 2**32]
    inputs.target[:, 3 : 3 + len(beyond)] = beyond
    for factors in (inputs.pixel_weight, inputs.upstream):
        assert factors is not None
        factors[:, 3 : 3 + len(beyond)] = 1
    inputs.logits[..., 3 : 3 + len(beyond)] = 0.5
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        check(case, inputs, run(host, case, inputs))
        run(host, replace(case, flag=False), inputs)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
def test_bad_targets_alone_are_flagged(host: ModuleType, layout: str) -> None:
    """Where a thread has no other."""
    case = Case("f32", layout, 3, 1, (64,))
    inputs = make_inputs(case)
    inputs.target[:] = 3
    verify(host, case, inputs)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(host: ModuleType, dtype: str, classes: int, layout: str) -> None:
    """Large logits do not overflow; infinite and NaN ones behave as torch's formula does."""
    case = Case(dtype, layout, classes, 1, (40,), partial=False)
    inputs = make_inputs(case)
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
    results = run_under_seeds(host, lambda: run(host, case, inputs))
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


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e7, 1e12, 1e30, 3e38])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_of_any_size(host: ModuleType, smoothing: float, size: float, layout: str) -> None:
    """Their rounding is not that of their differences."""
    case = Case("f32", layout, 19, 1, (256,), smoothing=smoothing)
    inputs = make_inputs(case)
    ulp = float(np.spacing(np.float32(size)))
    steps = np.round(inputs.logits / 4)
    inputs.logits = np.float32(size).astype(float) + np.minimum(steps * ulp, 0.0)
    inputs.logits[:, :, :64] *= -1
    verify(host, case, inputs)


def test_float16_gradients_keep_a_large_upstream(host: ModuleType) -> None:
    """A GradScaler's factor arrives before the gradient is rounded, so nothing underflows."""
    case = Case("f16", "planar", 19, 1, (129,), upstream="scalar", divided=True)
    inputs = make_inputs(case)
    inputs.upstream = np.array(65536.0, np.float32)
    inputs.normalizer = np.array([589824.0])
    results = verify(host, case, inputs)
    gradient = decode(results["grad_input"], "f16")
    assert (gradient != 0).mean() > 0.95


def test_one_gradient_alone(host: ModuleType) -> None:
    """Nothing but one output, for each output."""
    base = Case(
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
            verify(host, replace(base, layout=layout, **{output: True}))


# Around what teams of each size hold, up to the most.
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", thinned([63, 64, 65, 128, 129, 255, 256, 257, 511, 512, 513]))
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_largest_tiles_fit_shared_memory(
    host: ModuleType, dtype: str, classes: int, layout: str
) -> None:
    verify(host, Case(dtype, layout, classes, 1, (70,), ignored=0.1))
