"""Runs of the kernels of Dice and cross-entropy, and their formulas in float64 NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from python_tests.native.dice.calls import run_both
from python_tests.native.harness import (
    Array,
    accumulate_type,
    assert_close,
    decode,
    encode,
    epsilon,
    pixels_last,
    rounding,
    run_under_seeds,
)
from python_tests.native.interpolation import Interpolated, interpolated, interpolation_matrices
from python_tests.native.references import interpolate, log_softmax


@dataclass(frozen=True)
class Case:
    dtype: str
    layout: str
    classes: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)  # of the logits
    target_type: type = np.int64
    by_image: bool = True
    squared: bool = False
    weight: bool = False
    pixel_weight: bool = False
    smoothing: float = 0.0
    cross_entropy: bool = True
    ignore_index: int = -100
    ignored: float = 0.2
    grad_layout: str | None = None  # that of the input without
    grad_input: bool = True
    overwrites: bool = False  # the logits by their gradient
    grad_pixel_weight: bool = False
    to: Interpolated | None = None
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        kind = f"{'image' if self.by_image else 'batch'}{'-squared' * self.squared}"
        return (
            f"{self.dtype}-{self.layout}-{self.classes}-{self.images}x{spatial}{self.to or ''}"
            f"-{kind}-{self.seed}"
        )

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.images, *(self.to.size if self.to else self.spatial))

    @property
    def tables(self) -> int:
        return self.images if self.by_image else 1


@dataclass
class Inputs:
    logits: Array  # [N, C, *spatial], float64, as stored
    target: Array  # the pixels'
    weight: Array | None
    pixel_weight: Array | None
    coefficients: Array  # [N or 1, 2, C]
    factor: Array
    upstream: Array


def make_inputs(case: Case) -> Inputs:
    """NaN wherever nothing may be read: factors of ignored pixels and, where they are no other
    pixel's, their logits."""
    generator = np.random.default_rng(case.seed)
    accumulate = accumulate_type(case.dtype)
    shape = (case.images, case.classes, *case.spatial)
    logits = decode(encode(generator.normal(size=shape) * 3, case.dtype), case.dtype)
    target = generator.integers(0, min(case.classes, np.iinfo(case.target_type).max), case.pixels)
    ignored = generator.random(case.pixels) < case.ignored
    target = np.where(ignored, case.ignore_index, target).astype(case.target_type)
    ignored = target == case.ignore_index
    if case.to is None:
        logits = np.where(ignored[:, None], np.nan, logits)
    pixel_weight = np.where(ignored, np.nan, generator.random(case.pixels) * 3).astype(accumulate)
    weight = (generator.random(case.classes) + 0.05).astype(accumulate)
    return Inputs(
        logits,
        target,
        weight if case.weight else None,
        pixel_weight if case.pixel_weight else None,
        generator.normal(size=(case.tables, 2, case.classes)),
        np.array(generator.random() + 0.1),
        np.array(generator.normal() * 4, accumulate),
    )


def run(host: ModuleType, case: Case, inputs: Inputs) -> dict[str, Array]:
    """Both calls: the sums, and the gradient of any coefficients."""
    own: dict[str, Any] = {
        "target": inputs.target,
        "weight": inputs.weight,
        "ignore_index": case.ignore_index,
        "label_smoothing": case.smoothing,
    }
    if case.to is not None:
        own["align_corners"] = case.to.align_corners
    return run_both(host, "dice", case, inputs, own)


@dataclass
class Expected:
    """[N, P] or [N, C, P]."""

    valid: Array
    bad: Array
    p: Array
    one_hot: Array
    loss: Array  # of the cross-entropy, without pixel weights
    t: Array  # its target, smoothed


def expected(case: Case, inputs: Inputs) -> Expected:
    n, classes = case.images, case.classes
    logits = pixels_last(interpolated(inputs.logits, case.to, case.dtype))
    target = inputs.target.reshape(n, -1).astype(np.int64)
    ignored = target == case.ignore_index
    bad = ~ignored & ((target < 0) | (target >= classes))
    valid = ~ignored & ~bad
    log_p = log_softmax(np.where(valid[:, None], logits, 0))
    one_hot = (np.arange(classes)[None, :, None] == target[:, None]) & valid[:, None]
    weight = np.ones(classes) if inputs.weight is None else inputs.weight.astype(np.float64)
    t = ((1 - case.smoothing) * one_hot + case.smoothing / classes) * weight[None, :, None]
    t = t * valid[:, None]
    return Expected(
        valid, bad, np.exp(log_p) * valid[:, None], one_hot.astype(float), -(t * log_p).sum(1), t
    )


