"""Images and label maps: where they are, and how labels are read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..experiments import MAX_CLASSES
from ..experiments.wording import number_of
from .argument_types import MAX_WHOLE, real, whole
from .messages import note

if TYPE_CHECKING:
    from ..experiments.datasets import FolderDataset
    from ..experiments.label_mapping import LabelMapping
    from ..experiments.networks import TrainedLabels
    from ..experiments.ranks import Ranks

_IGNORE_INDEX = 255
_HELD_OUT = 0.2


def data_options(
    parser: argparse.ArgumentParser,
    *,
    required: bool = True,
    of_networks: bool = False,
    positional: bool = False,
) -> argparse._ArgumentGroup:
    """Where images and label maps are, and how labels are read.

    Args:
        parser: of the command, which gets the groups.
        required: without it, generated scenes stand in.
        of_networks: labels are read as in training, unless an option says otherwise.
        positional: DIR in place of --data DIR.

    Returns:
        The group of options of the data, for more of them.
    """
    trained = "as in training, else " if of_networks else ""
    parser.set_defaults(data_argument="DIR" if positional else "--data")
    data = parser.add_argument_group("data")
    if positional:
        data.add_argument("data", type=Path, metavar="DIR", help="the data set's folder")
    else:
        data.add_argument(
            "--data",
            type=Path,
            required=required,
            metavar="DIR",
            help="the data set's folder (required)"
            if required
            else "the data set's folder (default: generated scenes, for networks of the demo)",
        )
    data.add_argument(
        "--ignore-index",
        type=whole(-MAX_WHOLE),
        default=None if of_networks else _IGNORE_INDEX,
        metavar="CLASS",
        help="the class, after --map, of pixels that count for nothing (default: "
        f"{trained}{_IGNORE_INDEX})",
    )
    files = parser.add_argument_group(
        "how DIR is laid out", "Not needed for the layouts and endings in docs/data.md."
    )
    files.add_argument(
        "--image-suffix",
        metavar="END",
        help="end of the images' stems that label maps do not share, such as _leftImg8bit",
    )
    files.add_argument(
        "--label-suffix",
        metavar="END",
        help="end of the label maps' stems, such as _mask; one with a dash: --label-suffix=-mask",
    )
    files.add_argument(
        "--map",
        nargs="+",
        metavar="LABEL:CLASS",
        help="classes by labels, such as 0:0 255:1; rest:255 ignores all that are not listed, "
        "which are refused otherwise. Or one word: cityscapes (its 34 ids to 19 classes), "
        "reduce-zero-label (0 ignored, the others one less) or none (default: "
        f"{trained}none, but cityscapes for label maps named *_gtFine_labelIds or "
        "*_gtCoarse_labelIds)",
    )
    files.add_argument(
        "--held-out",
        type=real(0.001, 1),
        metavar="SHARE",
        help="of the images for validation, if DIR has no train and val, else refused (default: "
        f"{_HELD_OUT:g})",
    )
    return data


def class_options(data: argparse._ArgumentGroup) -> None:
    """How many classes there are and what they are called."""
    data.add_argument(
        "--classes", type=whole(1, MAX_CLASSES), metavar="C", help="default: as labelled"
    )
    data.add_argument("--class-names", nargs="+", metavar="NAME", help="of classes 0, 1, ...")


def given_class_names(arguments: argparse.Namespace) -> list[str] | None:
    """Those of --class-names; refuses what cannot be these."""
    error = arguments.parser.error
    names: list[str] | None = arguments.class_names
    if names and len(names) == 1 and Path(names[0]).is_file():
        error(
            f"argument --class-names: expected names, got the file {names[0]}; pass what it holds"
        )
    if names and arguments.classes and len(names) != arguments.classes:
        expected = number_of(arguments.classes, "name")
        error(f"argument --class-names: expected {expected}, got {len(names)}")
    return names


def _mapping(arguments: argparse.Namespace) -> LabelMapping | None:
    from ..experiments.label_mapping import parse_mapping

    mapping: LabelMapping | None = None
    if arguments.map is not None:
        try:
            mapping = parse_mapping(arguments.map, arguments.ignore_index)
        except ValueError as problem:
            arguments.parser.error(f"argument --map: {problem}")
    return mapping


def labels_as_trained(
    arguments: argparse.Namespace, told: Mapping[Path, TrainedLabels], ranks: Ranks
) -> None:
    """Reads labels as the training of these networks did, unless options say otherwise."""

    def choose(option: str, given: str | None, trained: dict[Path, str], usual: str) -> str | None:
        differing: dict[str, Path] = {}
        for path, value in trained.items():
            differing.setdefault(value, path)
        if given is not None:
            if (others := sorted(differing.keys() - {given})) and ranks.first:
                note(f"{option} {given} is not that of the training ({', '.join(others)})")
            return given
        if len(differing) > 1:
            (one, path), (other, place) = list(differing.items())[:2]
            arguments.parser.error(
                f"argument {option}: {path} was trained with {one}, {place} with {other}; pass one"
            )
        chosen = next(iter(differing), None)
        if chosen not in (None, usual) and ranks.first:
            note(f"labels are read as in training, with {option} {chosen}")
        return chosen

    ignored = None if arguments.ignore_index is None else str(arguments.ignore_index)
    indices = {path: str(labels.ignore_index) for path, labels in told.items()}
    ignored = choose("--ignore-index", ignored, indices, str(_IGNORE_INDEX))
    arguments.ignore_index = _IGNORE_INDEX if ignored is None else int(ignored)
    parsed = _mapping(arguments)
    given = None if parsed is None else str(parsed) or "none"
    mappings = {path: labels.mapping for path, labels in told.items()}
    mapping = choose("--map", given, mappings, "none")
    arguments.map = None if mapping is None else mapping.split()


def folder_dataset(
    arguments: argparse.Namespace,
    split: str,
    num_classes: int | None,
    ranks: Ranks,
    class_names: Sequence[str] | None = None,
    *,
    for_training: bool = False,
) -> FolderDataset:
    """A split of --data, every image and label map of it checked.

    Args:
        arguments: of the command.
        split: train, val or all.
        num_classes: that labels may have; None: as many as they have.
        ranks: the first of which shows progress.
        class_names: of classes 0, 1, ...
        for_training: refuses also what no network can learn from.

    Raises:
        DatasetError: an image or a label map cannot be used; wrong options exit with 2.
    """
    from tqdm.auto import tqdm

    from ..experiments.datasets import DatasetError, FolderDataset, one_class_names
    from ..experiments.layouts import find_split, is_divided

    mapping = _mapping(arguments)
    try:
        folders = find_split(
            arguments.data, "val" if split == "all" else split, arguments.label_suffix
        )
        divided = is_divided(arguments.data, arguments.label_suffix)
        if divided and arguments.held_out is not None:
            arguments.parser.error(
                f"argument --held-out: {arguments.data} is divided into train and val already; "
                "leave the option out"
            )
        if split == "all" and (divided or arguments.held_out is not None):
            arguments.parser.error(
                "argument --split: all is for data that is not divided, without --held-out"
            )
        held_out = _HELD_OUT if arguments.held_out is None else arguments.held_out
        options = {
            "ignore_index": arguments.ignore_index,
            "image_suffix": arguments.image_suffix,
            "label_suffix": arguments.label_suffix,
            "part": None if divided or split == "all" else (split, held_out),
        }
        dataset = FolderDataset(
            *folders,
            num_classes=num_classes,
            class_names=class_names,
            mapping=mapping,
            **options,
        )
        if getattr(arguments, "one_class", None) is not None:
            name, mapping = _one_class(arguments, dataset, num_classes, class_names)
            dataset = FolderDataset(
                *folders, class_names=one_class_names(name), mapping=mapping, **options
            )
    except DatasetError as problem:
        arguments.parser.error(f"argument {arguments.data_argument}: {problem}")
    try:
        with tqdm(
            total=len(dataset), desc=f"check {split}", unit="image", disable=not ranks.first
        ) as bar:
            dataset.scan(bar.update, for_training=for_training)
    except DatasetError:
        say_notes(dataset)  # what was done unasked may be the reason
        raise
    return dataset


def class_index(
    arguments: argparse.Namespace, option: str, text: str, names: Sequence[str], num_classes: int
) -> int:
    """The class that `text` names, or gives the number of; refuses others as those of `option`."""
    if text not in names and not (text.isdecimal() and int(text) < num_classes):
        known = ", ".join(names[:20]) if names else "pass --class-names, or its number"
        arguments.parser.error(f"argument {option}: {text!r} is no class ({known})")
    return names.index(text) if text in names else int(text)


def _one_class(
    arguments: argparse.Namespace,
    dataset: FolderDataset,
    num_classes: int | None,
    class_names: Sequence[str] | None,
) -> tuple[str, LabelMapping]:
    """What --class is called, and the mapping that leaves it and the rest."""
    from ..experiments.label_mapping import one_class_mapping

    names = class_names or dataset.mapping.class_names or ()
    limit = len(names) or num_classes or dataset.mapping.num_classes or MAX_CLASSES
    index = class_index(arguments, "--class", arguments.one_class, names, limit)
    try:
        mapping = one_class_mapping(dataset.mapping, index, arguments.ignore_index)
    except ValueError as problem:
        arguments.parser.error(f"argument --class: {problem}")
    return names[index] if names else f"class {index}", mapping


def say_notes(*datasets: FolderDataset) -> None:
    """Tells what was done unasked, each of it once."""
    for text in dict.fromkeys(text for dataset in datasets for text in dataset.notes):
        note(text)
