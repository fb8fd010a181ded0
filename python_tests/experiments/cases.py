"""Images, networks and recipes for the experiments' tests."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segunc_ops import cli
from segunc_ops.experiments import datasets, training
from segunc_ops.experiments.datasets import FolderDataset, Sample, SceneDataset
from segunc_ops.experiments.layouts import find_split

# Of folders, unlike scenes.
IGNORED = 11
# None a multiple of the network's stride of 16; the last one smaller than it.
SIZES = ((45, 61), (97, 129), (33, 50), (70, 64), (7, 9))
CPU = torch.device("cpu")
# Of scenes.
SIZE = (64, 96)


def write_images(root: Path, count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> Path:
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 2)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            size = sizes[index % len(sizes)]
            blocks = rng.integers(0, 3, [-(-n // 8) for n in size])
            label = np.kron(blocks, np.ones((8, 8), int))[: size[0], : size[1]]
            noise = rng.integers(0, 80, (*size, 3))
            image = (60 * label[..., None] + noise).astype(np.uint8)
            label[:2] = IGNORED
            Image.fromarray(image).save(root / split / f"{index:03}.png")
            Image.fromarray(label.astype(np.uint8)).save(root / f"{split}annot" / f"{index:03}.png")
    return root


def dataset_of(root: Path, split: str = "train") -> FolderDataset:
    return FolderDataset(*find_split(root, split), num_classes=3, ignore_index=IGNORED)


def train_member(
    root: Path, seed: int, num_classes: int = 3, loss: str = "ce", optimizer: str = "sgd"
) -> Path:
    dataset = FolderDataset(
        *find_split(root, "train"), num_classes=num_classes, ignore_index=IGNORED
    )
    config = training.TrainingConfig(
        loss=loss,
        steps=1,
        batch_size=2,
        crop=(32, 32),
        optimizer=optimizer,
        seed=seed,
        samples=2,
        members=2,
    )
    path = root / f"{loss}-{num_classes}-{seed}.pt"
    training.Trainer(config, dataset, dataset, path).fit(progress=False)
    return path


def config(loss: str = "ce", **changes: object) -> training.TrainingConfig:
    options = {
        "loss": loss,
        "steps": 6,
        "batch_size": 4,
        "crop": (64, 64),
        "samples": 3,
        "validate_every": 3,
        "report_every": 1,
        **changes,
    }
    return training.TrainingConfig(**options)


def write_pair(root: Path, split: str, stem: str, label: np.ndarray, layout: str = "annot") -> None:
    images, labels = (
        (root / split, root / f"{split}annot")
        if layout == "annot"
        else (root / "images" / split, root / "labels" / split)
    )
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(stem))
    image = rng.integers(0, 256, (*label.shape, 3), np.uint8)
    Image.fromarray(image).save(images / f"{stem}.jpg")
    Image.fromarray(label.astype(np.uint8)).save(labels / f"{stem}.png")


@contextmanager
def full_disk(free: int = 1000) -> Iterator[None]:
    """No file may grow beyond `free` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def exit_code(arguments: Sequence[str]) -> int:
    """What the process of a command would end with."""
    try:
        return cli.main(arguments)
    except SystemExit as stopped:
        return int(stopped.code)


class Interrupting:
    """A dataset that presses Ctrl-C, or signals else, when an item is asked for the nth time."""

    countdown = -1
    signum = signal.SIGINT

    def __getitem__(self, index: int) -> Sample:
        self.countdown -= 1
        if self.countdown == 0:
            os.kill(os.getpid(), self.signum)
        return super().__getitem__(index)


class InterruptingScenes(Interrupting, SceneDataset):
    """Twelve scenes."""

    def __init__(self, countdown: int = -1) -> None:
        super().__init__(12, seed=0, size=SIZE)
        self.countdown = countdown


class PartlyLabelled(SceneDataset):
    """Scenes; in every batch of some steps of `settings` all pixels are ignored."""

    def __init__(self, settings: training.TrainingConfig, unlabelled_steps: set[int]) -> None:
        # As many scenes as crops: each is seen in one step alone.
        super().__init__(settings.steps * settings.batch_size, seed=0, size=SIZE)
        batches = datasets.TrainingBatches(
            self, batch_size=settings.batch_size, crop=settings.crop, seed=settings.seed
        )
        self.empty = {index for step in unlabelled_steps for index, _ in batches._items(step)}

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if index in self.empty:
            return sample._replace(label=np.full_like(sample.label, self.ignore_index))
        return sample


class InterruptingFolder(Interrupting, FolderDataset):
    pass
