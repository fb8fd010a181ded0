"""Statistics and counts of logits that the kernels interpolate on the fly, against float64 NumPy.

What they share with those of stored logits, and how both are checked, is in test_cuda_kernels.py.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import DTYPES, LAYOUTS, SEEDS, Array, run_under_seeds, thinned
from python_tests.native.test_cuda_kernels import (
    MAPS,
    TABLES,
    TARGET_TYPES,
    CountsCase,
    Interpolated,
    StatisticsCase,
    check_statistics,
    counts_inputs,
    interpolated,
    run_accumulator,
    run_counts,
    run_statistics,
    statistics_samples,
    verify_counts,
)

# (source, size): enlarged by whole numbers and others, along one axis alone, reduced, both, none;
# of fewer pixels than a warp has lanes, and of several warps.
SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 1), (5, 7)),
    ((4, 5), (16, 20)),
    ((6, 7), (6, 7)),
    ((7, 9), (7, 31)),
    ((13, 6), (5, 4)),
    ((13, 29), (7, 11)),
    ((2, 30), (9, 8)),
    ((6, 9), (21, 33)),
    ((2, 3, 4), (4, 6, 8)),
    ((5, 4, 3), (2, 9, 7)),
)
# Around what a thread, a warp's and all warps' threads hold.
CLASSES = (1, 4, 8, 16, 19, 21, 32, 33, 72, 150, 256, 257)


def drawn_shape(
    generator: np.random.Generator, most_pixels: int
) -> tuple[tuple[int, ...], Interpolated]:
    fitting = [(s, t) for s, t in SHAPES if math.prod(t) <= most_pixels]
    source, size = fitting[int(generator.integers(len(fitting)))]
    return source, Interpolated(size, bool(generator.random() < 0.5))


def random_statistics_case(dtype: str, layout: str, classes: int, seed: int) -> StatisticsCase:
    generator = np.random.default_rng([seed, classes, LAYOUTS.index(layout)])
    samples = int(generator.choice([1, 3, 10], p=[0.2, 0.5, 0.3]))
    spatial, to = drawn_shape(generator, max(40, 6000 // (classes * samples)))
    return StatisticsCase(
        dtype,
        layout,
        classes,
        samples,
        images=int(generator.integers(1, 3)),
        spatial=spatial,
        return_mean=bool(generator.random() < 0.5),
        spaced=bool(generator.random() < 0.5),
        to=to,
        seed=seed,
    )


def random_counts_case(dtype: str, layout: str, classes: int, seed: int) -> CountsCase:
    generator = np.random.default_rng([seed, classes, LAYOUTS.index(layout)])
    spatial, to = drawn_shape(generator, max(40, 6000 // classes))
    return CountsCase(
        dtype,
        layout,
        classes,
        images=int(generator.integers(1, 3)),
        spatial=spatial,
        target_type=TARGET_TYPES[int(generator.integers(2))],
        ignored=float(generator.choice([0.0, 0.2])),
        probabilities=bool(generator.random() < 0.4),
        bins=int(generator.choice([1, 15, 15, 1600])),  # so many do not fit into shared memory
        tables=tuple(name for name in TABLES if generator.random() < 0.75),
        outcome=bool(generator.random() < 0.6),
        to=to,
        seed=seed,
    )


# Every dtype with every number of classes, and each of these with half of the layouts.
GRID = [
    (dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for i, classes in enumerate(CLASSES)
    for j, layout in enumerate(LAYOUTS)
    if (i + j + seed) % 2 == 0
]
STATISTICS_CASES = [random_statistics_case(*point) for point in GRID]
ACCUMULATOR_CASES = STATISTICS_CASES[1::2]
COUNTS_CASES = [random_counts_case(*point) for point in GRID]


def check(case: StatisticsCase, samples: list[Array], results: dict[str, Array]) -> None:
    # Interpolation errs by an eps of the largest logit, the softmax by one of a probability.
    check_statistics([interpolated(s, case) for s in samples], case.dtype, results, 4.0)


def verify_statistics(host: ModuleType, case: StatisticsCase, samples: list[Array]) -> None:
    check(case, samples, run_under_seeds(host, lambda: run_statistics(host, case, samples)))


def verify_accumulator(host: ModuleType, case: StatisticsCase, samples: list[Array]) -> None:
    check(case, samples, run_under_seeds(host, lambda: run_accumulator(host, case, samples)))


@pytest.mark.parametrize("case", thinned(STATISTICS_CASES), ids=str)
def test_statistics(host: ModuleType, case: StatisticsCase) -> None:
    verify_statistics(host, case, statistics_samples(case))


@pytest.mark.parametrize("case", thinned(ACCUMULATOR_CASES), ids=str)
def test_accumulator(host: ModuleType, case: StatisticsCase) -> None:
    verify_accumulator(host, case, statistics_samples(case))


@pytest.mark.parametrize("case", thinned(COUNTS_CASES), ids=str)
def test_counts(host: ModuleType, case: CountsCase) -> None:
    results = verify_counts(host, case)
    assert results["bad_target"].tolist() == [0, 0]


# More tiles than blocks, of one warp a team and of several.
MANY_TILES = (
    (3, (9, 20), Interpolated((29, 43), False)),
    (40, (12, 9), Interpolated((23, 25), True)),
    (100, (5, 30), Interpolated((17, 19), False)),
)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize(("classes", "spatial", "to"), MANY_TILES)
def test_statistics_of_more_tiles_than_blocks(
    host: ModuleType, classes: int, spatial: tuple[int, ...], to: Interpolated, layout: str
) -> None:
    case = StatisticsCase("f32", layout, classes, 2, 1, spatial, to=to)
    samples = statistics_samples(case)
    verify_statistics(host, case, samples)
    verify_accumulator(host, case, samples)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize(("classes", "spatial", "to"), MANY_TILES)
def test_counts_of_more_tiles_than_blocks(
    host: ModuleType, classes: int, spatial: tuple[int, ...], to: Interpolated, layout: str
) -> None:
    verify_counts(host, CountsCase("f32", layout, classes, 1, spatial, to=to))


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", [5, 40])
def test_statistics_and_counts_of_volumes(host: ModuleType, classes: int, layout: str) -> None:
    to = Interpolated((5, 6, 7), False)
    case = StatisticsCase("bf16", layout, classes, 2, 2, (2, 3, 4), to=to)
    samples = statistics_samples(case)
    verify_statistics(host, case, samples)
    verify_accumulator(host, case, samples)
    verify_counts(host, CountsCase("bf16", layout, classes, 2, (2, 3, 4), to=to))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [((6, 7), (11, 13)), ((9, 11), (5, 7)), ((2, 3, 4), (3, 5, 7))])
@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("dtype", ["bf16", "f64"])
def test_nan_and_infinity_go_no_further_than_their_shares(
    host: ModuleType,
    dtype: str,
    classes: int,
    shape: tuple[tuple[int, ...], tuple[int, ...]],
    align_corners: bool,
) -> None:
    """NaN in a sample spoils the statistics of the pixels that blend it, a logit of -inf takes a
    class from them."""
    spatial, size = shape
    case = StatisticsCase(
        dtype, "planar", classes, 3, 1, spatial, to=Interpolated(size, align_corners)
    )
    samples = statistics_samples(case)
    samples[1][(0, classes - 1, *(length // 2 for length in spatial))] = np.nan
    samples[2][(0, 1, *(length - 1 for length in spatial))] = -np.inf
    spoilt = np.isnan(interpolated(samples[1], case)).any(1)
    assert spoilt.any()
    assert not spoilt.all()
    kept = np.flatnonzero(~spoilt)
    for run in (run_statistics, run_accumulator):
        results = run_under_seeds(host, lambda run=run: run(host, case, samples))
        for name in MAPS:
            assert np.array_equal(np.isnan(results[name]), spoilt), name
        flat = {name: results[name].reshape(1, -1)[:, kept] for name in ("prediction", *MAPS)}
        wanted = [interpolated(s, case).reshape(1, classes, -1)[..., kept] for s in samples]
        check_statistics(wanted, dtype, flat, 4.0)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 40, 150, 300])
def test_equal_logits_go_to_the_lowest_class(host: ModuleType, classes: int, layout: str) -> None:
    """Also where different warps have them."""
    to = Interpolated((9, 13), False)
    case = StatisticsCase("f32", layout, classes, 2, 1, (4, 5), to=to)
    samples = statistics_samples(case)
    for sample in samples:
        sample[:] = sample[:, :1]
    for run in (run_statistics, run_accumulator):
        results = run_under_seeds(host, lambda run=run: run(host, case, samples))
        assert not results["prediction"].any()
    counted = CountsCase(
        "f32", layout, classes, 1, (4, 5), ignored=0.0, tables=("confusion",), to=to
    )
    inputs = counts_inputs(counted)
    inputs.values = samples[0]
    inputs.target[:] = 2
    confusion = verify_counts(host, counted, inputs)["confusion"]
    assert confusion[2, 0] == confusion.sum() == 9 * 13


@pytest.mark.parametrize("classes", [19, 60])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_bad_targets_are_not_counted(host: ModuleType, dtype: str, classes: int) -> None:
    to = Interpolated((11, 13), False)
    case = CountsCase(dtype, "planar", classes, 2, (5, 6), ignore_index=255, to=to)
    inputs = counts_inputs(case)
    beyond = [classes, 1000, -1, 2**40]
    inputs.target[:, 3, 3:7] = beyond
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        results = run_counts(host, case, inputs)
        assert results["bad_target"][0] == 1
        assert results["bad_target"][1] in beyond
        ignored = np.isin(inputs.target, [255, *beyond])
        assert np.array_equal(results["outcome"] == 2, ignored)
        assert results["confusion"].sum() == results["scores"][0] == (~ignored).sum()


@pytest.mark.parametrize("classes", [3, 40])
def test_statistics_of_many_samples(host: ModuleType, classes: int) -> None:
    """More than addresses fit into a launch's arguments."""
    to = Interpolated((5, 8), True)
    case = StatisticsCase("f16", "planar", classes, 130, 1, (3, 3), to=to)
    verify_statistics(host, case, statistics_samples(case))


def test_nothing(host: ModuleType) -> None:
    to = Interpolated((9, 9), False)
    case = StatisticsCase("f32", "planar", 3, 2, 0, (4, 5), to=to)
    run_statistics(host, case, statistics_samples(case))
    run_accumulator(host, case, statistics_samples(case))
    counted = CountsCase("f32", "planar", 3, 0, (4, 5), to=to)
    results = run_counts(host, counted, counts_inputs(counted))
    assert not any(results[name].any() for name in TABLES)
