"""csrc/counts/cuda/kernels.h, run on the host, against float64 NumPy: stored logits and maps.

Each case runs under several schedules, which must agree bit for bit. Outputs start as garbage, and
nothing around them may change.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from python_tests.native.counts import references
from python_tests.native.counts.cases import (
    TABLES,
    CountsCase,
    check_counts,
    counts_inputs,
    place_tables,
    run_counts,
    verify_counts,
)
from python_tests.native.harness import (
    CLASS_COUNTS,
    DTYPES,
    LAYOUTS,
    SEEDS,
    TARGET_TYPES,
    Array,
    accumulate_type,
    decode,
    drawn_spatial,
    encode,
    place,
    run_under_seeds,
    shared_bytes,
    thinned,
    threads_of_report,
)


def random_counts_case(dtype: str, layout: str, classes: int, seed: int) -> CountsCase:
    generator = np.random.default_rng([seed, classes, DTYPES.index(dtype), LAYOUTS.index(layout)])
    spatial = drawn_spatial(generator, 1031 * 5 // classes)
    target_type = TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))]
    return CountsCase(
        dtype,
        layout,
        classes,
        images=int(generator.integers(1, 4)) if math.prod(spatial) < 1000 else 1,
        spatial=spatial,
        target_type=target_type,
        ignore_index=int(generator.choice([255, 0] if target_type is np.uint8 else [-100, 255, 0])),
        ignored=float(generator.choice([0.0, 0.2, 1.0], p=[0.3, 0.65, 0.05])),
        probabilities=bool(generator.random() < 0.4),
        bins=int(generator.choice([1, 15, 15, 1600])),  # so many do not fit into shared memory
        tables=tuple(name for name in TABLES if generator.random() < 0.75),
        outcome=bool(generator.random() < 0.6),
        seed=seed,
    )


COUNTS_CASES = [
    random_counts_case(dtype, layout, classes, seed)
    for seed, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for classes in CLASS_COUNTS
]


@pytest.mark.parametrize("case", thinned(COUNTS_CASES), ids=str)
def test_counts(host: ModuleType, case: CountsCase) -> None:
    results = verify_counts(host, case)
    assert results["bad_target"].tolist() == [0, 0]


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(("classes", "size"), [(1, 9001), (19, 1501), (33, 1501), (80, 1001)])
def test_counts_of_more_tiles_than_blocks(
    host: ModuleType, classes: int, size: int, layout: str
) -> None:
    """All tables, with sums of more than 32 bits in a block."""
    verify_counts(host, CountsCase("f32", layout, classes, 1, (size,), np.uint8, 255))


@pytest.mark.parametrize("size", [256, 257])
@pytest.mark.parametrize("classes", thinned(list(range(1, 34))))
@pytest.mark.parametrize("probabilities", [False, True])
def test_every_number_of_classes(
    host: ModuleType, probabilities: bool, classes: int, size: int
) -> None:
    """Around the registers that planar kernels have for them; whole vectors of pixels, and not."""
    verify_counts(
        host, CountsCase("bf16", "planar", classes, 2, (size,), probabilities=probabilities)
    )


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e7, 1e12, 1e30, 3e38])
def test_scores_of_logits_of_any_size(host: ModuleType, size: float, layout: str) -> None:
    """Their rounding is not that of their differences."""
    tables = ("confusion", "scores")
    case = CountsCase("f32", layout, 19, 1, (256,), ignored=0.0, tables=tables, outcome=False)
    inputs = counts_inputs(case)
    generator = np.random.default_rng(0)
    inputs.target[:] = generator.integers(0, 19, inputs.target.shape)
    steps = -generator.integers(0, 3, inputs.values.shape)
    inputs.values = np.float32(size).astype(float) + steps * float(np.spacing(np.float32(size)))
    inputs.values[:, :, :64] *= -1
    verify_counts(host, case, inputs)


# Tables of 24 KB, the most that a block has of its own, beside tiles of all sizes.
@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize(
    ("classes", "bins"), [(2, 1531), (32, 1279), (78, 14), (256, 1535), (512, 1535)]
)
def test_the_largest_tables_fit_shared_memory(
    host: ModuleType, classes: int, bins: int, layout: str
) -> None:
    case = CountsCase("f32", layout, classes, 1, (70,), bins=bins)
    shared = shared_bytes(host, lambda: verify_counts(host, case))
    assert shared >= 24 << 10


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_counts_of_nan_and_infinity(
    host: ModuleType, dtype: str, classes: int, layout: str, probabilities: bool
) -> None:
    """What is not finite is counted apart, in every table."""
    case = CountsCase(dtype, layout, classes, 1, (70,), ignored=0.1, probabilities=probabilities)
    inputs = counts_inputs(case)
    inputs.target[0, :15] = 1
    inputs.values[0, :, :15] = 1 / classes if probabilities else 0.0
    inputs.values[0, 0, :15] += 0.25
    inputs.values[0, 2, 0] = np.nan
    inputs.values[0, 1, 1] = np.nan
    inputs.values[0, :, 2] = np.nan
    inputs.values[0, 1, 3] = 0.0 if probabilities else -np.inf  # impossible
    if not probabilities:
        inputs.values[0, :, 4] = -np.inf
        inputs.values[0, 3, 5] = np.inf
        inputs.values[0, 1, 6] = -2000.0
        inputs.values[0, 1, 7] = -900.0
        inputs.values[0, :, 14] = -np.inf  # of which the first that is a number is largest
        inputs.values[0, 0, 14] = np.nan
    inputs.values = decode(encode(inputs.values, dtype), dtype)
    inputs.uncertainty[0, :15] = 0.5
    inputs.uncertainty[0, 8:14] = [np.nan, np.inf, -np.inf, -0.25, 256.0, -0.0]
    results = verify_counts(host, case, inputs)
    assert results["uncertainty_sums"][1].sum() == results["histogram"][:, -1].sum() == 5
    assert results["calibration"][-1, 0] == results["scores"][4] == (3 if probabilities else 6)
    assert results["scores"][3] == (1 if probabilities else 2)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 21, 150])
def test_equal_values_are_counted_for_the_lowest_class(
    host: ModuleType, classes: int, layout: str
) -> None:
    case = CountsCase("f32", layout, classes, 1, (37,), ignored=0.0, tables=("confusion",))
    inputs = counts_inputs(case)
    inputs.values[:] = 0.25
    inputs.values[:, 1:3, 5:9] = 20.0
    inputs.target[:] = 2
    results = verify_counts(host, case, inputs)
    assert results["confusion"][2, :2].tolist() == [33, 4]


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_bad_targets_are_not_counted(host: ModuleType, target_type: type, layout: str) -> None:
    case = CountsCase("f32", layout, 19, 2, (67,), target_type, 255)
    inputs = counts_inputs(case)
    least = max(-(2**31), int(np.iinfo(target_type).min))
    beyond = [19, 254] if target_type is np.uint8 else [19, 1000, -1, least]
    inputs.target[:, 3 : 3 + len(beyond)] = beyond
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        results = run_counts(host, case, inputs)
        assert results["bad_target"][0] == 1
        assert results["bad_target"][1] in beyond
        ignored = np.isin(inputs.target, [255, *beyond])
        assert np.array_equal(results["outcome"] == 2, ignored)
        assert results["confusion"].sum() == results["scores"][0] == (~ignored).sum()


@pytest.mark.parametrize("layout", ["planar", "unaligned", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [19, 40])
def test_bad_targets_are_reported_once_a_warp(host: ModuleType, classes: int, layout: str) -> None:
    """However many pixels a thread has."""
    case = CountsCase("f32", layout, classes, 1, (6144,), np.uint8, 254)
    inputs = counts_inputs(case)
    inputs.target[:] = 255
    assert threads_of_report(host, lambda: run_counts(host, case, inputs)) == 32


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_counts_of_nothing(host: ModuleType, shape: tuple[int, ...]) -> None:
    images, classes, *spatial = shape
    case = CountsCase("f32", "planar", classes, images, tuple(spatial))
    results = run_counts(host, case, counts_inputs(case))
    assert not any(results[name].any() for name in TABLES)


@pytest.mark.parametrize("which", ["target", "prediction"])
def test_what_is_no_class_in_maps_is_told_and_not_counted(host: ModuleType, which: str) -> None:
    classes, size = 19, 300
    maps = {name: np.arange(size) % classes for name in ("target", "prediction")}
    maps[which][[7, 290]] = [-5, 23]
    placed, before = place_tables(("confusion",), classes, 15, size)
    outcome, bad_target = np.zeros(size, np.uint8), np.zeros(2, np.int64)
    host.map_counts(
        **maps,
        confidence=None,
        uncertainty=None,
        outcome=outcome,
        classes=classes,
        bins=15,
        ignore_index=255,
        dtype="f32",
        bad_target=bad_target,
        confusion=placed["confusion"].view,
    )
    assert bad_target[0] == 1
    assert bad_target[1] in (-5, 23)
    assert np.flatnonzero(outcome == 2).tolist() == [7, 290]
    counted = placed["confusion"].view - before["confusion"]
    assert counted.sum() == np.trace(counted) == size - 2


@pytest.mark.parametrize("tables", [TABLES, ("histogram",), ("calibration", "confusion")])
@pytest.mark.parametrize("classes", [19, 100])
@pytest.mark.parametrize("size", [1, 255, 257, 2500])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_map_counts(
    host: ModuleType, dtype: str, size: int, classes: int, tables: tuple[str, ...]
) -> None:
    generator = np.random.default_rng(size)
    bins, ignore_index = 15, 255
    names = tuple(name for name in tables if name != "scores")
    target_type, prediction_type = TARGET_TYPES[size % 4], TARGET_TYPES[classes % 4]
    accumulate = accumulate_type(dtype)
    prediction = generator.integers(0, classes, size)
    target = np.where(
        generator.random(size) < 0.5, prediction, generator.integers(0, classes, size)
    )
    target = np.where(generator.random(size) < 0.2, ignore_index, target).astype(target_type)
    # Multiples of 2^-24 fall onto the edges of bins, and have exact sums.
    confidence = (np.rint(generator.random(size) * 2**24) / 2**24).astype(accumulate)
    confidence[:3] = [1.0, 0.0, np.nan][:size]
    uncertainty = np.exp(generator.uniform(-18, 5, size)).astype(accumulate)

    def run() -> dict[str, Array]:
        placed, before = place_tables(names, classes, bins, size)
        outcome = place((size,), np.uint8)
        host.map_counts(
            prediction=prediction.astype(prediction_type),
            confidence=confidence,
            target=target,
            uncertainty=uncertainty,
            outcome=outcome.view,
            classes=classes,
            bins=bins,
            ignore_index=ignore_index,
            dtype=dtype,
            bad_target=np.zeros(2, np.int64),
            **{name: table.view for name, table in placed.items()},
        )
        for name, table in {**placed, "outcome": outcome}.items():
            table.check_surroundings(name)
        results = {name: table.view - before[name] for name, table in placed.items()}
        return {**results, "outcome": outcome.view.copy()}

    expected = references.counts(
        prediction, confidence, target, uncertainty, classes, bins, ignore_index
    )
    results = run_under_seeds(host, run)
    check_counts(expected, results, 0.0)
    if "calibration" in results:
        assert expected.calibration is not None
        assert np.array_equal(results["calibration"], expected.calibration), "exact confidences"


def test_bad_predictions_are_not_counted(host: ModuleType) -> None:
    prediction, target = np.arange(200) % 3, np.arange(200) % 3
    prediction[5:60:9] = [3, 4, -1, 2**40, 3, -(2**40), 1000]
    prediction[100], target[100] = 77, 255
    bad = (prediction < 0) | (prediction > 2)
    expected = np.diag(np.bincount(target[~bad], minlength=3))
    for seed in SEEDS:  # whose value the flag holds depends on the schedule
        host.set_seed(seed)
        flag, confusion = np.zeros(2, np.int64), np.zeros((3, 3), np.int64)
        host.map_counts(
            prediction=prediction,
            target=target,
            confusion=confusion,
            classes=3,
            bins=1,
            ignore_index=255,
            dtype="f32",
            bad_target=flag,
        )
        assert np.array_equal(confusion, expected)
        assert flag[0] == 1
        assert flag[1] in prediction[bad & (target != 255)]


@pytest.mark.parametrize("window", [1, 3, 4])
@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 9), (3, 13, 22), (1, 70, 121)])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_patch_counts(host: ModuleType, dtype: str, shape: tuple[int, ...], window: int) -> None:
    generator = np.random.default_rng(shape[1])
    outcome = generator.integers(0, 2, shape).astype(np.uint8)
    outcome[generator.random(shape) < 0.3] = 2
    outcome[:, :window, :window] = 2  # no valid pixel
    uncertainty = generator.random(shape).astype(accumulate_type(dtype))
    uncertainty[-1, -window:, -window:] = [np.nan]
    uncertainty[outcome == 2] = np.nan
    thresholds = np.array([0.5, 0.0, 0.3, 2.0])

    def run() -> dict[str, Array]:
        before = generator.integers(0, 2**40, (4, 5))
        counts = place((4, 5), np.int64, values=before)
        host.patch_counts(
            outcome=place(shape, np.uint8, values=outcome).view,
            uncertainty=place(shape, uncertainty.dtype, values=uncertainty).view,
            thresholds=thresholds,
            counts=counts.view,
            window=window,
            accuracy_threshold=0.5,
            dtype=dtype,
        )
        counts.check_surroundings("counts")
        return {"counts": counts.view - before}

    expected = references.patch_counts(outcome, uncertainty, thresholds, window, 0.5)
    assert np.array_equal(run_under_seeds(host, run)["counts"], expected)


def test_the_most_thresholds_that_fit_shared_memory(host: ModuleType) -> None:
    outcome = np.random.default_rng(0).integers(0, 3, (1, 9, 13)).astype(np.uint8)
    uncertainty = np.random.default_rng(1).random(outcome.shape).astype(np.float32)
    most = host.max_shared_bytes // 20

    def count(number: int) -> Array:
        counts = np.zeros((number, 5), np.int64)
        host.patch_counts(
            outcome=outcome,
            uncertainty=uncertainty,
            thresholds=np.linspace(0, 1, number),
            counts=counts,
            window=2,
            accuracy_threshold=0.5,
            dtype="f32",
        )
        return counts

    assert shared_bytes(host, lambda: count(most)) > host.max_shared_bytes - 20
    expected = references.patch_counts(outcome, uncertainty, np.linspace(0, 1, most), 2, 0.5)
    assert np.array_equal(count(most), expected)
    with pytest.raises(ValueError, match=f"thresholds: expected at most {most}, got {most + 1}"):
        count(most + 1)


# Tiles that are full and not, more of them than blocks, counts that fit shared memory and not.
@pytest.mark.parametrize(
    ("images", "pixels", "classes"),
    [(3, 100, 5), (2, 4096, 19), (1, 4097, 2), (11, 4200, 3), (2, 500, 7000), (0, 9, 3), (2, 0, 3)],
)
@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_class_sizes(
    host: ModuleType, target_type: type, images: int, pixels: int, classes: int
) -> None:
    """Targets that are no class, or the ignored one, count nothing; what is there is added to."""
    generator = np.random.default_rng(classes)
    most = min(classes + 2, np.iinfo(target_type).max)
    least = 0 if target_type is np.uint8 else -2
    target = generator.integers(least, most, (images, pixels)).astype(target_type)
    before = generator.integers(0, 9, (images, classes))
    expected = before.copy()
    for image in range(images):
        for label in target[image].astype(np.int64):
            if 0 <= label < classes and label != 1:
                expected[image, label] += 1

    def run() -> dict[str, Array]:
        sizes = place((images, classes), np.int64, values=before)
        placed = place(target.shape, target_type, values=target)
        host.class_sizes(target=placed.view, sizes=sizes.view, ignore_index=1)
        sizes.check_surroundings("sizes")
        return {"sizes": np.array(sizes.view)}

    assert np.array_equal(run_under_seeds(host, run)["sizes"], expected)
