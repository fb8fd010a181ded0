"""``segunc train``: trainings on a folder of images and label maps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..experiments.losses import COUNTING_LOSSES, COVARIANCE, DEFAULT, ENSEMBLE_LOSSES, LOSSES
from ..experiments.wording import number_of, number_of_classes
from .argument_types import share
from .data import (
    class_index,
    class_options,
    data_options,
    folder_dataset,
    given_class_names,
    say_notes,
)
from .messages import note
from .training import (
    Recipe,
    resumed_checkpoints,
    run_experiments,
    run_folder,
    training_config,
    training_options,
)

if TYPE_CHECKING:
    from ..experiments.class_counts import ClassCounts
    from ..experiments.datasets import FolderDataset, SegmentationDataset
    from ..experiments.experiment import Experiment
    from ..experiments.mask_files import MaskedDataset
    from ..experiments.ranks import Ranks

_RECIPE = Recipe(
    losses=DEFAULT,
    steps=4000,
    crop=(256, 256),
    scale=(0.5, 2.0),
    optimizer="sgd",
    dropout_at="encoder",
    channels_last=False,
    validations=6,
)


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    train = add_parser(
        "train",
        usage="%(prog)s --data DIR [OPTION ...]",
        help="train, evaluate and compare networks on a folder of images and label maps",
        description="Trains on DIR, laid out as train/ trainannot/ val/ valannot/, as "
        "images/{train,val} labels/{train,val}, like Cityscapes, or undivided with IMAGE_mask.png "
        "beside IMAGE.jpg: images in any format of 8 or 16 bits, one-channel label maps as PNG, "
        "TIFF, BMP or GIF.",
    )
    train.set_defaults(parser=train, work=_train, advice="the same command with --resume continues")
    data = data_options(train)
    class_options(data)
    data.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="iu: weight a single network by these, as `segunc masks` wrote them, in place of "
        "members that train together",
    )
    data.add_argument(
        "--counts",
        type=Path,
        metavar="FILE",
        help=f"{', '.join(COUNTING_LOSSES)}: how often each class occurs, a stats.json of `segunc "
        "stats` (default: counted in the training images)",
    )
    _box_options(train)
    output = training_options(train, _RECIPE)
    output.add_argument(
        "--overwrite", action="store_true", help="start again where a run left a checkpoint"
    )


def _box_options(parser: argparse.ArgumentParser) -> None:
    """Labels that are boxes, and of one class."""
    boxes = parser.add_argument_group("labels that are uncertain")
    boxes.add_argument(
        "--class",
        dest="one_class",
        metavar="CLASS",
        help="this class alone, by its name or number, against the rest: two classes",
    )
    boxes.add_argument(
        "--exact",
        type=share,
        metavar="SHARE",
        help="train on bounding boxes of components, by every loss, but for this share "
        "of the images, drawn by --seed; evaluate on exact labels (default: all are exact)",
    )
    boxes.add_argument(
        "--background",
        nargs="+",
        metavar="CLASS",
        help="classes that have no boxes, by name or number (default: of two classes the first, of "
        "more none)",
    )


def _given_counts(arguments: argparse.Namespace) -> ClassCounts | None:
    """Those of --counts."""
    from ..experiments.class_counts import CountsError, read_counts

    error = arguments.parser.error
    if arguments.counts is None:
        return None
    if not set(COUNTING_LOSSES) & set(arguments.loss):
        known = " or ".join(COUNTING_LOSSES)
        error(f"argument --counts: expected --loss {known}, which alone use them")
    try:
        counts = read_counts(arguments.counts)
    except CountsError as problem:
        error(f"argument --counts: {problem}")
    return counts


def _check_given_counts(
    arguments: argparse.Namespace, counts: ClassCounts, dataset: FolderDataset, ranks: Ranks
) -> None:
    """Refuses counts of other classes; tells those of other label maps."""
    from ..experiments.class_counts import CountsError, check_classes, source_of

    try:
        check_classes(counts, dataset)
    except CountsError as problem:
        arguments.parser.error(f"argument --counts: {arguments.counts}: {problem}")
    if counts.source != source_of(dataset) and ranks.first:
        note(f"{arguments.counts} was counted in other label maps than those of the training")


def _say_shared_images(train: FolderDataset, validation: FolderDataset) -> None:
    """Warns of validation images that are learnt from, whose figures say nothing of others."""
    shared = validation.shared_images(train)
    if shared:
        one, other = shared[0]
        number = f"{len(shared)} of {number_of(len(validation), 'validation image')}"
        note(
            f"warning: {number} {'is a' if len(shared) == 1 else 'are'} training image"
            f"{'s' if len(shared) > 1 else ''} too, byte for byte ({one} is {other}); the "
            "validation says little of other images"
        )


def _boxed_dataset(arguments: argparse.Namespace, dataset: FolderDataset) -> SegmentationDataset:
    """The dataset, by --exact with boxes."""
    from ..experiments.boxed import BoxedDataset

    error = arguments.parser.error
    if arguments.exact is None:
        if arguments.background is not None:
            error("argument --background: expected --exact, which alone makes boxes")
        return dataset
    background = [0] if dataset.num_classes == 2 else None
    if arguments.background is not None:
        background = [
            class_index(arguments, "--background", each, dataset.class_names, dataset.num_classes)
            for each in arguments.background
        ]
        if len({*background}) == dataset.num_classes:
            error("argument --background: leaves no class that has boxes")
    return BoxedDataset(dataset, arguments.exact, seed=arguments.seed, background=background)


def _masked_dataset(
    arguments: argparse.Namespace, dataset: FolderDataset, ranks: Ranks
) -> MaskedDataset:
    """The dataset with --masks, every one of them checked."""
    from tqdm.auto import tqdm

    from ..experiments.datasets import DatasetError
    from ..experiments.mask_files import MaskedDataset

    try:
        masked = MaskedDataset(dataset, arguments.masks)
    except DatasetError as problem:
        arguments.parser.error(f"argument --masks: {problem}")
    with tqdm(total=len(masked), desc="check masks", unit="image", disable=not ranks.first) as bar:
        masked.scan(bar.update)
    return masked


def _experiments(arguments: argparse.Namespace, ranks: Ranks) -> list[Experiment]:
    """One, on --data."""
    from ..experiments.experiment import Experiment, with_counts

    error = arguments.parser.error
    names = given_class_names(arguments)
    counts = _given_counts(arguments)
    splits: list[FolderDataset] = []
    for split in ("train", "val"):
        # Validation labels must be classes that training knows.
        num_classes = arguments.classes
        if splits and arguments.one_class is None:
            num_classes = splits[0].num_classes
        splits.append(
            folder_dataset(
                arguments, split, num_classes, ranks, names, for_training=split == "train"
            )
        )
    if ranks.first:
        say_notes(*splits)
        _say_shared_images(*splits)
        classes = splits[0].num_classes
        print(
            f"{number_of_classes(classes)}, {len(splits[0])} training and "
            f"{number_of(len(splits[1]), 'validation image')} in {arguments.data}",
            file=sys.stderr,
        )
    for loss in arguments.loss:
        least = LOSSES[loss].min_classes
        if splits[0].num_classes < least:
            error(
                f"argument --loss: {loss} expected at least {least} classes, got "
                f"{splits[0].num_classes}"
            )
    if counts is not None:
        _check_given_counts(arguments, counts, splits[0], ranks)
    train = _boxed_dataset(arguments, splits[0])
    if arguments.covariance != COVARIANCE.default and splits[0].num_classes == 2:
        error("argument --covariance: expected more than two classes, whose logits it is between")
    masks = None
    if arguments.masks is not None:
        if not set(ENSEMBLE_LOSSES) & set(arguments.loss):
            known = " or ".join(ENSEMBLE_LOSSES)
            error(f"argument --masks: expected --loss {known}, which alone uses them")
        if arguments.exact is not None:
            error("argument --masks: not with --exact: they are of exact labels")
        train = masked = _masked_dataset(arguments, splits[0], ranks)
        masks = masked.fingerprint
    losses = list(dict.fromkeys(arguments.loss))
    checkpoints = resumed_checkpoints(arguments, losses)
    experiment = Experiment(
        config=training_config(
            arguments,
            num_images=len(train),
            checkpoints=checkpoints,
            masks=masks,
            counts=counts,
        ),
        losses=losses,
        train=train,
        validation=splits[1],
        folder=run_folder(arguments),
        eval_samples=arguments.samples,
        resume=arguments.resume,
        checkpoints=checkpoints,
    )
    existing = [loss for loss in experiment.losses if experiment.checkpoint(loss).exists()]
    if existing and not (arguments.resume or arguments.overwrite):
        error(
            f"argument --name: {experiment.checkpoint(existing[0])} exists; pass --resume to "
            "continue it, --overwrite to start again, or another --name"
        )
    return [with_counts(experiment)]


def _train(arguments: argparse.Namespace) -> int:
    from ..experiments.experiment import run_files

    files = {run_folder(arguments): run_files(arguments.loss)}
    return run_experiments(arguments, _experiments, files)
