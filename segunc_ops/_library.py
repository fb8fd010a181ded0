"""Loads the native libraries, describes their operators to tracing, chooses native or reference."""

from __future__ import annotations

import os
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._version import __version__
from .reference import accumulate_dtype

_NAMES = {"cpu": "segunc_ops_cpu.so", "cuda": "segunc_ops_cuda.so"}
_BACKENDS = ("auto", "native", "reference")

ops: Any = torch.ops.segunc_ops


def _load() -> dict[str, str | None]:
    """Loads what there is; per library None, or why it could not be loaded."""
    folder = Path(__file__).parent
    failures: dict[str, str | None] = {}
    for device, name in _NAMES.items():
        if device == "cuda":
            if torch.version.cuda is None:
                failures[device] = "this torch is built without CUDA"
                continue
            if failures["cpu"] is not None:
                failures[device] = "it needs the CPU library"
                continue
        try:
            torch.ops.load_library(str(folder / name))
            failures[device] = None
        except OSError as error:
            missing = not (folder / name).exists()
            failures[device] = f"{name} was not built" if missing else str(error)
    return failures


_failures = _load()
for _device in ("cpu",) if torch.version.cuda is None else _NAMES:
    if _failures[_device] is not None:
        warnings.warn(
            f"segunc_ops: no native kernels on {_device} ({_failures[_device]}); the slower "
            "pure-PyTorch reference is used there",
            RuntimeWarning,
            stacklevel=2,
        )


class _Choice(threading.local):
    def __init__(self) -> None:
        # Of the instance: torch.compile does not notice when it comes to hide a class's attribute.
        self.backend: str | None = None


_choice = _Choice()


def _check_backend(name: str, where: str) -> str:
    if name not in _BACKENDS:
        raise ValueError(f"{where}: expected one of {_BACKENDS}, got {name!r}")
    return name


