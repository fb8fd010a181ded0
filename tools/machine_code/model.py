"""What bounds a kernel's main loop on a GPU, and the share of the copy bandwidth that follows.

An element takes as long as the slowest of what it needs: its bytes at the copy bandwidth, its warp
instructions at one a clock and partition, those of each pipe at the pipe's lanes, and its loads at
the bytes in flight by the latency (Little's law). The model has no caches, bank conflicts, stalls
or tails: it is what a kernel cannot exceed, and measured ones stay 5 to 15 points below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Gpu:
    """A GPU of compute capability 9.0.

    Attributes:
        name: What it is called.
        copy: Bytes a second of a copy of a large buffer, read and written.
        multiprocessors: Each with four partitions that issue one warp instruction a clock.
        clock: In Hz. NVIDIA gives 1.755 GHz as the boost clock of the H100 PCIe; other boards reach
            up to 1.98 GHz, and less under a limit of power.
        latency: Of a load from memory, in seconds.
    """

    name: str
    copy: float
    multiprocessors: int = 132
    clock: float = 1.755e9
    latency: float = 0.8e-6


H100 = Gpu("H100", 3.0e12)
H200 = Gpu("H200", 4.3e12)

# Threads of a multiprocessor whose instruction a pipe takes in a clock.
LANES = {"issue": 4 * WARP, "FMA": 128, "ALU": 64, "XU": 16, "LSU": 32, "FP64": 64}


@dataclass(frozen=True)
class Bound:
    """What limits a kernel, and the share of the copy bandwidth that it leaves."""

    name: str
    share: float


def bound(
    gpu: Gpu,
    per_element: Mapping[str, float],
    element_bytes: float,
    loaded_bytes: float,
    in_flight: float,
) -> Bound:
    """The slowest of what an element needs.

    Args:
        gpu: Where.
        per_element: A thread's instructions an element, by pipe.
        element_bytes: What an element moves, read and written.
        loaded_bytes: What of it is read.
        in_flight: Bytes of loads that are on their way to a multiprocessor.
    """
    memory = element_bytes / gpu.copy
    seconds = {"memory": memory}
    for pipe, lanes in LANES.items():
        threads = gpu.multiprocessors * lanes * gpu.clock
        seconds[pipe] = per_element.get(pipe, 0.0) / threads
    if loaded_bytes:
        if in_flight:
            seconds["latency"] = loaded_bytes * gpu.latency / (in_flight * gpu.multiprocessors)
        else:
            seconds["latency"] = float("inf")
    slowest = max(seconds, key=seconds.__getitem__)
    return Bound(slowest, memory / seconds[slowest])


def half_of_the_slots(gpu: Gpu, element_bytes: float) -> float:
    """Instructions an element that take half of the issue slots while its bytes move."""
    return gpu.multiprocessors * LANES["issue"] * gpu.clock * element_bytes / gpu.copy / 2
