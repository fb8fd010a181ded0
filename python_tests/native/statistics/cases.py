"""Runs of the statistics kernels, on stored and on interpolated logits, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

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
)
from python_tests.native.interpolation import Interpolated
from python_tests.native.statistics import references

MAPS = ("confidence", "std", "entropy", "expected_entropy", "mutual_information")


@dataclass(frozen=True)
class StatisticsCase:
    dtype: str
    layout: str
    classes: int
    samples: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    return_mean: bool = True
    spaced: bool = True  # the samples lie in one array
    to: Interpolated | None = None
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        return (
            f"{self.dtype}-{self.layout}-{self.classes}-{self.samples}of{self.images}x{spatial}"
            f"{self.to or ''}-{'spaced' if self.spaced else 'scattered'}"
        )

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.images, *(self.to.size if self.to else self.spatial))


def statistics_samples(case: StatisticsCase) -> list[Array]:
    generator = np.random.default_rng(case.seed)
    shape = (case.images, case.classes, *case.spatial)
    common = generator.normal(size=shape) * 2
    samples = [common + generator.normal(size=shape) * 2 for _ in range(case.samples)]
    return [decode(encode(sample, case.dtype), case.dtype) for sample in samples]


def place_samples(case: StatisticsCase, samples: list[Array]) -> list[Array]:
    """Arrays at equal distances in one buffer, or wherever memory was free."""
    if not case.spaced:
        return [place_elements(sample, case.dtype, case.layout).view for sample in samples]
    first = place_elements(samples[0], case.dtype, case.layout)
    buffers = np.empty((len(samples), first.buffer.size), first.buffer.dtype)
    offset = first.view.__array_interface__["data"][0] - first.buffer.__array_interface__["data"][0]
    views = []
    for sample, buffer in zip(samples, buffers, strict=True):
        placed = place_elements(sample, case.dtype, case.layout)
        buffer[:] = placed.buffer
        views.append(
            np.lib.stride_tricks.as_strided(
                buffer[offset // buffer.itemsize :], sample.shape, placed.view.strides
            )
        )
    return views


def check_statistics(
    samples: list[Array], dtype: str, results: dict[str, Array], error: float = 1.0
) -> None:
    """error: of the logits, in units of what rounding their softmax alone gives."""
    expected = references.statistics([pixels_last(sample) for sample in samples])
    images, classes = samples[0].shape[:2]
    eps = epsilon(dtype) * error
    prediction = results["prediction"].reshape(images, -1)
    assert ((prediction >= 0) & (prediction < classes)).all()
    at = prediction[:, None]
    confidence = np.take_along_axis(expected.mean, at, 1)[:, 0]
    assert_close("prediction", confidence, expected.mean.max(1), 8 * eps)
    chosen = np.stack([np.take_along_axis(p, at, 1)[:, 0] for p in expected.probabilities])
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = ((chosen - chosen.mean(0)) ** 2).sum(0) / np.float64(len(samples) - 1)
    by_name = {
        "confidence": confidence,
        "std": np.sqrt(variance),
        "entropy": expected.entropy,
        "expected_entropy": expected.expected_entropy,
        "mutual_information": np.maximum(expected.entropy - expected.expected_entropy, 0),
    }
    for name, value in by_name.items():
        actual = results[name].reshape(images, -1)
        assert_close(name, actual, value, (16 if name == "confidence" else 64) * eps)
    if "mean" in results:
        assert_close("mean", pixels_last(results["mean"]), expected.mean, 16 * eps)


def place_maps(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    maps = {name: place(shape, accumulate_type(dtype)) for name in MAPS}
    return {"prediction": place(shape, np.int64), **maps}


def run_statistics(
    host: ModuleType, case: StatisticsCase, samples: list[Array]
) -> dict[str, Array]:
    outputs = place_maps(case.pixels, case.dtype)
    if case.return_mean:
        outputs["mean"] = place(
            (case.images, case.classes, *case.pixels[1:]), accumulate_type(case.dtype)
        )
    host.predictive_statistics(
        samples=place_samples(case, samples),
        dtype=case.dtype,
        as_strided=case.layout == "forced",
        align_corners=case.to.align_corners if case.to else None,
        **{name: output.view for name, output in outputs.items()},
    )
    for name, output in outputs.items():
        output.check_surroundings(name)
    return {name: output.view.copy() for name, output in outputs.items()}


def run_accumulator(
    host: ModuleType, case: StatisticsCase, samples: list[Array]
) -> dict[str, Array]:
    """The samples one by one, then the maps of the state."""
    accumulate = accumulate_type(case.dtype)
    of_classes = (case.images, case.classes, *case.pixels[1:])
    state = {
        "mean": place(of_classes, accumulate),
        "squared_deviations": place(of_classes, accumulate),
        "entropy_sum": place(case.pixels, accumulate),
    }
    views = {name: placed.view for name, placed in state.items()}
    for count, sample in enumerate(samples, 1):
        host.accumulate(
            sample=place_elements(sample, case.dtype, case.layout).view,
            dtype=case.dtype,
            as_strided=case.layout == "forced",
            align_corners=case.to.align_corners if case.to else None,
            count=count,
            **views,
        )
    outputs = place_maps(case.pixels, case.dtype)
    host.finalize(
        **views,
        count=len(samples),
        dtype="f64" if case.dtype == "f64" else "f32",
        **{name: output.view for name, output in outputs.items()},
    )
    for name, output in {**state, **outputs}.items():
        output.check_surroundings(name)
    return {name: output.view.copy() for name, output in {**state, **outputs}.items()}
