"""Runs a function on several gloo ranks, each a process of its own, and collects what they find."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

Work = Callable[[int, int, Path], Any]
# Of a rank that waits in vain; no healthy exchange here takes a second.
_TIMEOUT = timedelta(seconds=60)


def _work(rank: int, function: Work, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
    )
    try:
        torch.save(function(rank, size, folder), folder / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_ranks(function: Work, size: int, folder: Path) -> list[Any]:
    """What `function(rank, size, folder)`, of a module's top level, returns on each rank.

    Args:
        function: runs with an initialised default group.
        size: number of ranks.
        folder: empty; ranks meet and leave their results there.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs gloo")
    multiprocessing.spawn(_work, (function, size, folder), nprocs=size)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(size)]
