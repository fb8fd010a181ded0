"""Trained networks of any number of checkpoints, told by their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .datasets import MAPPING
from .models import EncoderDecoder
from .training import CheckpointError, load_members, read_checkpoint
from .wording import number_of_classes


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of a model's parameters and buffers, names and types included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_classes_agree(path: Path, num_classes: int, first: Path, expected: int) -> None:
    """Raises a CheckpointError where a network knows another number of classes than the first."""
    if num_classes != expected:
        raise CheckpointError(
            f"{path}: was trained for {number_of_classes(num_classes)}, {first} for {expected}"
        )


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
            first = first or (path, model.num_classes)
            check_classes_agree(path, model.num_classes, *first)
            digest = weights_digest(model)
            if digest in networks:
                raise CheckpointError(
                    f"{path}: holds a member that is there already; train members with different "
                    "seeds"
                )
            networks[digest] = model
    return dict(sorted(networks.items()))


class TrainedLabels(NamedTuple):
    """What a training took the labels of its images for."""

    class_names: tuple[str, ...]
    ignore_index: int
    mapping: str
    """The words of ``--map``; "none" where labels were classes."""


def trained_labels(checkpoints: Iterable[Path]) -> dict[Path, TrainedLabels]:
    """What trainings took labels for, by their checkpoints, but for versions that did not tell.

    Raises:
        CheckpointError: a file cannot be read.
    """
    found = {}
    for path in checkpoints:
        state = read_checkpoint(path)
        if "data" in state:
            data = state["data"]["training"]
            mapping = data["contents"].get(MAPPING, "none")
            found[path] = TrainedLabels(tuple(data["class_names"]), data["ignore_index"], mapping)
    return found


def agreed_class_names(trained: Iterable[TrainedLabels]) -> tuple[str, ...] | None:
    """The class names of some trainings; None where they do not agree, or there is none."""
    names = {labels.class_names for labels in trained}
    return names.pop() if len(names) == 1 else None


def trained_class_names(checkpoints: Iterable[Path]) -> tuple[str, ...] | None:
    """The class names that some checkpoints were trained with; None where they do not agree.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return agreed_class_names(trained_labels(checkpoints).values())


@contextmanager
def reproducible() -> Iterator[None]:
    """Puts the number of threads back, and lets cuDNN choose the same algorithm every time."""
    threads = torch.get_num_threads()
    try:
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
