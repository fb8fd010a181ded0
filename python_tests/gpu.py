"""What tests on a GPU share: results moved to the CPU, memory, graphs, synchronisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from python_tests.comparison import assert_same_bits


def on_cpu(result: Any) -> Any:
    """A tensor, None or a (named) tuple of these, on the CPU."""
    if isinstance(result, tuple):
        moved = [on_cpu(member) for member in result]
        return type(result)(*moved) if hasattr(result, "_fields") else tuple(moved)
    return None if result is None else result.cpu()


def peak_memory(step: Callable[[], object]) -> int:
    """The most bytes that a step holds at once, beyond what was there before it."""
    step()  # what is allocated once in a process is no part of it
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def assert_graph_replays(
    calls: Callable[[], Sequence[Tensor]], refill: Callable[[], object]
) -> None:
    """Captures calls in a CUDA graph and compares replays with the calls, on new inputs each."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            calls()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = calls()
    for _ in range(3):
        with torch.no_grad():
            refill()
        graph.replay()
        for number, (a, b) in enumerate(zip(captured, calls(), strict=True)):
            assert_same_bits(a, b, name=f"result {number}")


@contextmanager
def synchronisation_raises() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
