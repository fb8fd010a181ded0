"""The two calls that a loss of the Dice family is; what they write is watched."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import numpy as np

from python_tests.native.harness import (
    Array,
    accumulate_type,
    assert_unchanged,
    place,
    place_elements,
    place_output,
)


class AnyCase(Protocol):
    """What cases of classes and of regions have in common."""

    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def classes(self) -> int: ...
    @property
    def pixels(self) -> tuple[int, ...]: ...
    @property
    def tables(self) -> int: ...
    @property
    def by_image(self) -> bool: ...
    @property
    def squared(self) -> bool: ...
    @property
    def cross_entropy(self) -> bool: ...
    @property
    def grad_layout(self) -> str | None: ...
    @property
    def grad_input(self) -> bool: ...
    @property
    def overwrites(self) -> bool: ...
    @property
    def grad_pixel_weight(self) -> bool: ...


class AnyInputs(Protocol):
    """The same of their inputs."""

    logits: Array
    pixel_weight: Array | None
    coefficients: Array
    factor: Array
    upstream: Array


def run_both(
    host: ModuleType, loss: str, case: AnyCase, inputs: AnyInputs, own: dict[str, Any]
) -> dict[str, Array]:
    """The sums, and the gradient of any coefficients.

    Args:
        host: the module under test.
        loss: ``dice`` or ``dice_bce``, which its functions are called by.
        case: what is run.
        inputs: its arrays.
        own: the arguments that this loss alone has.
    """
    logits = place_elements(inputs.logits, case.dtype, case.layout)
    before = logits.buffer.copy()
    outputs = {
        "bad_target": place((2,), np.int64, values=np.zeros(2, np.int64)),
        "sums": place((case.tables, 3, case.classes), np.float64),
        "surprise": place((), np.float64),
    }
    arguments: dict[str, Any] = {
        **own,
        "input": logits.view,
        "pixel_weight": inputs.pixel_weight,
        "by_image": case.by_image,
        "squared": case.squared,
        "cross_entropy": case.cross_entropy,
        "dtype": case.dtype,
        "as_strided": case.layout == "forced",
        "bad_target": outputs["bad_target"].view,
    }
    of_sums = {name: outputs[name].view for name in ("sums", "surprise")}
    partial = place((getattr(host, f"{loss}_partials")(**arguments),), np.float64)
    getattr(host, f"{loss}_sums")(**arguments, **of_sums, partial=partial.view)

    assert_unchanged(logits, before)

    if case.overwrites:
        outputs["grad_input"] = logits
    elif case.grad_input:
        layout = case.grad_layout or case.layout
        outputs["grad_input"] = place_output(inputs.logits.shape, case.dtype, layout)
    if case.grad_pixel_weight:
        outputs["grad_pixel_weight"] = place(case.pixels, accumulate_type(case.dtype))
    for name in ("grad_input", "grad_pixel_weight"):
        if name in outputs:
            arguments[name] = outputs[name].view
    for name in ("coefficients", "factor", "upstream"):
        arguments[name] = getattr(inputs, name)
    scratch = place((getattr(host, f"{loss}_scratch_bytes")(**arguments),), np.uint8)
    getattr(host, f"{loss}_gradient")(**arguments, scratch=scratch.view)
    for name, output in {**outputs, "partial": partial, "scratch": scratch}.items():
        output.check_surroundings(name)
    if not case.overwrites:
        assert_unchanged(logits, before)
    return {name: np.array(output.view) for name, output in outputs.items()}
