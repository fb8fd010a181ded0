"""Chooses who computes: the native operators or the reference."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from .. import autograd, reference
from .._version import __version__
from .library import cuda_version, failures, ops

_BACKENDS = ("auto", "native", "reference")
_CPU = torch.device("cpu")


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


def implementation(device: torch.device) -> ModuleType:
    """Whose functions a call on ``device`` goes to; both modules have the same."""
    chosen = _choice.backend or _default_backend
    if chosen == "reference":
        return reference
    # The text of a device's type is made anew each time, at a tenth of what a small loss costs.
    kind = "cpu" if device == _CPU else device.type
    failure = failures.get(kind, "there are no kernels for it")
    if failure is None:
        return autograd
    if chosen == "native":
        raise RuntimeError(f"backend 'native': no native kernels on {kind} ({failure})")
    return reference


def build_info() -> dict[str, Any]:
    """Versions, the CPU instruction set in use, CUDA targets and what is loaded."""
    native_cpu = failures["cpu"] is None
    native_cuda = failures["cuda"] is None
    driver = ops.cuda_versions()[0] if native_cuda else 0
    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": _choice.backend or _default_backend,
        "cpu": "native" if native_cpu else f"reference ({failures['cpu']})",
        "cpu_isa": ops.cpu_isa() if native_cpu else None,
        "cpu_isas": ops.cpu_isas().split() if native_cpu else [],
        "cuda": "native" if native_cuda else f"reference ({failures['cuda']})",
        "cuda_targets": ops.cuda_targets().split() if native_cuda else [],
        "cuda_driver": cuda_version(driver) if driver else None,
    }
