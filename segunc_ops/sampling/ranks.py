"""What the ranks of a process group tell each other before states are exchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist


class Offer(NamedTuple):
    """The samples of a rank, as it tells the others before states are exchanged."""

    num_samples: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str


def check_group(caller: str, group: dist.ProcessGroup | None) -> None:
    """Raises unless this process is one of the group's ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{caller}: expected an initialised process group, got none; call "
            "torch.distributed.init_process_group first"
        )
    if dist.get_rank(group) < 0:
        raise ValueError(f"group: expected one that rank {dist.get_rank()} is in, got another")


@contextmanager
def explained(caller: str, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Says what a failed collective means."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{caller}: expected all {dist.get_world_size(group)} ranks to take part, but on rank "
            f"{dist.get_rank(group)} the exchange failed: {error}"
        ) from error


def check_offers(
    caller: str, every: Sequence[Offer | str | None], group: dist.ProcessGroup | None
) -> dict[int, Offer]:
    """What the ranks with samples offer; where it does not fit, every rank raises the same."""
    for rank, offer in enumerate(every):
        if isinstance(offer, str):
            raise RuntimeError(f"{caller}: rank {rank} failed with {offer}")
    offers = {rank: offer for rank, offer in enumerate(every) if isinstance(offer, Offer)}
    if not offers:
        return offers
    first, wanted = next(iter(offers.items()))
    for rank, offer in offers.items():
        for name in ("shape", "dtype", "device"):
            if getattr(offer, name) != getattr(wanted, name):
                kind = TypeError if name == "dtype" else ValueError
                raise kind(
                    f"{caller}: expected {name} {getattr(wanted, name)} like the samples of rank "
                    f"{first}, got {getattr(offer, name)} on rank {rank}"
                )
    served = [entry.partition(":")[0] for entry in dist.get_backend_config(group).split(",")]
    if wanted.device not in served:
        raise ValueError(
            f"{caller}: expected samples on {' or '.join(served)}, which the group's backend "
            f"serves, got {wanted.device}"
        )
    return offers
