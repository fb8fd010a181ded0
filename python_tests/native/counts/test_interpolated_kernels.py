"""Counts of logits that the kernels interpolate on the fly, against float64 NumPy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from python_tests.native.counts.cases import (
    TABLES,
    CountsCase,
    counts_inputs,
    run_counts,
    verify_counts,
)
from python_tests.native.harness import (
    LAYOUTS,
    SEEDS,
    TARGET_TYPES,
    shared_bytes,
    thinned,
    threads_of_report,
)
from python_tests.native.interpolation import (
    GRID,
    MANY_TILES,
    Interpolated,
    drawn_shape,
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
        target_type=TARGET_TYPES[int(generator.integers(3))],  # those that have -100
        ignored=float(generator.choice([0.0, 0.2])),
        probabilities=bool(generator.random() < 0.4),
        bins=int(generator.choice([1, 15, 15, 1600])),  # so many do not fit into shared memory
        tables=tuple(name for name in TABLES if generator.random() < 0.75),
        outcome=bool(generator.random() < 0.6),
        to=to,
        seed=seed,
    )


COUNTS_CASES = [random_counts_case(*point) for point in GRID]


@pytest.mark.parametrize("case", thinned(COUNTS_CASES), ids=str)
def test_counts(host: ModuleType, case: CountsCase) -> None:
    results = verify_counts(host, case)
    assert results["bad_target"].tolist() == [0, 0]


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize(("classes", "spatial", "to"), MANY_TILES)
def test_counts_of_more_tiles_than_blocks(
    host: ModuleType, classes: int, spatial: tuple[int, ...], to: Interpolated, layout: str
) -> None:
    verify_counts(host, CountsCase("f32", layout, classes, 1, spatial, to=to))


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


@pytest.mark.parametrize("classes", [19, 60])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_bad_targets_are_reported_once_a_warp(host: ModuleType, dtype: str, classes: int) -> None:
    case = CountsCase(dtype, "planar", classes, 1, (5, 6), to=Interpolated((64, 96), False))
    inputs = counts_inputs(case)
    inputs.target[:] = 255
    assert threads_of_report(host, lambda: run_counts(host, case, inputs)) == 32


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("classes", [5, 40])
def test_counts_of_volumes(host: ModuleType, classes: int, layout: str) -> None:
    to = Interpolated((5, 6, 7), False)
    verify_counts(host, CountsCase("bf16", layout, classes, 2, (2, 3, 4), to=to))


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 40, 150, 300])
def test_equal_logits_are_counted_for_the_lowest_class(
    host: ModuleType, classes: int, layout: str
) -> None:
    """Also where different warps have them."""
    to = Interpolated((9, 13), False)
    case = CountsCase("f32", layout, classes, 1, (4, 5), ignored=0.0, tables=("confusion",), to=to)
    inputs = counts_inputs(case)
    inputs.values = np.nan_to_num(inputs.values)
    inputs.values[:] = inputs.values[:, :1]
    inputs.target[:] = 2
    confusion = verify_counts(host, case, inputs)["confusion"]
    assert confusion[2, 0] == confusion.sum() == 9 * 13


def test_counts_of_nothing(host: ModuleType) -> None:
    case = CountsCase("f32", "planar", 3, 0, (4, 5), to=Interpolated((9, 9), False))
    results = run_counts(host, case, counts_inputs(case))
    assert not any(results[name].any() for name in TABLES)


@pytest.mark.parametrize(("classes", "bins"), [(3, 1526), (78, 14), (256, 1535)])
def test_the_largest_tables_fit_shared_memory(host: ModuleType, classes: int, bins: int) -> None:
    to = Interpolated((9, 13), False)
    case = CountsCase("f32", "planar", classes, 1, (4, 5), bins=bins, to=to)
    assert shared_bytes(host, lambda: verify_counts(host, case)) > 24 << 10
