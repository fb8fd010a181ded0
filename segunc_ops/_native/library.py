"""Loads the native libraries and describes their operators to tracing and to autograd."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

_NAMES = {"cpu": "segunc_ops_cpu.so", "cuda": "segunc_ops_cuda.so"}

ops: Any = torch.ops.segunc_ops
F = TypeVar("F", bound=Callable[..., Any])


def cuda_version(number: int) -> str:
    """13020, as CUDA writes its versions, is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def driver_problem(driver: int, runtime: int) -> str | None:
    """Why no kernel would run, if the NVIDIA driver is too old for the runtime that they link.

    Args:
        driver: the newest CUDA that it supports; 0 without a driver, where there is no GPU either.
        runtime: the CUDA that kernels were compiled by; any driver of its major version runs it.
    """
    if driver == 0 or driver // 1000 >= runtime // 1000:
        return None
    return (
        f"the NVIDIA driver supports CUDA {cuda_version(driver)}, the kernels need a driver for "
        f"CUDA {runtime // 1000}"
    )


def _load() -> dict[str, str | None]:
    """Loads what there is; per library None, or why it could not be loaded."""
    folder = Path(__file__).parent.parent
    found: dict[str, str | None] = {}
    for device, name in _NAMES.items():
        if device == "cuda":
            if torch.version.cuda is None:
                found[device] = "this torch is built without CUDA"
                continue
            if found["cpu"] is not None:
                found[device] = "it needs the CPU library"
                continue
        try:
            torch.ops.load_library(str(folder / name))
            if device == "cpu":
                ops.cpu_isa()
                found[device] = None
            else:
                found[device] = driver_problem(*ops.cuda_versions())
        except OSError as error:
            missing = not (folder / name).exists()
            found[device] = f"{name} was not built" if missing else str(error)
        except RuntimeError as error:  # it has no code for this processor
            found[device] = str(error).splitlines()[0]
    return found


failures = _load()
"""By type of device None, or why there are no native kernels."""

for _device in ("cpu",) if torch.version.cuda is None else _NAMES:
    if failures[_device] is not None:
        warnings.warn(
            f"segunc_ops: no native kernels on {_device} ({failures[_device]}); the slower "
            "pure-PyTorch reference is used there",
            RuntimeWarning,
            stacklevel=2,
        )


def fake(*names: str) -> Callable[[F], F]:
    """Makes a function tell the results' shapes, types and strides of the operators so named.

    torch.compile, torch.export and meta tensors take it in place of the kernels.
    """

    def register(function: F) -> F:
        if failures["cpu"] is None:
            for name in names:
                torch.library.register_fake(f"segunc_ops::{name}", function)
        return function

    return register


def returns_nothing(*_: Any) -> None:
    """The fake of an operator that writes to its arguments alone."""


def refuse_gradient(*names: str) -> None:
    """Makes differentiating a bare operator an error instead of a gradient that is missing.

    The Functions of :mod:`segunc_ops.autograd` pass this by. A program of torch.export keeps the
    operators and loses the Functions.
    """

    def register(name: str) -> None:
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(
                f"segunc_ops::{name} is not differentiable by itself, as in a program of "
                "torch.export; differentiate segunc_ops.functional, or export the loss inside "
                "`with segunc_ops.backend('reference')`"
            )

        torch.library.register_autograd(f"segunc_ops::{name}", backward)

    if failures["cpu"] is None:
        for name in names:
            register(name)


def linear_gradient(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]
) -> None:
    """Gives a bare operator its gradient: one that is linear, hence cannot lose a derivative."""
    if failures["cpu"] is None:
        torch.library.register_autograd(
            f"segunc_ops::{name}", backward, setup_context=setup_context
        )


def check() -> None:
    """Raises the :class:`IndexError` of an out-of-range target that a CUDA kernel has met.

    Or the :class:`ValueError` of a region's target that is neither 0 nor 1. Kernels never
    synchronise: such a pixel's loss is NaN, no metric counts it, and the error is raised by the
    next call of any operation. This function asks without one, after waiting for the device.
    """
    if failures["cuda"] is None and torch.cuda.is_available():
        torch.cuda.synchronize()
        ops.check()
