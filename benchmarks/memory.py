"""Peak memory of a call, and the state of the heap that a call meets."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_DEFAULT_MMAP_MAX = 1 << 16
_MMAP_THRESHOLD = 32 << 20


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory in bytes that torch's allocator held during `run`, above what it held before.

    Tensors that exist already, the inputs above all, do not count; results do.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # One cycle is all there is: acc_events keeps torch 2.11 from warning that others are lost.
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as recorded:
        run()
    # The raw events: profile.events() attributes allocations to operators and loses their order.
    results = recorded.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def settle_heap() -> None:
    """Fixes malloc's thresholds where a long-running process ends up.

    They otherwise adapt to whatever was freed last, and the first implementations of a run would
    meet another allocator than the later ones. What was freed goes back to the system: large
    results are fresh pages.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_THRESHOLD)
        libc.malloc_trim(0)


@contextmanager
def warm_heap(size: int) -> Iterator[None]:
    """While active, the next `size` bytes asked for are memory that has been touched before.

    Freed memory is kept and mappings are avoided, so that repeated calls write to warm buffers;
    aligned allocations do not always land where the last one was freed, hence a region rather
    than a call before. On leaving, the memory goes back to the system, and others get fresh pages
    again. Does nothing where the C library offers no control.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = (ctypes.c_void_p,), None
    try:
        if region := libc.malloc(size):
            ctypes.memset(region, 1, size)
            libc.free(region)
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        settle_heap()
