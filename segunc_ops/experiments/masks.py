"""Masks of instance uncertainty from a trained ensemble, one file for each image (Almeida et al.).

The first half of the offline approach; the second trains a network weighted by the masks. An image
is computed by a single thread and its file is written whole or not at all, so the files are the
same whether one process made them undisturbed, several shared them, or any was killed and started
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..losses.instance_uncertainty import Components, instance_uncertainty
from ..sampling import ensemble_statistics
from .datasets import DatasetError, FolderDataset, Sample, collate, normalize
from .interruption import Interrupted, deferred_interrupt
from .mask_files import (
    MaskKind,
    MaskRecord,
    mask_path,
    read_mask,
    remove_partial_masks,
    write_mask,
)
from .models import EncoderDecoder
from .networks import load_networks, reproducible
from .ranks import ALONE, Ranks


class MaskError(ValueError):
    """Masks that cannot be made, or not in this folder."""


@dataclass(frozen=True)
class MaskSettings:
    """What a mask holds: the instance uncertainty by these components, or the raw entropy."""

    kind: MaskKind = "instance"
    components: Components = "target"
    connectivity: int | None = None


class MaskCount(NamedTuple):
    """Files of this rank."""

    written: int
    kept: int


def load_ensemble(checkpoints: Iterable[Path]) -> dict[str, EncoderDecoder]:
    """All networks of some checkpoints as :func:`load_networks` gives them.

    Raises:
        CheckpointError: as there; or a file is of an interrupted training.
        MaskError: there are fewer than two.
    """
    members = load_networks(checkpoints, finished=True)
    if len(members) < 2:
        raise MaskError(f"an ensemble needs at least 2 members, got {len(members)}")
    return members


def record_of(
    members: dict[str, EncoderDecoder], settings: MaskSettings, dataset: FolderDataset
) -> MaskRecord:
    """What all masks of these members will say of themselves."""
    num_classes = next(iter(members.values())).num_classes
    if settings.kind == "entropy":
        return MaskRecord(tuple(members), "entropy", num_classes)
    by_target = settings.components == "target"
    return MaskRecord(
        tuple(members),
        settings.kind,
        num_classes,
        settings.components,
        settings.connectivity or 8,
        *((dataset.ignore_index, str(dataset.mapping) or None) if by_target else (None, None)),
    )


def _compute(
    members: Sequence[nn.Module],
    sample: Sample,
    record: MaskRecord,
    device: torch.device,
) -> NDArray[np.float32]:
    images, target, *_ = collate([sample])
    statistics = ensemble_statistics(
        members, normalize(images, device, channels_last=False), size=target.shape[1:]
    )
    values = statistics.entropy
    if record.map == "instance":
        by_target = record.components == "target"
        values = instance_uncertainty(
            values,
            target.to(device) if by_target else statistics.prediction,
            num_classes=record.num_classes,
            connectivity=record.connectivity,
            ignore_index=record.ignore_index,
        )
    # Where the members are certain, rounding may take an entropy below 0.
    found: NDArray[np.float32] = values[0].clamp(min=0).cpu().numpy()
    return found


def _is_done(path: Path, dataset: FolderDataset, index: int, record: MaskRecord) -> bool:
    """Whether a mask is there already; what is not one of this ensemble is left alone."""
    if not path.exists():
        return False
    advice = "move it away or choose another folder"
    try:
        values, found = read_mask(path)
    except DatasetError as problem:
        raise MaskError(f"{problem}; {advice}") from problem
    if (why := record.why_not(found)) is not None:
        raise MaskError(f"{path}: {why}; {advice}")
    size = dataset.label(index).shape
    if values.shape != size:
        raise MaskError(
            f"{path}: mask is {values.shape[1]} x {values.shape[0]}, its image "
            f"{size[1]} x {size[0]}; {advice}"
        )
    return True


def write_masks(
    members: dict[str, EncoderDecoder],
    dataset: FolderDataset,
    folder: Path,
    settings: MaskSettings,
    *,
    device: torch.device,
    workers: int = 1,
    ranks: Ranks = ALONE,
    progress: Callable[[int], object] | None = None,
) -> MaskCount:
    """Writes the masks of a dataset that are not there yet.

    Args:
        members: as :func:`load_ensemble` gives them.
        dataset: images and label maps, of any sizes.
        folder: gets a TIFF for each image, of its name, in the images' sub-folders.
        settings: what the masks hold.
        device: where the members run.
        workers: threads, each with an image of its own.
        ranks: of several processes this one writes every ``ranks.size``-th mask; they need not
            know of each other.
        progress: called with 1 after each mask.

    Returns:
        How many masks of this rank were written, and how many were there already.

    Raises:
        MaskError: the folder is or lies in that of the images; a mask in it is damaged, not of
            these members, settings and files, or of another size than its image; nothing was
            written then. Or the members give no number.
        DatasetError: an image or label map cannot be used.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the masks at hand are written.
    """
    if folder.resolve().is_relative_to(dataset.image_folder.resolve()):
        raise MaskError(
            f"{folder}: lies within the images' folder; choose one outside of it for the masks"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record = record_of(members, settings, dataset)
    every = range(len(dataset))
    paths = [mask_path(folder, dataset.name(index)) for index in every]
    mine = every[ranks.rank :: ranks.size]
    records = [record.of_files(files) for files in dataset.digests()]
    # Those of all ranks: each refuses a folder before the first has written to it.
    with ThreadPoolExecutor() as pool:
        is_done = list(pool.map(lambda i: _is_done(paths[i], dataset, i, records[i]), every))
    remove_partial_masks(folder, {dataset.name(index) for index in mine})
    missing = [index for index in mine if not is_done[index]]
    kept = len(mine) - len(missing)
    if progress is not None:
        progress(kept)
    models = [model.to(device) for model in members.values()]

    def make(index: int) -> None:
        values = _compute(models, dataset[index], records[index], device)
        if not np.isfinite(values).all():
            raise MaskError(
                f"{dataset.image_path(index)}: the members give no finite uncertainty for it; "
                "did their training diverge?"
            )
        write_mask(paths[index], values, records[index])

    # One thread an image: how a convolution is split among threads may change its last bits.
    with (
        reproducible(),
        deferred_interrupt() as stop,
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        pending = [pool.submit(make, index) for index in missing]
        try:
            for future in as_completed(pending):
                future.result()
                if progress is not None:
                    progress(1)
                if stop.is_set():
                    raise Interrupted(stop.signum)
        finally:
            pool.shutdown(cancel_futures=True)
    return MaskCount(len(missing), kept)
