"""The ranks of a run started by torchrun, from the environment it sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist


class RankError(ValueError):
    """An environment that makes no ranks."""


class Ranks(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that reports."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The named device; of CUDA without an index, and several ranks, one for each."""
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and self.size > 1:
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return device


ALONE = Ranks()
"""Of a single process."""


def ranks_of_environment() -> Ranks:
    """From ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; a single rank where they are not set.

    Raises:
        RankError: they are no whole numbers, or the rank is not below the size.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    texts = {name: os.environ.get(name) for name in names}
    if texts["RANK"] is None and texts["WORLD_SIZE"] in (None, "1"):
        return ALONE
    try:
        rank, size = (int(os.environ[name]) for name in names[:2])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
    except (KeyError, ValueError):
        raise RankError(
            f"expected the whole numbers RANK and WORLD_SIZE in the environment, got {texts}"
        ) from None
    if not 0 <= rank < size or local_rank < 0:
        raise RankError(f"expected 0 <= RANK < WORLD_SIZE, got {texts}")
    return Ranks(rank, size, local_rank)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """The default process group of several ranks: nccl for CUDA, gloo for the CPU.

    Raises:
        RankError: the environment does not tell where the ranks meet, or they do not meet.
    """
    if ranks.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise RankError(f"rank {ranks.rank} of {ranks.size} finds no others ({error})") from error
    try:
        yield
    finally:
        dist.destroy_process_group()
