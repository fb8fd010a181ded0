"""Runs of the kernels of uncertain binary labels, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from python_tests.native.harness import (
    Array,
    accumulate_type,
    assert_close,
    assert_unchanged,
    decode,
    encode,
    epsilon,
    place,
    place_elements,
    place_output,
    rounding,
    run_under_seeds,
)
from python_tests.native.label_uncertainty.references import Options, label_uncertainty

_DEFAULT = Options()


@dataclass(frozen=True)
class Case:
    dtype: str
    layout: str
    images: int = 2
    spatial: tuple[int, ...] = (33,)
    target_type: type = np.int64
    pixel_weight: bool = False
    bootstrap: bool = False
    ignore_index: int = -100
    ignored: float = 0.0
    upstream: str = "none"  # none, scalar, map
    divided: bool = False
    loss: bool = True
    partial: bool = True
    grad_mean: bool = True
    grad_log_variance: bool = True
    grad_pixel_weight: bool = False
    options: Options = _DEFAULT
    flag: bool = True  # of targets that are no label
    # An array that lies otherwise than `layout` says.
    apart: str = ""
    apart_layout: str = "unaligned"
    spread: float = 2.0
    seed: int = 0

    def __str__(self) -> str:
        spatial = "x".join(map(str, self.spatial)) or "scalar"
        return f"{self.dtype}-{self.layout}-{self.images}x{spatial}-{self.seed}"


@dataclass
class Inputs:
    mean: Array  # [N, 1, *spatial], float64, as stored
    log_variance: Array
    target: Array  # [N, *spatial]
    pixel_weight: Array | None
    bootstrap: Array | None
    upstream: Array | None
    normalizer: Array | None


def make_inputs(case: Case) -> Inputs:
    """NaN wherever nothing may be read."""
    generator = np.random.default_rng(case.seed)
    accumulate = accumulate_type(case.dtype)
    pixels = (case.images, *case.spatial)
    target = generator.integers(0, 2, pixels)
    target = np.where(generator.random(pixels) < case.ignored, case.ignore_index, target)
    target = target.astype(case.target_type)
    ignored = target == case.ignore_index  # a label may be the ignored one

    def numbers() -> Array:
        values = generator.normal(size=pixels) * case.spread
        values = decode(encode(values, case.dtype), case.dtype)
        return np.where(ignored, np.nan, values)[:, None]

    upstream = {
        "none": None,
        "scalar": np.array(generator.normal() * 8, accumulate),
        "map": np.where(ignored, np.nan, generator.normal(size=pixels)).astype(accumulate),
    }[case.upstream]
    weights = np.where(ignored, np.nan, generator.random(pixels) * 3).astype(accumulate)
    return Inputs(
        numbers(),
        numbers(),
        target,
        weights if case.pixel_weight else None,
        generator.random(case.images) < 0.5 if case.bootstrap else None,
        upstream,
        np.array([generator.random() * 50 + 1]) if case.divided else None,
    )


def run(host: ModuleType, case: Case, inputs: Inputs) -> dict[str, Array]:
    """One call; the outputs that the case asks for, and bad_target."""
    accumulate = accumulate_type(case.dtype)
    pixels = inputs.target.shape

    def layout_of(name: str, layout: str = "planar") -> str:
        return case.apart_layout if name == case.apart else layout

    read = {
        name: place_elements(getattr(inputs, name), case.dtype, layout_of(name, case.layout))
        for name in ("mean", "log_variance")
    }
    before = {name: placed.buffer.copy() for name, placed in read.items()}
    outputs = {}
    if case.flag:
        outputs["bad_target"] = place((2,), np.int64, values=np.zeros(2, np.int64))
    for name in ("grad_mean", "grad_log_variance"):
        if getattr(case, name):
            layout = layout_of(name, case.layout)
            outputs[name] = place_output(inputs.mean.shape, case.dtype, layout)
    for name in ("loss", "grad_pixel_weight"):
        if getattr(case, name):
            outputs[name] = place(pixels, accumulate, layout_of(name))

    def placed(name: str) -> Array | None:
        values = getattr(inputs, name)
        if values is None:
            return None
        return place(values.shape, values.dtype, layout_of(name), values).view

    arguments: dict[str, Any] = {
        **{name: placed.view for name, placed in read.items()},
        **{
            name: placed(name)
            for name in ("target", "pixel_weight", "bootstrap", "upstream", "normalizer")
        },
        **case.options._asdict(),
        "ignore_index": case.ignore_index,
        "dtype": case.dtype,
        "as_strided": case.layout == "forced",
        **{name: output.view for name, output in outputs.items()},
    }
    if case.partial:
        outputs["partial"] = place((host.label_uncertainty_partials(**arguments),), np.float64)
        arguments["partial"] = outputs["partial"].view
    host.label_uncertainty(**arguments)
    for name, output in outputs.items():
        output.check_surroundings(name)
    for name, given in read.items():
        assert_unchanged(given, before[name])
    return {name: np.array(output.view) for name, output in outputs.items()}


def check(case: Case, inputs: Inputs, results: dict[str, Array]) -> None:
    eps, n = epsilon(case.dtype), case.images
    target = inputs.target.reshape(n, -1).astype(np.int64)
    valid = target != case.ignore_index
    bad = valid & (target != 0) & (target != 1)
    counts = valid & ~bad

    def of_valid(values: Array | None, otherwise: float) -> Array:
        if values is None:
            return np.where(counts, otherwise, 0.0)
        return np.where(counts, values.reshape(n, -1), 0.0)

    may_flip = np.ones(n, bool) if inputs.bootstrap is None else inputs.bootstrap
    expected = label_uncertainty(
        of_valid(inputs.mean, 0),
        of_valid(inputs.log_variance, 0),
        target == 1,
        np.broadcast_to(may_flip[:, None], target.shape),
        case.options,
    )
    weights = of_valid(inputs.pixel_weight, 1)
    if inputs.upstream is not None and inputs.upstream.ndim == 0:
        upstream = of_valid(None, float(inputs.upstream))
    else:
        upstream = of_valid(inputs.upstream, 1)
    if inputs.normalizer is not None:
        upstream = upstream / inputs.normalizer[0]
    relative, absolute = rounding(case.dtype)

    def compare(name: str, wanted: Array, size: Array, stored: bool) -> None:
        if name not in results:
            return
        found = results[name]
        found = (decode(found, case.dtype) if stored else found).reshape(n, -1)
        # Exponentials under 2^-126 are 0.
        slack = 16 * eps * size + 1e-34
        if stored:
            slack = slack + np.abs(wanted) * relative * (1 + 8 * eps) + absolute
        assert_close(name, found, np.where(bad, np.nan, wanted), slack)
        assert not found[~valid].any(), f"{name}: an ignored pixel has one"

    factor = weights * upstream
    loss = expected.loss * weights
    compare("loss", loss, expected.loss_size * weights, False)
    compare(
        "grad_pixel_weight", expected.loss * upstream, expected.loss_size * abs(upstream), False
    )
    compare("grad_mean", expected.by_mean * factor, expected.by_mean_size * abs(factor), True)
    compare(
        "grad_log_variance",
        expected.by_log_variance * factor,
        expected.by_log_variance_size * abs(factor),
        True,
    )
    if "partial" in results:
        total = np.nan if bad.any() else loss.sum()
        allowed = 16 * eps * (expected.loss_size * weights).sum() + 1e-12
        assert_close("partial", np.array(results["partial"].sum()), np.array(total), allowed)
    if not case.flag:
        return
    flag = results["bad_target"]
    if bad.any():
        assert flag[0] == 1
        assert flag[1] in target[bad]
    else:
        assert flag.tolist() == [0, 0]


def verify(host: ModuleType, case: Case, inputs: Inputs | None = None) -> dict[str, Array]:
    inputs = make_inputs(case) if inputs is None else inputs
    results = run_under_seeds(host, lambda: run(host, case, inputs))
    check(case, inputs, results)
    return results
