"""csrc/statistics/cuda/kernels.h, run on the host, against float64 NumPy: stored logits.

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
    CLASS_COUNTS,
    DTYPES,
    GAPS,
    LAYOUTS,
    SIZES,
    Array,
    drawn_spatial,
    encode,
    place,
    place_elements,
    place_far_apart,
    run_under_seeds,
    shared_bytes,
    thinned,
)
from python_tests.native.statistics.cases import (
    MAPS,
    StatisticsCase,
    check_statistics,
    place_maps,
    run_accumulator,
    run_statistics,
    statistics_samples,
)


def random_statistics_case(dtype: str, layout: str, classes: int, seed: int) -> StatisticsCase:
    generator = np.random.default_rng([seed, classes, DTYPES.index(dtype), LAYOUTS.index(layout)])
    spatial = drawn_spatial(generator, 1031 * 5 // classes)
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


@pytest.mark.parametrize("size", [64, 65])
@pytest.mark.parametrize("classes", range(1, 34))
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_any_number_of_classes_of_a_thread(
    host: ModuleType, dtype: str, classes: int, size: int
) -> None:
    """Kernels have registers for certain numbers of classes, some of which others leave unused."""
    case = StatisticsCase(dtype, "planar", classes, 3, 1, (size,))
    samples = statistics_samples(case)
    for run in (run_statistics, run_accumulator):
        results = run_under_seeds(host, lambda run=run: run(host, case, samples))
        check_statistics(samples, dtype, results)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(("classes", "size"), [(2, 6000), (2, 6001), (19, 3001), (40, 2001)])
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


# Around what teams of each size hold, up to the most.
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", thinned([64, 65, 129, 256, 257, 511, 512, 513]))
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_largest_tiles_fit_shared_memory(
    host: ModuleType, dtype: str, classes: int, layout: str
) -> None:
    case = StatisticsCase(dtype, layout, classes, 2, 1, (70,))
    samples = statistics_samples(case)
    # Entropies of so many classes are larger, and so are their errors.
    check_statistics(samples, dtype, run_statistics(host, case, samples), 2.0)


# Two numbers of each sample stay in shared memory, for as many threads as there is room.
@pytest.mark.parametrize(
    ("dtype", "samples"), [("f32", 47), ("f32", 48), ("f32", 49), ("f64", 24), ("f32", 6144)]
)
def test_the_most_samples_that_fit_shared_memory(
    host: ModuleType, dtype: str, samples: int
) -> None:
    pixels = 3 if samples > 1000 else 150
    case = StatisticsCase(dtype, "forced", 2, samples, 1, (pixels,))
    values = statistics_samples(case)
    results: dict[str, Array] = {}
    shared = shared_bytes(host, lambda: results.update(run_statistics(host, case, values)))
    assert shared > host.max_shared_bytes * 3 // 4
    check_statistics(values, dtype, results, 4.0)


def test_more_samples_than_fit_are_refused(host: ModuleType) -> None:
    case = StatisticsCase("f32", "forced", 2, 6145, 1, (3,))
    with pytest.raises(ValueError, match="at most 6144 samples of this layout, got 6145"):
        run_statistics(host, case, statistics_samples(case))


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
    """NaN in any sample makes the pixel's maps NaN; a class of logit -inf has no mass, and logits
    may have any size."""
    case = StatisticsCase("f32", layout, classes, 3, 1, (40,))
    samples = statistics_samples(case)
    samples[1][0, 2, 3] = np.nan
    samples[0][0, :, 4] = np.nan
    samples[2][0, 1, 5] = np.inf
    for sample in samples:
        sample[0, 0, 6] = -np.inf
        sample[0, :, 7] = 1e4
        sample[0, :, 8] = 1e30
        sample[0, :, 9] = -1e30
        sample[0, 1, 9] = -2e30
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


@pytest.mark.parametrize("unaligned", ["first", "last", "mean"])
def test_arrays_of_which_one_is_no_vectors(host: ModuleType, unaligned: str) -> None:
    """Kernels move vectors of pixels only where all arrays are aligned."""
    case = StatisticsCase("f32", "planar", 3, 3, 2, (64,), spaced=False)
    samples = statistics_samples(case)
    layouts = {
        "first": ("unaligned", "planar", "planar"),
        "last": ("planar", "planar", "unaligned"),
    }
    placed = [
        place_elements(sample, "f32", layout).view
        for sample, layout in zip(samples, layouts.get(unaligned, ("planar",) * 3), strict=True)
    ]

    def run() -> dict[str, Array]:
        outputs = place_maps(case.pixels, "f32")
        layout = "unaligned" if unaligned == "mean" else "planar"
        outputs["mean"] = place((2, 3, 64), np.float32, layout)
        views = {name: output.view for name, output in outputs.items()}
        host.predictive_statistics(samples=placed, dtype="f32", **views)
        for name, output in outputs.items():
            output.check_surroundings(name)
        return {name: output.view.copy() for name, output in outputs.items()}

    check_statistics(samples, "f32", run_under_seeds(host, run))


@pytest.mark.parametrize(("layout", "size"), GAPS)
@pytest.mark.parametrize("classes", [4, 40])  # the first in registers, the others in a tile
def test_gaps_between_classes_and_images(
    host: ModuleType, classes: int, layout: str, size: int
) -> None:
    case = StatisticsCase("f32", layout, classes, 2, 3, (size,))
    samples = statistics_samples(case)
    for run in (run_statistics, run_accumulator):
        results = run_under_seeds(host, lambda run=run: run(host, case, samples))
        check_statistics(samples, "f32", results)


def test_classes_beyond_32_bits_of_each_other(host: ModuleType) -> None:
    """Of two 16-bit classes, which is what fits an address space with room to spare."""
    samples = statistics_samples(StatisticsCase("bf16", "planar", 2, 1, 1, (64,)))
    far = place_far_apart(encode(samples[0], "bf16"))
    pixels = (1, 64)

    def maps() -> dict[str, Array]:
        return {
            "prediction": np.zeros(pixels, np.int64),
            **{name: np.zeros(pixels, np.float32) for name in MAPS},
        }

    at_once = maps()
    host.predictive_statistics(samples=[far], dtype="bf16", **at_once)
    check_statistics(samples, "bf16", at_once)
    state = {name: np.zeros((1, 2, 64), np.float32) for name in ("mean", "squared_deviations")}
    state["entropy_sum"] = np.zeros(pixels, np.float32)
    streamed = maps()
    host.accumulate(sample=far, dtype="bf16", count=1, **state)
    host.finalize(**state, count=1, dtype="f32", **streamed)
    check_statistics(samples, "bf16", streamed)


def test_statistics_of_nothing(host: ModuleType) -> None:
    for images, classes, spatial in ((0, 3, (5,)), (2, 0, (5,)), (2, 3, (0,))):
        case = StatisticsCase("f32", "planar", classes, 2, images, spatial)
        samples = statistics_samples(case)
        run_statistics(host, case, samples)
        run_accumulator(host, case, samples)
