"""Runs of the cross-entropy kernels, on stored and on interpolated logits, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from python_tests.native.cross_entropy import references
from python_tests.native.harness import (
    Array,
    accumulate_type,
    assert_close,
    assert_unchanged,
    decode,
    encode,
    epsilon,
    pixels_last,
    place,
    place_elements,
    place_output,
    rounding,
    run_under_seeds,
)
from python_tests.native.interpolation import Interpolated, interpolated, interpolation_matrices
from python_tests.native.references import interpolate


@dataclass(frozen=True)
class Varied:
    """A factor of the loss (references.Variation) and adjusted logits."""

    kind: int = 0
    rate: float = 0.0
    peak: float = 1.0
    detached: bool = False
    by_image: bool = False
    adjusts: bool = False
    scale: float = 1.0
    on_target: bool = False
    noise: int = 0
    sigma: float = 0.0

    def __str__(self) -> str:
        return "".join(f"-{name}={value}" for name, value in vars(self).items() if value)


PLAIN = Varied()
SEED = 0x123456789ABCDEF1  # of the noise
VARIATIONS = {
    "focal": Varied(references.FOCAL, 2.0),
    "focal_below_1": Varied(references.FOCAL, 0.5),
    "focal_0": Varied(references.FOCAL, 0.0),
    "falling": Varied(references.FALLING, 0.05, 1.05, by_image=True),
    "falling_steeply": Varied(references.FALLING, 5.0, 8.0),
    "rising": Varied(references.RISING, 2.0, 1.1, by_image=True),
    "rising_detached": Varied(references.RISING, 2.0, 1.1, detached=True),
    "by_image": Varied(by_image=True),
    "offset": Varied(adjusts=True),
    "margin": Varied(adjusts=True, scale=3.0, on_target=True),
    "margin_of_all": Varied(adjusts=True, scale=3.0),
    "normal_noise": Varied(adjusts=True, noise=references.NORMAL, sigma=0.5),
    "uniform_noise": Varied(references.FOCAL, 2.0, adjusts=True, noise=references.UNIFORM, sigma=2),
    "focal_and_offset": Varied(references.FOCAL, 1.5, adjusts=True, by_image=True),
}


@dataclass(frozen=True)
class Case:
    dtype: str
    layout: str
    classes: int
    images: int = 2
    spatial: tuple[int, ...] = (33,)  # of the logits
    target_type: type = np.int64
    weight: bool = False
    pixel_weight: bool = False
    smoothing: float = 0.0
    ignore_index: int = -100
    ignored: float = 0.0
    upstream: str = "none"  # none, scalar, map
    divided: bool = False
    grad_layout: str | None = None  # that of the input without
    loss: bool = True
    partial: bool = True
    grad_input: bool = True
    overwrites: bool = False  # the logits by their gradient
    grad_pixel_weight: bool = False
    to: Interpolated | None = None
    flag: bool = True  # of targets that are no class
    unaligned: str = ""  # the array that starts an element beyond an aligned address
    varied: Varied = PLAIN
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        varied = "" if self.varied == PLAIN else str(self.varied)
        return (
            f"{self.dtype}-{self.layout}-{self.classes}-{self.images}x{spatial}{self.to or ''}"
            f"{varied}-{self.seed}"
        )

    @property
    def pixels(self) -> tuple[int, ...]:
        return (self.images, *(self.to.size if self.to else self.spatial))


@dataclass
class Inputs:
    logits: Array  # [N, C, *spatial], float64, as stored
    target: Array  # the pixels'
    weight: Array | None
    pixel_weight: Array | None
    upstream: Array | None
    normalizer: Array | None
    image_factor: Array | None = None
    offset: Array | None = None

    def variation(self, varied: Varied) -> references.Variation:
        return references.Variation(
            varied.kind,
            varied.rate,
            varied.peak,
            varied.detached,
            self.image_factor,
            self.offset,
            varied.scale,
            varied.on_target,
            varied.noise,
            varied.sigma,
            SEED,
        )


def make_inputs(case: Case) -> Inputs:
    """NaN wherever nothing may be read: factors of ignored pixels and, where they are no other
    pixel's, their logits."""
    generator = np.random.default_rng(case.seed)
    accumulate = accumulate_type(case.dtype)
    shape = (case.images, case.classes, *case.spatial)
    logits = decode(encode(generator.normal(size=shape) * 4, case.dtype), case.dtype)
    target = generator.integers(0, min(case.classes, np.iinfo(case.target_type).max), case.pixels)
    ignored = generator.random(case.pixels) < case.ignored
    target = np.where(ignored, case.ignore_index, target).astype(case.target_type)
    # A class may be the ignored one.
    ignored = target == case.ignore_index
    if case.to is None:
        logits = np.where(ignored[:, None], np.nan, logits)
    pixel_weight = np.where(ignored, np.nan, generator.random(case.pixels) * 3).astype(accumulate)

    def factors(*shape: int) -> Array:
        values: Array = (generator.random(shape) + 0.05).astype(accumulate)
        return values

    weight = factors(case.classes)
    upstream = {
        "none": None,
        "scalar": np.array(generator.normal() * 8, accumulate),
        "map": np.where(ignored, np.nan, generator.normal(size=case.pixels)).astype(accumulate),
    }[case.upstream]
    return Inputs(
        logits,
        target,
        weight if case.weight else None,
        pixel_weight if case.pixel_weight else None,
        upstream,
        np.array([generator.random() * 50 + 1]) if case.divided else None,
        factors(case.images, case.classes) if case.varied.by_image else None,
        -3 * factors(case.classes) if case.varied.adjusts else None,
    )


