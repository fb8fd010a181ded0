"""``segunc eval``: all metrics and plots of trained networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..experiments.wording import number_of
from . import scenes
from .argument_types import real, whole
from .data import data_options, folder_dataset, labels_as_trained, say_notes
from .messages import note, say
from .options import device_option, samples_option

if TYPE_CHECKING:
    from ..experiments.datasets import FolderDataset, SegmentationDataset


def add_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    evaluation = add_parser(
        "eval",
        usage="%(prog)s CHECKPOINT [CHECKPOINT ...] [--data DIR] [OPTION ...]",
        help="all metrics and plots of trained networks, also on other data",
        description="Evaluates checkpoints of `segunc train` or `segunc demo`: a single network by "
        "Monte-Carlo dropout, several as an ensemble. Writes metrics.md, metrics.json, curves.png "
        "(reliability, risk over coverage) and panels.png.",
    )
    evaluation.set_defaults(parser=evaluation, work=_eval, advice="the same command starts again")
    evaluation.add_argument(
        "checkpoint",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="of one network, or of the members of an ensemble",
    )
    data = data_options(evaluation, required=False, of_networks=True)
    data.add_argument(
        "--class-names",
        nargs="+",
        metavar="NAME",
        help="of classes 0, 1, ... (default: as in training)",
    )
    data.add_argument(
        "--split",
        choices=("train", "val", "all"),
        default="val",
        help="of DIR; all of its images if it has no train and val (default: val)",
    )
    evaluation.add_argument(
        "--threshold",
        type=real(0),
        metavar="U",
        help="uncertainty from which a pixel is uncertain, for PAvPU, the share of patches that "
        "are accurate and certain or neither (default: the mean over DIR's training images, which "
        "are predicted too)",
    )
    samples_option(evaluation)
    evaluation.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        help="of dropout and generated scenes (default: 0)",
    )
    evaluation.add_argument(
        "--output", type=Path, metavar="DIR", help="default: eval beside the first checkpoint"
    )
    evaluation.add_argument(
        "--overwrite", action="store_true", help="replace an evaluation that is in --output"
    )
    device_option(evaluation.add_argument_group("machine"))


def _eval_data(
    arguments: argparse.Namespace, num_classes: int
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """What is evaluated, and the training images that go with it."""
    from ..experiments.datasets import DatasetError, number_classes, one_class_names
    from ..experiments.layouts import find_split
    from ..experiments.networks import agreed_class_names, trained_labels
    from ..experiments.ranks import ALONE

    error = arguments.parser.error
    trained = trained_labels(arguments.checkpoint)
    trained_names = agreed_class_names(trained.values())
    if arguments.data is None:
        found = trained_names or number_classes(num_classes)
        boxed = found == one_class_names(scenes.BOXED_CLASS)
        if not boxed:
            scenes.check_scene_classes(arguments, found)
        train = scenes.reference_scenes(arguments.seed)
        validation = scenes.validation_scenes(arguments.seed)
        if boxed:
            return validation.of_class(scenes.BOXED_CLASS), train.of_class(scenes.BOXED_CLASS)
        return validation, train
    names = arguments.class_names or trained_names
    if names and len(names) != num_classes:
        error(
            f"argument --class-names: expected {number_of(num_classes, 'name')}, got {len(names)}"
        )
    labels_as_trained(arguments, trained, ALONE)
    reference: FolderDataset | None = None
    dataset = folder_dataset(arguments, arguments.split, num_classes, ALONE, names)
    if arguments.threshold is None and arguments.split == "all":
        note("without training images there is no PAvPU; pass --threshold")
    elif arguments.threshold is None:
        try:
            find_split(arguments.data, "train", arguments.label_suffix)
        except DatasetError:
            note(f"no training images in {arguments.data}, hence no PAvPU; pass --threshold")
        else:
            reference = folder_dataset(arguments, "train", num_classes, ALONE, names)
    say_notes(*(each for each in (dataset, reference) if each is not None))
    return dataset, reference


def _eval(arguments: argparse.Namespace) -> int:
    from ..experiments.experiment import EVALUATION_FILES, evaluate_checkpoints
    from ..experiments.networks import load_networks
    from ..experiments.output_files import try_output
    from ..experiments.training import CheckpointError

    error = arguments.parser.error
    folder = arguments.output or arguments.checkpoint[0].parent / "eval"
    try_output(folder, EVALUATION_FILES)
    if any((folder / name).exists() for name in EVALUATION_FILES) and not arguments.overwrite:
        error(f"{folder} holds an evaluation already; pass --overwrite or another --output")
    try:
        models = [*load_networks(arguments.checkpoint).values()]
        dataset, reference = _eval_data(arguments, models[0].num_classes)
    except CheckpointError as problem:
        error(f"{problem}")
    table = evaluate_checkpoints(
        models,
        dataset,
        folder,
        device=torch.device(arguments.device),
        num_samples=arguments.samples,
        reference=reference,
        threshold=arguments.threshold,
        seed=arguments.seed,
        title=f"{', '.join(map(str, arguments.checkpoint))} on "
        f"{arguments.data or 'generated scenes'}",
    )
    say(f"\n{table}")
    say(f"Written to {folder}: {', '.join(EVALUATION_FILES)}.")
    return 0
