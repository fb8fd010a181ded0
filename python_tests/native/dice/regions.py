"""Runs of the kernels of Dice and binary cross-entropy, and their formulas in float64 NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

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

TARGET_TYPES = ("i64", "i32", "i16", "u8", "f64", "f32", "bf16", "f16")
NEITHER = np.iinfo(np.int64).min
"""What is reported of a target that is neither 0 nor 1."""
_INTEGERS = {"i64": np.int64, "i32": np.int32, "i16": np.int16, "u8": np.uint8}


@dataclass(frozen=True)
class RegionCase:
    dtype: str
    layout: str
    classes: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    target_type: str = "u8"
    gap: int = 0  # channels between the targets of images
    by_image: bool = True
    squared: bool = False
    mask: bool = False
    pos_weight: bool = False
    pixel_weight: bool = False
    cross_entropy: bool = True
    grad_layout: str | None = None  # that of the input without
    grad_input: bool = True
    overwrites: bool = False  # the logits by their gradient
    grad_pixel_weight: bool = False
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        kind = f"{'image' if self.by_image else 'batch'}{'-squared' * self.squared}"
        return (
            f"{self.dtype}-{self.layout}-{self.classes}-{self.images}x{spatial}-"
            f"{self.target_type}-{kind}-{self.seed}"
        )

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.images, *self.spatial)

    @property
    def tables(self) -> int:
        return self.images if self.by_image else 1


@dataclass
class RegionInputs:
    logits: Array  # [N, C, *spatial], float64, as stored
    target: Array  # of them, float64
    mask: Array | None
    pos_weight: Array | None
    pixel_weight: Array | None
    coefficients: Array  # [N or 1, 2, C]
    factor: Array
    upstream: Array


def make_inputs(case: RegionCase) -> RegionInputs:
    """NaN, or no target, wherever nothing may be read."""
    generator = np.random.default_rng(case.seed)
    accumulate = accumulate_type(case.dtype)
    shape = (case.images, case.classes, *case.spatial)
    pixels = case.pixels
    logits = decode(encode(generator.normal(size=shape) * 3, case.dtype), case.dtype)
    target = (generator.random(shape) < 0.4).astype(np.float64)
    mask = generator.random(pixels) < 0.8 if case.mask else np.ones(pixels, bool)
    logits = np.where(mask[:, None], logits, np.nan)
    target = np.where(mask[:, None], target, 7)
    pixel_weight = np.where(mask, generator.random(pixels) * 3, np.nan).astype(accumulate)
    pos_weight = (generator.random(case.classes) + 0.05).astype(accumulate)
    return RegionInputs(
        logits,
        target,
        mask if case.mask else None,
        pos_weight if case.pos_weight else None,
        pixel_weight if case.pixel_weight else None,
        generator.normal(size=(case.tables, 2, case.classes)),
        np.array(generator.random() + 0.1),
        np.array(generator.normal() * 4, accumulate),
    )


def _stored_target(case: RegionCase, target: Array) -> Array:
    """In its type, with channels of other numbers behind each image."""
    gap = np.full((case.images, case.gap, *case.spatial), 9.0)
    both = np.concatenate([target, gap], 1)
    if case.target_type in _INTEGERS:
        return both.astype(_INTEGERS[case.target_type])
    return encode(both, case.target_type)


def run(host: ModuleType, case: RegionCase, inputs: RegionInputs) -> dict[str, Array]:
    """Both calls: the sums, and the gradient of any coefficients."""
    target = _stored_target(case, inputs.target)
    own = {
        "target": target,
        "target_type": case.target_type,
        "target_stride": int(np.prod(target.shape[1:])),
        "mask": inputs.mask,
        "pos_weight": inputs.pos_weight,
    }
    return run_both(host, "dice_bce", case, inputs, own)


def check(case: RegionCase, inputs: RegionInputs, results: dict[str, Array]) -> None:
    eps, n = epsilon(case.dtype), case.images
    size = 1 + float(np.abs(np.nan_to_num(inputs.logits)).max(initial=0.0))
    shape = (n, case.classes, -1)
    valid = np.ones((n, 1, int(np.prod(case.spatial))), bool)
    if inputs.mask is not None:
        valid = inputs.mask.reshape(n, 1, -1)
    y = np.where(valid, inputs.target.reshape(shape), 0)
    bad = (y != 0) & (y != 1)
    if bad.any():
        assert results["bad_target"].tolist() == [1, NEITHER]
    else:
        assert results["bad_target"].tolist() == [0, 0]
    z = np.where(valid, pixels_last(inputs.logits), 0)
    sigmoid = 1 / (1 + np.exp(-z))
    positive = np.ones(case.classes)
    if inputs.pos_weight is not None:
        positive = inputs.pos_weight.astype(np.float64)
    weight = np.where(y == 1, positive[None, :, None], 1)
    loss = np.where(valid, weight * np.logaddexp(0, np.where(y == 1, -z, z)), 0)
    u = np.ones(valid.shape)
    if inputs.pixel_weight is not None:
        u = np.where(valid, inputs.pixel_weight.reshape(valid.shape).astype(np.float64), 0)

    # ---- sums ----
    p = np.where(bad, np.nan, np.where(valid, sigmoid, 0))
    mass = p**2 if case.squared else p
    common = np.where(y == 1, p, 0)
    sums = np.stack([mass.sum(2), (y == 1).sum(2), common.sum(2)], 1)
    sums = sums if case.by_image else sums.sum(0, keepdims=True)
    assert_close("sums", results["sums"], sums, 32 * eps * size * (1 + np.nan_to_num(sums)))
    surprise = (np.where(bad, np.nan, loss) * u).sum() if case.cross_entropy else 0.0
    tolerance = 32 * eps * size * (1 + np.nan_to_num(surprise))
    assert_close("surprise", results["surprise"], np.array(surprise), tolerance)

    # ---- gradient ----
    upstream = float(inputs.upstream)
    factor = float(inputs.factor) * upstream
    if case.grad_pixel_weight:
        of_weight = (np.where(bad, np.nan, loss) * factor).sum(1)
        found = results["grad_pixel_weight"].reshape(n, -1)
        slack = 32 * eps * size * case.classes * (1 + abs(factor))
        assert_close("grad_pixel_weight", found, of_weight, slack)
    if not case.grad_input:
        return
    a, b = (inputs.coefficients[:, i, :, None] * upstream for i in range(2))
    slope = 2 * a * sigmoid if case.squared else a
    by_probability = slope + np.where(y == 1, b, 0)
    per_pixel = by_probability * sigmoid * (1 - sigmoid)
    per_pixel = per_pixel + factor * u * np.where(y == 1, -weight * (1 - sigmoid), sigmoid)
    per_pixel = np.where(bad, np.nan, np.where(valid, per_pixel, 0))
    magnitude = (1 + abs(upstream) * (np.abs(inputs.coefficients).max() + 3 * factor**2)) * size
    found = pixels_last(decode(results["grad_input"], case.dtype))
    assert not found[np.broadcast_to(~valid, found.shape)].any(), "a masked pixel has a gradient"
    relative, absolute = rounding(case.dtype)
    allowed = np.abs(np.nan_to_num(per_pixel)) * relative * 1.01 + absolute + 32 * eps * magnitude
    assert_close("grad_input", found, per_pixel, allowed)


def verify(
    host: ModuleType, case: RegionCase, inputs: RegionInputs | None = None
) -> dict[str, Array]:
    inputs = make_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    check(case, inputs, results)
    return results