def run(host: ModuleType, case: Case, inputs: Inputs) -> dict[str, Array]:
    """One call; the outputs that the case asks for, and bad_target."""
    accumulate = accumulate_type(case.dtype)
    pixels = inputs.target.shape

    def layout_of(name: str, layout: str = "planar") -> str:
        return "unaligned" if name == case.unaligned else layout

    logits = place_elements(inputs.logits, case.dtype, layout_of("input", case.layout))
    before = logits.buffer.copy()
    outputs = {}
    if case.flag:
        outputs["bad_target"] = place((2,), np.int64, values=np.zeros(2, np.int64))
    if case.loss:
        outputs["loss"] = place(pixels, accumulate, layout_of("loss"))
    if case.overwrites:
        outputs["grad_input"] = logits
    elif case.grad_input:
        outputs["grad_input"] = place_output(
            inputs.logits.shape,
            case.dtype,
            layout_of("grad_input", case.grad_layout or case.layout),
        )
    if case.grad_pixel_weight:
        outputs["grad_pixel_weight"] = place(pixels, accumulate, layout_of("grad_pixel_weight"))

    def placed(name: str) -> Array | None:
        values = getattr(inputs, name)
        if values is None:
            return None
        return place(values.shape, values.dtype, layout_of(name), values).view

    arguments: dict[str, Any] = {
        "input": logits.view,
        "target": placed("target"),
        "weight": placed("weight"),
        "pixel_weight": placed("pixel_weight"),
        "upstream": placed("upstream"),
        "normalizer": placed("normalizer"),
        "ignore_index": case.ignore_index,
        "label_smoothing": case.smoothing,
        "modulation": case.varied.kind,
        "rate": case.varied.rate,
        "peak": case.varied.peak,
        "detached": case.varied.detached,
        "image_factor": placed("image_factor"),
        "offset": placed("offset"),
        "logit_scale": case.varied.scale,
        "offset_on_target": case.varied.on_target,
        "noise": case.varied.noise,
        "sigma": case.varied.sigma,
        "seed": place((1,), np.int64, values=np.array([SEED])).view,
        "dtype": case.dtype,
        "as_strided": case.layout == "forced",
        **{name: output.view for name, output in outputs.items()},
    }
    if case.to is not None:
        arguments["align_corners"] = case.to.align_corners
    if case.partial:
        outputs["partial"] = place((host.cross_entropy_partials(**arguments),), np.float64)
        arguments["partial"] = outputs["partial"].view
    scratch = place((host.cross_entropy_scratch_bytes(**arguments),), np.uint8)
    host.cross_entropy(**arguments, scratch=scratch.view)
    for name, output in {**outputs, "scratch": scratch}.items():
        output.check_surroundings(name)
    if not case.overwrites:
        assert_unchanged(logits, before)
    return {name: np.array(output.view) for name, output in outputs.items()}