_default_backend = _check_backend(
    os.environ.get("SEGUNC_OPS_BACKEND", "auto"), "SEGUNC_OPS_BACKEND"
)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Chooses who computes, for the calls of this thread inside the ``with`` block.

    ``"auto"`` takes the native kernels where there are any (the default, which the environment
    variable ``SEGUNC_OPS_BACKEND`` changes), ``"native"`` insists on them, ``"reference"`` takes
    the pure-PyTorch specification.
    """
    before = _choice.backend
    _choice.backend = _check_backend(name, "backend")
    try:
        yield
    finally:
        _choice.backend = before


def is_native(device: torch.device) -> bool:
    """Whether a call on ``device`` goes to the native kernels."""
    chosen = _choice.backend or _default_backend
    if chosen == "reference":
        return False
    available = _failures.get(device.type, "there are no kernels for it") is None
    if chosen == "native" and not available:
        why = _failures.get(device.type, "there are no kernels for it")
        raise RuntimeError(f"backend 'native': no native kernels on {device.type} ({why})")
    return available


def check() -> None:
    """Raises the :class:`IndexError` of an out-of-range target that a CUDA kernel has met.

    Kernels never synchronise: such a pixel's loss is NaN, no metric counts it, and the error is
    raised by the next call of any operation. This function asks without one, after waiting for
    the device.
    """
    if _failures["cuda"] is None and torch.cuda.is_available():
        torch.cuda.synchronize()
        ops.check()


def build_info() -> dict[str, Any]:
    """Versions, the CPU instruction set in use, CUDA targets and what is loaded."""
    native_cpu = _failures["cpu"] is None
    native_cuda = _failures["cuda"] is None
    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": _choice.backend or _default_backend,
        "cpu": "native" if native_cpu else f"reference ({_failures['cpu']})",
        "cpu_isa": ops.cpu_isa() if native_cpu else None,
        "cpu_isas": ops.cpu_isas().split() if native_cpu else [],
        "cuda": "native" if native_cuda else f"reference ({_failures['cuda']})",
        "cuda_targets": ops.cuda_targets().split() if native_cuda else [],
    }


def _register_fakes() -> None:
    """Shapes and strides of the results, for torch.compile, torch.export and meta tensors."""

    def gradients(
        input: Tensor, target: Tensor, grad_input: bool, grad_pixel_weight: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulate_dtype(input.dtype)
        return (
            torch.empty_like(input) if grad_input else input.new_empty((0,)),
            input.new_empty(target.shape if grad_pixel_weight else (0,), dtype=dtype),
        )

    def loss_and_gradients(
        input: Tensor, target: Tensor, reduction: int, grad_input: bool, grad_pixel_weight: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = target.shape if reduction == 0 else ()
        return (
            input.new_empty(shape, dtype=accumulate_dtype(input.dtype)),
            input.new_empty((), dtype=torch.float64),
            *gradients(input, target, grad_input, grad_pixel_weight),
        )

    # The options end in grad_input and grad_pixel_weight, and start as told here.
    def cross_entropy_forward(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pixel_weight: Tensor | None,
        ignore_index: int,
        reduction: int,
        *options: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return loss_and_gradients(input, target, reduction, *options[-2:])

    def cross_entropy_backward(
        grad_output: Tensor, input: Tensor, target: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        return gradients(input, target, *options[-2:])

    for name in ("cross_entropy", "upsampled_cross_entropy"):
        torch.library.register_fake(f"segunc_ops::{name}_forward", cross_entropy_forward)
        torch.library.register_fake(f"segunc_ops::{name}_backward", cross_entropy_backward)

    def nothing(*_: Any) -> None:
        return None

    for name in (
        "scale_",
        "accumulate_statistics_",
        "accumulate_counts_",
        "accumulate_map_counts_",
        "accumulate_patch_counts_",
    ):
        torch.library.register_fake(f"segunc_ops::{name}", nothing)

    def maps(like: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        dtype = accumulate_dtype(like.dtype)
        return [like.new_empty(shape, dtype=torch.int64)] + [
            like.new_empty(shape, dtype=dtype) for _ in range(5)
        ]

    @torch.library.register_fake("segunc_ops::predictive_statistics")
    def _(
        samples: list[Tensor], size: list[int], align_corners: bool, return_mean: bool
    ) -> tuple[Tensor, ...]:
        first = samples[0]
        images, classes, *pixels = first.shape
        pixels = list(size) or pixels
        mean = first.new_empty(
            (images, classes, *pixels) if return_mean else (0,),
            dtype=accumulate_dtype(first.dtype),
        )
        return (*maps(first, (images, *pixels)), mean)

    @torch.library.register_fake("segunc_ops::finalize_statistics")
    def _(
        mean: Tensor, squared_deviations: Tensor, entropy_sum: Tensor, count: int
    ) -> tuple[Tensor, ...]:
        return tuple(maps(mean, tuple(entropy_sum.shape)))

    @torch.library.register_fake("segunc_ops::connected_components")
    def _(labels: Tensor, connectivity: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
        return (
            labels.new_empty(labels.shape, dtype=torch.int32),
            labels.new_empty(labels.shape[:1], dtype=torch.int64),
        )

    @torch.library.register_fake("segunc_ops::component_mean")
    def _(
        values: Tensor,
        labels: Tensor,
        connectivity: int,
        ignore_index: int | None,
        bound: float | None,
    ) -> Tensor:
        return values.new_empty(values.shape)


def _register_raising_autograd() -> None:
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

    for name in ("cross_entropy", "upsampled_cross_entropy"):
        register(f"{name}_forward")
        register(f"{name}_backward")


def _register_autograd() -> None:
    """The gradient of the bare operators that are linear, hence cannot lose a derivative."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, labels, ctx.connectivity, ctx.ignore_index, _ = inputs
        ctx.save_for_backward(labels)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (labels,) = ctx.saved_tensors
        grad = ops.component_mean(
            grad.contiguous(), labels, ctx.connectivity, ctx.ignore_index, None
        )
        return grad, None, None, None, None

    torch.library.register_autograd(
        "segunc_ops::component_mean", backward, setup_context=setup_context
    )


if _failures["cpu"] is None:
    _register_fakes()
    _register_raising_autograd()
    _register_autograd()
