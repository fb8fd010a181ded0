"""Predictive statistics of logits that kernels interpolate on the fly, against float64 NumPy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import (
    LAYOUTS,
    Array,
    run_under_seeds,
    thinned,
)
from python_tests.native.interpolation import (
    GRID,
    MANY_TILES,
    Interpolated,
    drawn_shape,
    interpolated,
)
from python_tests.native.statistics.cases import (
    MAPS,
    StatisticsCase,
    check_statistics,
    run_accumulator,
    run_statistics,
    statistics_samples,
)


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


STATISTICS_CASES = [random_statistics_case(*point) for point in GRID]
ACCUMULATOR_CASES = STATISTICS_CASES[1::2]


def check(case: StatisticsCase, samples: list[Array], results: dict[str, Array]) -> None:
    # Interpolation errs by an eps of the largest logit, the softmax by one of a probability.
    check_statistics(
        [interpolated(s, case.to, case.dtype) for s in samples], case.dtype, results, 4.0
    )


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
@pytest.mark.parametrize("classes", [5, 40])
def test_statistics_of_volumes(host: ModuleType, classes: int, layout: str) -> None:
    to = Interpolated((5, 6, 7), False)
    case = StatisticsCase("bf16", layout, classes, 2, 2, (2, 3, 4), to=to)
    samples = statistics_samples(case)
    verify_statistics(host, case, samples)
    verify_accumulator(host, case, samples)


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
    spoilt = np.isnan(interpolated(samples[1], case.to, case.dtype)).any(1)
    assert spoilt.any()
    assert not spoilt.all()
    kept = np.flatnonzero(~spoilt)
    for run in (run_statistics, run_accumulator):
        results = run_under_seeds(host, lambda run=run: run(host, case, samples))
        for name in MAPS:
            assert np.array_equal(np.isnan(results[name]), spoilt), name
        flat = {name: results[name].reshape(1, -1)[:, kept] for name in ("prediction", *MAPS)}
        wanted = [
            interpolated(s, case.to, case.dtype).reshape(1, classes, -1)[..., kept] for s in samples
        ]
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


@pytest.mark.parametrize("classes", [3, 40])
def test_statistics_of_many_samples(host: ModuleType, classes: int) -> None:
    """More than addresses fit into a launch's arguments."""
    to = Interpolated((5, 8), True)
    case = StatisticsCase("f16", "planar", classes, 130, 1, (3, 3), to=to)
    verify_statistics(host, case, statistics_samples(case))


def test_statistics_of_nothing(host: ModuleType) -> None:
    to = Interpolated((9, 9), False)
    case = StatisticsCase("f32", "planar", 3, 2, 0, (4, 5), to=to)
    run_statistics(host, case, statistics_samples(case))
    run_accumulator(host, case, statistics_samples(case))
