"""csrc/expected_cross_entropy/cuda/kernels.h, run on the host, against float64 NumPy.

Each case runs under several schedules, which must agree bit for bit. Outputs start as garbage, and
nothing around them may change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from python_tests.native.expected_cross_entropy import references
from python_tests.native.harness import (
    DTYPES,
    LAYOUTS,
    TARGET_TYPES,
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
    shared_bytes,
    thinned,
    threads_of_report,
)

SEED = 0x123456789ABCDEF1
LARGEST = 6.0  # of normal numbers, which 24 bits make


@dataclass(frozen=True)
class Case:
    dtype: str = "f32"
    layout: str = "planar"
    classes: int = 5
    triangular: bool = False
    draws: int = 16
    antithetic: bool = False
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    scale_layout: str = "planar"
    target_type: type = np.int64
    weight: bool = False
    pixel_weight: bool = False
    ignore_index: int = -100
    ignored: float = 0.2
    upstream: str = "none"  # none, scalar, map
    divided: bool = False
    loss: bool = True
    partial: bool = True
    grad_mean: bool = True
    grad_scale: bool = True
    grad_pixel_weight: bool = False
    seed: int = 0

    def __str__(self) -> str:
        kind = "triangle" if self.triangular else "diagonal"
        pairs = "-antithetic" if self.antithetic else ""
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        return (
            f"{self.dtype}-{self.layout}-{kind}-{self.classes}-{self.draws}{pairs}-"
            f"{self.images}x{spatial}-{self.seed}"
        )

    @property
    def channels(self) -> int:
        return self.classes * (self.classes + 1) // 2 if self.triangular else self.classes


@dataclass
class Inputs:
    mean: Array
    scale: Array
    target: Array
    weight: Array | None
    pixel_weight: Array | None
    upstream: Array | None
    normalizer: Array | None


def make_inputs(case: Case) -> Inputs:
    """NaN wherever nothing may be read."""
    generator = np.random.default_rng(case.seed)
    accumulate = accumulate_type(case.dtype)
    pixels = (case.images, *case.spatial)

    def stored(channels: int, size: float) -> Array:
        values = size * generator.normal(size=(case.images, channels, *case.spatial))
        return decode(encode(values, case.dtype), case.dtype)

    mean, scale = stored(case.classes, 3), stored(case.channels, 1)
    target = generator.integers(0, min(case.classes, np.iinfo(case.target_type).max), pixels)
    ignored = generator.random(pixels) < case.ignored
    target = np.where(ignored, case.ignore_index, target).astype(case.target_type)
    ignored = target == case.ignore_index
    weight = (generator.random(case.classes) + 0.05).astype(accumulate)
    pixel_weight = np.where(ignored, np.nan, generator.random(pixels) * 3).astype(accumulate)
    upstream = {
        "none": None,
        "scalar": np.array(generator.normal() * 8, accumulate),
        "map": np.where(ignored, np.nan, generator.normal(size=pixels)).astype(accumulate),
    }[case.upstream]
    return Inputs(
        np.where(ignored[:, None], np.nan, mean),
        np.where(ignored[:, None], np.nan, scale),
        target,
        weight if case.weight else None,
        pixel_weight if case.pixel_weight else None,
        upstream,
        np.array([generator.random() * 50 + 1]) if case.divided else None,
    )


def run(host: ModuleType, case: Case, inputs: Inputs) -> dict[str, Array]:
    """One call; the outputs that the case asks for, and bad_target."""
    accumulate = accumulate_type(case.dtype)
    pixels = inputs.target.shape
    given = {
        "mean": place_elements(inputs.mean, case.dtype, case.layout),
        "scale": place_elements(inputs.scale, case.dtype, case.scale_layout),
    }
    before = {name: array.buffer.copy() for name, array in given.items()}
    outputs = {"bad_target": place((2,), np.int64, values=np.zeros(2, np.int64))}
    if case.loss:
        outputs["loss"] = place(pixels, accumulate)
    if case.grad_mean:
        outputs["grad_mean"] = place_output(inputs.mean.shape, case.dtype, case.scale_layout)
    if case.grad_scale:
        outputs["grad_scale"] = place_output(inputs.scale.shape, case.dtype, case.layout)
    if case.grad_pixel_weight:
        outputs["grad_pixel_weight"] = place(pixels, accumulate)

    def placed(name: str) -> Array | None:
        values = getattr(inputs, name)
        return None if values is None else place(values.shape, values.dtype, values=values).view

    arguments: dict[str, Any] = {
        **{name: array.view for name, array in given.items()},
        **{
            name: placed(name)
            for name in ("target", "weight", "pixel_weight", "upstream", "normalizer")
        },
        "seed": place((1,), np.int64, values=np.array([SEED])).view,
        "draws": case.draws,
        "antithetic": case.antithetic,
        "ignore_index": case.ignore_index,
        "dtype": case.dtype,
        "as_strided": case.layout == "forced",
        **{name: output.view for name, output in outputs.items()},
    }
    if case.partial:
        partials = host.expected_cross_entropy_partials(**arguments)
        outputs["partial"] = place((partials,), np.float64)
        arguments["partial"] = outputs["partial"].view
    host.expected_cross_entropy(**arguments)
    for name, output in outputs.items():
        output.check_surroundings(name)
    for name, array in given.items():
        assert_unchanged(array, before[name])
    return {name: np.array(output.view) for name, output in outputs.items()}


def check(case: Case, inputs: Inputs, results: dict[str, Array]) -> None:
    eps, n = epsilon(case.dtype), case.images
    mean, scale = pixels_last(inputs.mean), pixels_last(inputs.scale)
    target = inputs.target.reshape(n, -1)
    pixel_weight = None if inputs.pixel_weight is None else inputs.pixel_weight.reshape(n, -1)
    expected = references.expected_cross_entropy(
        mean,
        scale,
        target,
        inputs.weight,
        pixel_weight,
        case.ignore_index,
        case.draws,
        case.antithetic,
        SEED,
    )
    upstream = np.ones(target.shape)
    if inputs.upstream is not None:
        is_map = inputs.upstream.ndim > 0
        upstream = upstream * (inputs.upstream.reshape(n, -1) if is_map else float(inputs.upstream))
    if inputs.normalizer is not None:
        upstream = upstream / inputs.normalizer[0]
    upstream = np.where(expected.valid, upstream, 0.0)
    # Errors of a draw's logits, relative to the largest of them.
    with np.errstate(invalid="ignore"):
        spread = 2 * np.abs(mean).max(1) + 2 * LARGEST * np.abs(scale).sum(1)
    size = np.where(expected.valid, 1 + np.nan_to_num(spread), 1)
    weights = np.ones(target.shape) if pixel_weight is None else np.nan_to_num(pixel_weight)
    tolerance = 16 * eps * size * weights
    if "loss" in results:
        assert_close("loss", results["loss"].reshape(n, -1), expected.loss, tolerance)
    if "partial" in results:
        allowed = tolerance.sum() + 1e-12
        total = np.array(results["partial"].sum())
        assert_close("partial", total, np.array(expected.loss.sum()), allowed)
    if "grad_pixel_weight" in results:
        assert_close(
            "grad_pixel_weight",
            results["grad_pixel_weight"].reshape(n, -1),
            np.where(expected.valid, expected.unweighted * upstream, 0.0),
            16 * eps * size * np.abs(upstream),
        )
    relative, absolute = rounding(case.dtype)
    for name, derivative in (("grad_mean", expected.of_mean), ("grad_scale", expected.of_scale)):
        if name not in results:
            continue
        actual = pixels_last(decode(results[name], case.dtype))
        gradient = derivative * upstream[:, None]
        slack = LARGEST * (tolerance * np.abs(upstream))[:, None]
        assert_close(
            name, actual, gradient, np.abs(gradient) * relative + absolute + slack + 1e-300
        )
        ignored = ~np.broadcast_to(expected.valid[:, None], gradient.shape)
        assert not actual[ignored].any(), "an ignored pixel has a gradient"
    bad = results["bad_target"]
    if expected.bad.any():
        assert bad[0] == 1
        assert bad[1] in target[expected.bad].astype(np.int64)
    else:
        assert bad.tolist() == [0, 0]


def verify(host: ModuleType, case: Case, inputs: Inputs | None = None) -> dict[str, Array]:
    inputs = make_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    check(case, inputs, results)
    return results


def random_case(number: int, dtype: str, layout: str, triangular: bool) -> Case:
    """What a grid of types, layouts and kinds leaves open, drawn."""
    generator = np.random.default_rng([number, DTYPES.index(dtype), LAYOUTS.index(layout)])

    def either(p: float = 0.5) -> bool:
        return bool(generator.random() < p)

    antithetic = either()
    draws = int(generator.choice([1, 2, 4, 6, 16, 22]))
    return Case(
        dtype,
        layout,
        int(generator.choice([2, 3, 7, 19])),
        triangular,
        draws + draws % 2 if antithetic else draws,
        antithetic,
        spatial=((7, 5), (33,), (2, 3, 4))[int(generator.integers(3))],
        scale_layout=layout if layout == "forced" else str(generator.choice(LAYOUTS[:5])),
        target_type=TARGET_TYPES[int(generator.integers(len(TARGET_TYPES)))],
        weight=either(),
        pixel_weight=either(),
        ignore_index=int(generator.choice([255, 0, 1])),
        ignored=float(generator.choice([0.0, 0.3, 1.0], p=[0.3, 0.6, 0.1])),
        upstream=str(generator.choice(["none", "scalar", "map"])),
        divided=either(),
        loss=either(),
        partial=either(0.7),
        grad_mean=either(0.8),
        grad_scale=either(0.8),
        grad_pixel_weight=either(),
        seed=number,
    )


CASES = [
    random_case(number, dtype, layout, triangular)
    for number, dtype in enumerate(DTYPES)
    for layout in LAYOUTS
    for triangular in (False, True)
]


@pytest.mark.parametrize("case", thinned(CASES), ids=str)
def test_expected_cross_entropy(host: ModuleType, case: Case) -> None:
    verify(host, case)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("draws", [2, 8, 14, 128, 130, 256, 258, 512])
@pytest.mark.parametrize("triangular", [False, True])
def test_teams(host: ModuleType, triangular: bool, draws: int, antithetic: bool) -> None:
    """Of every size, with few numbers of a thread and with many, and with draws to spare."""
    case = Case(
        classes=3,
        triangular=triangular,
        draws=draws,
        antithetic=antithetic,
        spatial=(19,),
        weight=True,
        pixel_weight=True,
        upstream="map",
        divided=True,
        grad_pixel_weight=True,
    )
    verify(host, case)


@pytest.mark.parametrize("draws", [8, 64, 256])
@pytest.mark.parametrize("triangular", [False, True])
def test_teams_in_double_precision(host: ModuleType, triangular: bool, draws: int) -> None:
    for antithetic in (False, True):
        case = Case("f64", "planar", 3, triangular, draws, antithetic, spatial=(19,))
        verify(host, case)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_more_draws_than_a_warp_has_room_for(host: ModuleType, dtype: str) -> None:
    most = 256 if dtype == "f64" else 512
    for antithetic in (False, True):
        case = Case(dtype, draws=most + 2, antithetic=antithetic)
        with pytest.raises(ValueError, match=f"num_draws: expected at most {most} on a GPU, got"):
            run(host, case, make_inputs(case))


@pytest.mark.parametrize(
    ("classes", "triangular"),
    thinned([(c, t) for c in (19, 23, 24, 47, 48, 95, 96) for t in (False, True)]),
)
def test_numbers_that_fit_in_shared_memory(
    host: ModuleType, classes: int, triangular: bool
) -> None:
    """By blocks of as many threads as there is room for, and where there is room for no warp's."""
    case = Case(classes=classes, triangular=triangular, draws=8, images=1, spatial=(9,))
    inputs = make_inputs(case)
    verify(host, case, inputs)
    bytes_ = shared_bytes(host, lambda: run(host, case, inputs))
    assert (bytes_ > 16 * 32 * classes) == (classes < 96)


