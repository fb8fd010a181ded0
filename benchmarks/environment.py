"""Where a measurement was taken: the device, its caches, and the versions of everything used."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import segunc_ops

# What the kernels' instruction-set variants depend on; a full list of flags would hide it.
_RELEVANT_FLAGS = (
    "sse4_2",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "amx_bf16",
)
_FALLBACK_CACHE_BYTES = 64 << 20
_BUSY = 0.5


def _cpu_info(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def device_name(device: torch.device) -> str:
    """What the device is called: the GPU's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = _cpu_info("model name") or platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """`name` as part of a file name: ``"NVIDIA H200"`` becomes ``"nvidia-h200"``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def last_level_cache_bytes(device: torch.device) -> int:
    """The size in bytes of the largest cache that repeated calls on one buffer could hit."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return int(getattr(properties, "L2_cache_size", 0)) or _FALLBACK_CACHE_BYTES
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1:] in units
    ]
    return max(sizes, default=_FALLBACK_CACHE_BYTES)


def check_native(device: torch.device) -> None:
    """Refuses to measure the reference under the name of the kernels.

    Raises:
        RuntimeError: segunc_ops has no native library for `device`, or is told not to use it.
    """
    info = segunc_ops.build_info()
    if info[device.type] != "native" or info["backend"] == "reference":
        raise RuntimeError(
            f"benchmarks: expected native kernels on {device.type}, got {info[device.type]} with "
            f"backend {info['backend']!r}"
        )


def warn_if_busy() -> None:
    """Says so on stderr if others are using the processor.

    Threads that wait for each other by spinning then lose whole time slices, some implementations
    far more of them than others.
    """
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > _BUSY * cores:
        print(
            f"benchmarks: the machine is busy (load {load:.1f} on {cores} cores); "
            "the figures will not be comparable",
            file=sys.stderr,
        )


@functools.cache
def _installed(packages: tuple[str, ...]) -> str:
    found = []
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def describe(device: torch.device, peers: tuple[str, ...]) -> dict[str, str | int]:
    """What every row of the results carries besides its figures.

    Args:
        device: where it was measured.
        peers: the packages that ours are compared with, of which some may not be installed.
    """
    info = segunc_ops.build_info()
    here: dict[str, str | int] = {
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "cpu_flags": " ".join(f for f in _RELEVANT_FLAGS if f in _cpu_info("flags").split()),
        "isa": str(info["cpu_isa"]),
        "segunc_ops": str(info["version"]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda or ""),
        "peers": _installed(peers),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        here["isa"] = f"sm_{major}{minor} of {' '.join(info['cuda_targets'])}"
    return here
