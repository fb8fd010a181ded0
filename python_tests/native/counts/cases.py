"""Runs of the counting kernels, on stored and on interpolated logits, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from python_tests.native.counts import references
from python_tests.native.harness import (
    Array,
    accumulate_type,
    assert_close,
    decode,
    encode,
    epsilon,
    pixels_last,
    place,
    place_elements,
    run_under_seeds,
)
from python_tests.native.interpolation import (
    Interpolated,
    interpolated,
)
from python_tests.native.references import log_softmax

TABLES = ("confusion", "uncertainty_sums", "calibration", "scores", "histogram")


@dataclass(frozen=True)
class CountsCase:
    dtype: str
    layout: str
    classes: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    target_type: type = np.int64
    ignore_index: int = -100
    ignored: float = 0.2
    probabilities: bool = False
    bins: int = 15
    tables: tuple[str, ...] = TABLES
    outcome: bool = True
    to: Interpolated | None = None
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        to = self.to or ""
        return f"{self.dtype}-{self.layout}-{self.classes}-{self.images}x{spatial}{to}-{self.seed}"

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.images, *(self.to.size if self.to else self.spatial))


@dataclass
class CountsInputs:
    values: Array  # [N, C, *spatial], float64, as stored
    target: Array  # [N, *spatial]
    uncertainty: Array  # [N, *spatial]


def counts_inputs(case: CountsCase) -> CountsInputs:
    """NaN where nothing may be read. Confidences near an edge of a bin are ignored, too: rounding
    decides which bin they are in."""
    generator = np.random.default_rng(case.seed)
    shape = (case.images, case.classes, *case.spatial)
    values = generator.normal(size=shape) * 3
    if case.probabilities:
        values = np.exp(log_softmax(values))
    values = decode(encode(values, case.dtype), case.dtype)
    if case.to is not None:  # an ignored pixel's NaN is in what it blends
        values = np.where(generator.random((case.images, 1, *case.spatial)) < 0.05, np.nan, values)
    target = generator.integers(0, case.classes, case.pixels)
    counted = interpolated(values, case.to, case.dtype)
    confidence = counted.max(1)
    if not case.probabilities:
        confidence = np.exp(log_softmax(counted)).max(1)
    from_edge = np.abs(confidence * case.bins - np.rint(confidence * case.bins))
    ignored = generator.random(case.pixels) < case.ignored
    ignored |= (from_edge < 1e-3) & (confidence < 1) | np.isnan(confidence)
    if case.to is not None and case.classes > 1:  # rounding decides between classes, too
        first, second = -np.partition(-counted, 1, axis=1)[:, :2].swapaxes(0, 1)
        ignored |= ~(first - second > 1e-4 * np.abs(counted).max(1))
    target = np.where(ignored, case.ignore_index, target).astype(case.target_type)
    ignored = target == case.ignore_index
    if case.to is None:
        values = np.where(ignored[:, None], np.nan, values)
    uncertainty = np.exp(generator.uniform(np.log(1e-8), np.log(250), case.pixels))
    uncertainty = np.where(generator.random(case.pixels) < 0.1, 0, uncertainty)
    uncertainty = np.where(ignored, np.nan, uncertainty).astype(accumulate_type(case.dtype))
    return CountsInputs(values, target, uncertainty)


def place_tables(
    names: tuple[str, ...], classes: int, bins: int, seed: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Tables that are not empty, placed, and copies of their contents."""
    shapes = {
        "confusion": (classes, classes),
        "uncertainty_sums": (2, classes, classes),
        "calibration": (bins + 1, 3),
        "scores": (5,),
        "histogram": (2, references.UNCERTAINTY_BINS + 1),
    }
    generator = np.random.default_rng(seed)
    before = {name: generator.integers(0, 2**40, shapes[name]) for name in names}
    return {name: place(shapes[name], np.int64, values=before[name]) for name in names}, before


def run_counts(host: ModuleType, case: CountsCase, inputs: CountsInputs) -> dict[str, Array]:
    """What one call adds to the tables, the outcomes and bad_target."""
    tables, before = place_tables(case.tables, case.classes, case.bins, case.seed)
    values = place_elements(inputs.values, case.dtype, case.layout)
    outputs = {"bad_target": place((2,), np.int64, values=np.zeros(2, np.int64))}
    if case.outcome:
        outputs["outcome"] = place(inputs.target.shape, np.uint8)
    uncertainty = place(
        inputs.uncertainty.shape, inputs.uncertainty.dtype, values=inputs.uncertainty
    )
    host.counts(
        input=values.view,
        target=place(inputs.target.shape, inputs.target.dtype, values=inputs.target).view,
        uncertainty=uncertainty.view,
        probabilities=case.probabilities,
        ignore_index=case.ignore_index,
        bins=case.bins,
        dtype=case.dtype,
        as_strided=case.layout == "forced",
        align_corners=case.to.align_corners if case.to else None,
        **{name: output.view for name, output in {**tables, **outputs}.items()},
    )
    for name, output in {**tables, **outputs}.items():
        output.check_surroundings(name)
    results = {name: output.view.copy() for name, output in outputs.items()}
    return results | {name: table.view - before[name] for name, table in tables.items()}


def check_counts(
    expected: references.Counts, results: dict[str, Array], pixel_tolerance: float
) -> None:
    for name in ("confusion", "uncertainty_sums", "histogram"):
        if name in results:
            assert np.array_equal(results[name], getattr(expected, name)), name
    if "outcome" in results:
        assert np.array_equal(results["outcome"].ravel(), expected.outcome), "outcome"
    if "calibration" in results:
        assert expected.calibration is not None
        actual, wanted = results["calibration"], expected.calibration
        assert np.array_equal(actual[:, :2], wanted[:, :2]), "pixels of bins"
        tolerance = wanted[:, 0] * (pixel_tolerance * references.UNITS + 1)
        assert_close("confidence", actual[:, 2], wanted[:, 2], tolerance)


def verify_counts(
    host: ModuleType, case: CountsCase, inputs: CountsInputs | None = None
) -> dict[str, Array]:
    inputs = counts_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run_counts(host, case, inputs))
    values = pixels_last(interpolated(inputs.values, case.to, case.dtype))
    rows = np.moveaxis(values, 1, -1).reshape(-1, case.classes)
    target = inputs.target.ravel().astype(np.int64)
    known = np.where(np.isnan(rows), -np.inf, rows)
    best = ~np.isnan(rows) & (known == known.max(1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = np.log(rows) if case.probabilities else log_softmax(rows)
        probabilities = rows if case.probabilities else np.exp(log_p)
    confidence = probabilities.max(1)  # NaN if one is
    expected = references.counts(
        best.argmax(1),
        confidence,
        target,
        inputs.uncertainty.ravel(),
        case.classes,
        case.bins,
        case.ignore_index,
    )
    eps = epsilon(case.dtype)
    check_counts(expected, results, 16 * eps)
    if "scores" in results:
        valid = expected.outcome != 2
        at = target[valid]
        negative_log = -log_p[valid, at]
        wanted = references.scores(probabilities[valid], negative_log, at)
        assert np.array_equal(results["scores"][[0, 3, 4]], wanted[[0, 3, 4]])
        size = np.where(np.isfinite(negative_log), np.abs(negative_log), 0).sum() + valid.sum()
        tolerance = 64 * eps * references.UNITS * size + valid.sum()
        assert_close("sums", results["scores"][1:3], wanted[1:3], tolerance)
    return results