@pytest.mark.parametrize("triangular", [False, True])
def test_more_pixels_than_blocks_have(host: ModuleType, triangular: bool) -> None:
    verify(host, Case(classes=2, triangular=triangular, spatial=(1500,), ignored=0.5))


@pytest.mark.parametrize("triangular", [False, True])
def test_targets_that_are_no_class(host: ModuleType, triangular: bool) -> None:
    case = Case(triangular=triangular, grad_pixel_weight=True, partial=False)
    inputs = make_inputs(case)
    inputs.target[0, 7] = inputs.target[1, 20] = -3
    verify(host, case, inputs)
    inputs.target[:] = 17
    verify(host, case, inputs)


@pytest.mark.parametrize("draws", [16, 130])
def test_bad_targets_are_reported_once_a_warp(host: ModuleType, draws: int) -> None:
    case = Case(classes=3, draws=draws, images=1, spatial=(256,))
    inputs = make_inputs(case)
    inputs.target[:] = 17
    assert threads_of_report(host, lambda: run(host, case, inputs)) == 32


def test_extremes(host: ModuleType) -> None:
    """Masked classes, certain ones, and infinite logits, which have no softmax."""
    case = Case(classes=3, images=1, spatial=(6,), ignored=0.0, draws=8)
    inputs = make_inputs(case)
    inputs.mean[0, :, :] = np.array([0.0, 1.0, 2.0])[:, None]
    inputs.mean[0, 2, 0] = -np.inf  # masked, not the label
    inputs.mean[0, 2, 1] = -np.inf  # the label has no chance
    inputs.mean[0, :, 2] = [1e4, 0.0, -1e4]
    inputs.mean[0, 1, 3] = np.inf
    inputs.scale[0, :, 4] = 1e3
    inputs.mean[0, :, 5] = [1e4, 0.0, 0.0]
    inputs.target[0] = [0, 2, 0, 0, 1, 1]
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    loss = results["loss"][0]
    assert np.isfinite(loss[[0, 2, 4]]).all()
    assert loss[2] == 0
    np.testing.assert_allclose(loss[5], 1e4, rtol=1e-3)  # whatever its neighbours' are
    assert loss[1] == np.inf
    assert np.isnan(loss[3])
    for name in ("grad_mean", "grad_scale"):
        assert np.isfinite(results[name][0][:, [0, 2, 4, 5]]).all(), name


def test_no_pixels(host: ModuleType) -> None:
    for spatial in ((0,), (3, 0)):
        case = Case(spatial=spatial)
        results = run(host, case, make_inputs(case))
        assert results["partial"].shape == (0,)


def test_antithetic_draws_cancel_what_is_odd(host: ModuleType) -> None:
    """Of two classes of mean 0, whose probabilities change places with the sign."""
    case = Case(classes=2, draws=2, antithetic=True, ignored=0.0)
    inputs = make_inputs(case)
    inputs.mean[:] = 0
    results = run(host, replace(case, grad_scale=False), inputs)
    np.testing.assert_allclose(results["loss"], np.log(2), rtol=1e-6)