def check(case: Case, inputs: Inputs, results: dict[str, Array]) -> None:
    eps, n = epsilon(case.dtype), case.images
    truth = expected(case, inputs)
    finite = np.where(np.isfinite(inputs.logits), inputs.logits, 0)
    size = 1 + float(np.abs(finite).max(initial=0.0))
    bad = results["bad_target"]
    if truth.bad.any():
        values = inputs.target.reshape(n, -1)[truth.bad].astype(np.int64)
        assert bad[0] == 1
        assert bad[1] in values
    else:
        assert bad.tolist() == [0, 0]

    # ---- sums ----
    p = np.where(truth.bad[:, None], np.nan, truth.p)
    mass = p**2 if case.squared else p
    with np.errstate(invalid="ignore"):
        common = np.where(truth.one_hot > 0, p, 0)
        sums = np.stack([mass.sum(2), truth.one_hot.sum(2), common.sum(2)], 1)
    sums = sums if case.by_image else sums.sum(0, keepdims=True)
    assert_close("sums", results["sums"], sums, 32 * eps * size * (1 + np.nan_to_num(sums)))
    u = np.ones(truth.valid.shape)
    if inputs.pixel_weight is not None:
        u = np.where(truth.valid, inputs.pixel_weight.reshape(n, -1).astype(np.float64), 0)
    surprise = (truth.loss * u).sum() if case.cross_entropy else 0.0
    if case.cross_entropy and truth.bad.any():
        surprise = np.nan
    tolerance = 32 * eps * size * (1 + np.nan_to_num(surprise))
    assert_close("surprise", results["surprise"], np.array(surprise), tolerance)

    # ---- gradient ----
    upstream = float(inputs.upstream)
    factor = float(inputs.factor) * upstream
    if case.grad_pixel_weight:
        of_weight = np.where(truth.bad, np.nan, truth.loss * factor)
        assert_close(
            "grad_pixel_weight",
            results["grad_pixel_weight"].reshape(n, -1),
            of_weight,
            32 * eps * size * (1 + abs(factor)),
        )
    if not case.grad_input:
        return
    a, b = (
        np.broadcast_to(inputs.coefficients[:, i, :, None] * upstream, (*truth.p.shape[:2], 1))
        for i in range(2)
    )
    slope = 2 * a * truth.p if case.squared else a
    q = slope + b * truth.one_hot
    per_pixel = truth.p * (q - (truth.p * q).sum(1, keepdims=True))
    total = truth.t.sum(1, keepdims=True)
    per_pixel = per_pixel + (factor * u)[:, None] * (total * truth.p - truth.t)
    per_pixel = np.where(truth.bad[:, None], np.nan, per_pixel)
    magnitude = (1 + np.abs(upstream) * (np.abs(inputs.coefficients).max() + 3 * factor**2)) * size
    actual = decode(results["grad_input"], case.dtype)
    relative, absolute = rounding(case.dtype)
    if case.to is None:
        found = pixels_last(actual)
        slack = np.broadcast_to(32 * eps * magnitude, per_pixel.shape)
        wanted = per_pixel
        ignored = ~np.broadcast_to((truth.valid | truth.bad)[:, None], wanted.shape)
        assert not found[ignored].any(), "an ignored pixel has a gradient"
    else:
        found = actual
        transposed = [m.T for m in interpolation_matrices(case.spatial, case.to, case.dtype)]
        size_of = (n, case.classes, *case.to.size)
        wanted = interpolate(per_pixel.reshape(size_of), transposed)
        slack = 32 * eps * interpolate(np.full(size_of, magnitude), transposed)
    allowed = np.abs(np.nan_to_num(wanted)) * relative * 1.01 + absolute + slack
    assert_close("grad_input", found, wanted, allowed)


def verify(host: ModuleType, case: Case, inputs: Inputs | None = None) -> dict[str, Array]:
    inputs = make_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    check(case, inputs, results)
    return results
