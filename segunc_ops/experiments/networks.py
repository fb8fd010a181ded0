"""Trained networks of any number of checkpoints, told by their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .models import EncoderDecoder
from .training import CheckpointError, load_members, read_checkpoint


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of a model's parameters and buffers, names and types included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_networks(
    checkpoints: Iterable[Path], *, finished: bool = False
) -> dict[str, EncoderDecoder]:
    """All networks of some checkpoints by their digest, in its order: any order of files is one.

    Args:
        checkpoints: what `segunc train` has written; each holds one network or several.
        finished: whether their trainings must have come to their ends.

    Raises:
        CheckpointError: a file cannot be read or, where that matters, is of an interrupted
            training; the networks know different numbers of classes, or there is one twice.
    """
    networks: dict[str, EncoderDecoder] = {}
    first: tuple[Path, int] | None = None
    for path in checkpoints:
        for model in load_members(path, finished=finished):
            num_classes = model.num_classes
            first = first or (path, num_classes)
            if num_classes != first[1]:
                raise CheckpointError(
                    f"{path}: was trained for {num_classes} classes, {first[0]} for {first[1]}"
                )
            digest = weights_digest(model)
            if digest in networks:
                raise CheckpointError(
                    f"{path}: holds a member that is there already; train members with different "
                    "seeds"
                )
            networks[digest] = model
    return dict(sorted(networks.items()))


def trained_class_names(checkpoints: Iterable[Path]) -> tuple[str, ...]:
    """The class names that some checkpoints were trained with; numbers where they do not agree.

    Raises:
        CheckpointError: a file cannot be read.
    """
    states = [read_checkpoint(path) for path in checkpoints]
    # Checkpoints of older versions do not tell their data.
    told = {tuple(state["data"]["training"]["class_names"]) for state in states if "data" in state}
    if len(told) == 1:
        return told.pop()
    return tuple(f"class {c}" for c in range(states[0]["num_classes"]))


@contextmanager
def reproducible() -> Iterator[None]:
    """Puts the number of threads back, and lets cuDNN choose the same algorithm every time."""
    threads = torch.get_num_threads()
    try:
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