def check(case: Case, inputs: Inputs, results: dict[str, Array]) -> None:
    eps = epsilon(case.dtype)
    n = case.images
    logits = pixels_last(interpolated(inputs.logits, case.to, case.dtype))
    target = inputs.target.reshape(n, -1)
    pixel_weight = None if inputs.pixel_weight is None else inputs.pixel_weight.reshape(n, -1)
    variation = inputs.variation(case.varied)
    expected = references.cross_entropy(
        logits, target, inputs.weight, pixel_weight, case.ignore_index, case.smoothing, variation
    )
    upstream = np.ones(target.shape)
    if inputs.upstream is not None:
        is_map = inputs.upstream.ndim > 0
        upstream = upstream * (inputs.upstream.reshape(n, -1) if is_map else float(inputs.upstream))
    if inputs.normalizer is not None:
        upstream = upstream / inputs.normalizer[0]
    upstream = np.where(expected.valid, upstream, 0.0)
    scale = _logit_scale(case, inputs, logits, expected.valid) * variation.size()
    weights = np.ones(target.shape) if pixel_weight is None else np.abs(pixel_weight)
    tolerance = 16 * eps * scale * np.where(expected.valid, weights, 0)
    if "loss" in results:
        assert_close("loss", results["loss"].reshape(n, -1), expected.loss, tolerance)
    if "partial" in results:
        total = results["partial"].sum()
        allowed = np.nansum(tolerance) + 1e-12
        assert_close("partial", np.array(total), np.array(expected.loss.sum()), allowed)
    if "grad_pixel_weight" in results:
        assert_close(
            "grad_pixel_weight",
            results["grad_pixel_weight"].reshape(n, -1),
            np.where(expected.valid, expected.unweighted * upstream, 0.0),
            16 * eps * scale * np.abs(upstream),
        )
    if "grad_input" in results:
        actual = decode(results["grad_input"], case.dtype)
        if case.to is None:
            _check_gradient(case, pixels_last(actual), expected, upstream)
        else:
            _check_interpolated_gradient(case, case.to, actual, expected, upstream, scale)
    bad = results["bad_target"]
    if expected.bad.any():
        assert bad[0] == 1
        assert bad[1] in target[expected.bad].astype(np.int64)
    else:
        assert bad.tolist() == [0, 0]


def _logit_scale(case: Case, inputs: Inputs, logits: Array, valid: Array) -> Array:
    """What rounding errors of a loss are relative to, [N, P]."""
    if case.to is not None:
        size = np.abs(inputs.logits[np.isfinite(inputs.logits)]).max(initial=0.0)
        return np.full(valid.shape, 1 + case.varied.scale * size)
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(np.ptp(np.where(valid[:, None], logits, 0), axis=1))
    return np.where(valid, 1.0 + case.varied.scale * spread, 1.0)


def _check_gradient(
    case: Case, actual: Array, expected: references.CrossEntropy, upstream: Array
) -> None:
    eps = epsilon(case.dtype)
    gradient = expected.gradient * upstream[:, None]
    relative, absolute = rounding(case.dtype)
    slack = 16 * eps * (expected.magnitude * np.abs(upstream))[:, None]
    assert_close(
        "grad_input",
        actual,
        np.where(expected.bad[:, None], np.nan, gradient),
        np.abs(gradient) * relative * (1 + 8 * eps) + absolute + slack + 1e-300,
    )
    ignored = ~np.broadcast_to(expected.valid[:, None], gradient.shape)
    assert not actual[ignored].any(), "an ignored pixel has a gradient"


def _check_interpolated_gradient(
    case: Case,
    to: Interpolated,
    actual: Array,
    expected: references.CrossEntropy,
    upstream: Array,
    scale: Array,
) -> None:
    eps = epsilon(case.dtype)
    n = case.images
    transposed = [m.T for m in interpolation_matrices(case.spatial, to, case.dtype)]
    with np.errstate(invalid="ignore"):
        per_pixel = (expected.gradient * upstream[:, None]).reshape(n, case.classes, *to.size)
    # A bad target's gradient is NaN for every class.
    bad = expected.bad.reshape(n, 1, *to.size)
    gradient = interpolate(np.where(bad, np.nan, per_pixel), transposed)
    magnitude = np.nan_to_num(expected.magnitude * np.abs(upstream)) * scale
    slack = 8 * eps * interpolate(magnitude.reshape(n, 1, *to.size), transposed)
    relative, absolute = rounding(case.dtype)
    assert_close(
        "grad_input",
        actual,
        gradient,
        np.abs(gradient) * relative * (1 + 8 * eps) + absolute + slack + 1e-300,
    )


def verify(host: ModuleType, case: Case, inputs: Inputs | None = None) -> dict[str, Array]:
    inputs = make_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    check(case, inputs, results)
    return results
