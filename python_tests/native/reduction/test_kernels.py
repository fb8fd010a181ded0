"""The sums that families share (csrc/common/device/reduction.h) on the host, against float64 NumPy.

Each case runs under several schedules, which must agree bit for bit.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import (
    DTYPES,
    SIZES,
    TARGET_TYPES,
    Array,
    accumulate_type,
    assert_close,
    epsilon,
    place,
    run_under_seeds,
)
from python_tests.native.reduction import references


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target_type", TARGET_TYPES)
@pytest.mark.parametrize("count", [0, *SIZES, 40_000])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_normalizer(
    host: ModuleType, dtype: str, count: int, target_type: type, weighted: bool
) -> None:
    generator = np.random.default_rng(count)
    classes, ignore_index = 19, 255
    accumulate = accumulate_type(dtype)
    target = generator.integers(0, classes, count)
    target[generator.random(count) < 0.3] = ignore_index
    target = place((count,), target_type, values=target).view
    weight = place((classes,), accumulate, values=generator.random(classes)).view
    weight = weight if weighted else None

    def run() -> dict[str, Array]:
        result = place((1,), np.float64)
        arguments = {
            "target": target,
            "weight": weight,
            "classes": classes,
            "ignore_index": ignore_index,
            "dtype": dtype,
        }
        partial = place((host.normalizer_partials(**arguments),), np.float64)
        host.normalizer(**arguments, partial=partial.view, normalizer=result.view)
        result.check_surroundings("normalizer")
        partial.check_surroundings("partial")
        return {"normalizer": result.view.copy()}

    expected = references.normalizer(target, weight, ignore_index)
    tolerance = 0.0 if not weighted else 8 * epsilon(dtype) * max(expected, 1)
    assert_close(
        "normalizer",
        run_under_seeds(host, run)["normalizer"],
        np.array([expected]),
        tolerance,
    )


def test_normalizer_of_any_alignment(host: ModuleType) -> None:
    """Vectors start on multiples of 16 bytes, and are used from nowhere else."""
    target = np.random.default_rng(0).integers(0, 20, 100).astype(np.uint8)
    for offset in range(68):  # three multiples of 17 among them are none of 4
        arguments = {
            "target": target[offset:],
            "classes": 19,
            "ignore_index": 255,
            "dtype": "f32",
            "weight": None,
        }
        result = np.zeros(1)
        partial = np.zeros(host.normalizer_partials(**arguments))
        host.normalizer(**arguments, partial=partial, normalizer=result)
        assert result[0] == (target[offset:] < 19).sum()


def test_normalizer_skips_bad_targets(host: ModuleType) -> None:
    target = np.array([0, 1, 2, 3, -1, 2**40, 255, 2], np.int64)
    arguments = {
        "target": target,
        "classes": 3,
        "ignore_index": 255,
        "dtype": "f32",
        "weight": np.array([1, 10, 100], np.float32),
    }
    result = np.zeros(1)
    partial = np.zeros(host.normalizer_partials(**arguments))
    host.normalizer(**arguments, partial=partial, normalizer=result)
    assert result[0] == 211


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("count", [0, 1, 33, 1031, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_finish_loss(host: ModuleType, dtype: str, count: int, divided: bool) -> None:
    generator = np.random.default_rng(count)
    partial = place((count,), np.float64, values=generator.normal(size=count)).view
    normalizer = np.array([7.0]) if divided else None

    def run() -> dict[str, Array]:
        loss = place((1,), accumulate_type(dtype))
        host.finish_loss(
            partial=partial, count=count, normalizer=normalizer, loss=loss.view, dtype=dtype
        )
        loss.check_surroundings("loss")
        return {"loss": loss.view.copy()}

    expected = np.array([partial.sum() / (7.0 if divided else 1.0)])
    assert_close(
        "loss",
        run_under_seeds(host, run)["loss"],
        expected,
        epsilon(dtype) * np.abs(expected) + 1e-12,
    )


def test_a_mean_over_no_valid_pixel_is_nan(host: ModuleType) -> None:
    loss = np.zeros(1, np.float32)
    host.finish_loss(partial=np.zeros(3), count=3, normalizer=np.zeros(1), loss=loss, dtype="f32")
    assert np.isnan(loss[0])
