"""Where a data set keeps its images and label maps, and which belong together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .image_files import LABEL_EXTENSIONS, DatasetError
from .wording import have, number_of

IMAGE_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_sat")
"""Endings of images' stems that their label maps do not share."""
LABEL_SUFFIXES = (
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_labelIds",
    "_gtFine_labelIds",
    "_gtCoarse_labelIds",
    "_gt",
    "_seg",
    "_segmentation",
    "_annotation",
    "_L",
)
"""Endings of label maps' stems that are found without being told."""

_MAX_SHOWN = 5  # folders in a message
_SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_DIVIDED = (
    ("{split}", "{split}annot"),
    ("{split}", "{split}_labels"),
    ("{split}", "{split}_masks"),
    ("images/{split}", "labels/{split}"),
    ("images/{split}", "masks/{split}"),
    ("images/{split}", "annotations/{split}"),
    ("img_dir/{split}", "ann_dir/{split}"),
    ("{split}/images", "{split}/labels"),
    ("{split}/images", "{split}/masks"),
    ("{split}/images", "{split}/annotations"),
    ("leftImg8bit/{split}", "gtFine/{split}"),
    ("leftImg8bit/{split}", "gtCoarse/{split}"),
)
_UNDIVIDED = (("images", "labels"), ("images", "masks"), ("images", "annotations"))


class Split(NamedTuple):
    """Folders of a split, or of a data set that is not divided."""

    images: Path
    labels: Path


def check_folder(path: Path) -> None:
    """Refuses what is no folder.

    Raises:
        DatasetError: it is a file, or there is nothing.
    """
    if not path.is_dir():
        raise DatasetError(
            f"{path}: is a file, not a folder" if path.exists() else f"{path}: no such folder"
        )


class Pair(NamedTuple):
    """The files of an image and its label map."""

    name: str
    """That of the image (:func:`image_name`)."""
    image: Path
    label: Path


def list_images(folder: Path) -> list[Path]:
    """Images in a folder and its sub-folders, sorted; what is hidden is left out."""
    return list(_walk(folder, ()))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            # A link to a folder around itself would never end.
            if path.resolve() not in above:
                yield from _walk(path, above)
        elif path.suffix.lower() in known:
            yield path


def image_name(path: Path, folder: Path) -> str:
    """An image's path below a folder, less the extension, with forward slashes."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _holds_label_maps(folder: Path, label_suffix: str | None) -> bool:
    """Whether some of a folder's images are label maps by the ending of their stem."""
    suffixes = (label_suffix,) if label_suffix else LABEL_SUFFIXES
    return folder.is_dir() and any(path.stem.endswith(suffixes) for path in _walk(folder, ()))


def _divided(root: Path, split: str, label_suffix: str | None) -> list[Split]:
    found = []
    for name in _SPLIT_FOLDERS[split]:
        layouts = [
            Split(*(root / part.format(split=name) for part in layout)) for layout in _DIVIDED
        ]
        there = [each for each in layouts if each.images.is_dir() and each.labels.is_dir()]
        if not there and _holds_label_maps(root / name, label_suffix):
            there = [Split(root / name, root / name)]
        found += there
    return found


def is_divided(root: str | Path, label_suffix: str | None = None) -> bool:
    """Whether a data set has folders for one of the splits; arguments of :func:`find_split`."""
    return any(_divided(Path(root), split, label_suffix) for split in _SPLIT_FOLDERS)


def find_split(root: str | Path, split: str, label_suffix: str | None = None) -> Split:
    """Folders of the images and label maps of one split.

    Known are ``train/`` with ``trainannot/``, ``train_labels/`` or ``train_masks/``;
    ``images/train/`` with ``labels/train/``, ``masks/train/`` or ``annotations/train/``, also the
    other way round (``train/images/``); ``img_dir/train/ ann_dir/train/``; Cityscapes'
    ``leftImg8bit/train/ gtFine/train/``; and ``train/`` alone, where label maps lie beside their
    images. A data set that is not divided gives the same folders for either split: ``images/`` with
    ``labels/``, ``masks/`` or ``annotations/``, or `root` itself.

    Args:
        root: the data set's folder.
        split: ``"train"`` or ``"val"``; the folders may also be called ``training``, and ``valid``
            or ``validation``.
        label_suffix: as of :func:`pair_files`.

    Raises:
        DatasetError: there is no such folder, no layout in it, or several.
    """
    root = Path(root)
    check_folder(root)
    found = _divided(root, split, label_suffix)
    if len(found) > 1:
        one, other = (
            " and ".join(f"{folder.relative_to(root)}/" for folder in dict.fromkeys(each))
            for each in found[:2]
        )
        raise DatasetError(f"{root}: holds {one}, but also {other}; move one of the layouts away")
    if found:
        return found[0]
    if not is_divided(root, label_suffix):
        whole = [Split(*(root / part for part in layout)) for layout in _UNDIVIDED]
        for each in whole:
            if each.images.is_dir() and each.labels.is_dir():
                return each
        if not (root / "images").is_dir() and _holds_label_maps(root, label_suffix):
            return Split(root, root)
    raise DatasetError(
        f"{root}: expected the folders {split}/ and {split}annot/, images/{split}/ and "
        f"labels/{split}/, or another layout of docs/data.md; found {_found(root)}"
    )


def _found(root: Path) -> str:
    """What a folder holds, for a message."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    shown = [f"{name}/" for name in folders if not name.startswith(".")]
    if not shown:
        return "images without label maps" if list_images(root) else "neither folders nor images"
    more = len(shown) - _MAX_SHOWN
    return ", ".join(shown[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")


def pair_files(
    images: Path, labels: Path, *, image_suffix: str | None = None, label_suffix: str | None = None
) -> list[Pair]:
    """Every image with its label map, in the order of the images' paths.

    The label map of ``sub/NAME + image_suffix + .jpg`` is ``sub/NAME + label_suffix + .png`` (or
    another extension without loss). What may be told from the files need not be given.

    Args:
        images: folder of images, searched at any depth.
        labels: folder of label maps, which may be the same.
        image_suffix: None tries none and :data:`IMAGE_SUFFIXES`.
        label_suffix: None tries none and :data:`LABEL_SUFFIXES`.

    Raises:
        DatasetError: a folder that is missing or has no images; an image without a label map or
            with two; two images that would share one; endings of which several fit.
    """
    for folder in (images, labels):
        check_folder(folder)
    found = list_images(images)
    if not found:
        raise DatasetError(f"{images}: holds no images")
    beside = images.resolve() == labels.resolve()
    maps: dict[str, list[Path]] = {}
    for path in found if beside else list_images(labels):
        maps.setdefault(image_name(path, labels), []).append(path)
    complete: dict[tuple[str, str], list[Pair]] = {}
    best: tuple[int, str] | None = None
    for of_label in ("", *LABEL_SUFFIXES) if label_suffix is None else (label_suffix,):
        if beside and not of_label:
            continue
        # Beside each other, what ends like a label map is one.
        inputs = [p for p in found if not beside or not p.stem.endswith(of_label)]
        for of_image in ("", *IMAGE_SUFFIXES) if image_suffix is None else (image_suffix,):
            if not inputs or not all(path.stem.endswith(of_image) for path in inputs):
                continue
            pairs, missing = _match(inputs, images, maps, of_image, of_label)
            if not missing:
                complete[of_image, of_label] = pairs
            elif best is None or len(pairs) > best[0]:
                path, wanted = missing[0]
                hint = "" if pairs else "; if their stems end otherwise, pass --label-suffix"
                best = (
                    len(pairs),
                    f"{labels / wanted}.png: no label map for {path.name} "
                    f"({len(missing)} of {number_of(len(inputs), 'image')} "
                    f"{have(len(missing))} none){hint}",
                )
    if len(complete) > 1:
        one, other = (pairs[0] for pairs in list(complete.values())[:2])
        raise DatasetError(
            f"{one.label}: may be the label map of {one.image.name}, but so may "
            f"{other.label.name}; choose one with --label-suffix"
        )
    if not complete:
        nothing = (
            f"{images}: holds no image, label maps left out, that ends in {image_suffix or ''!r}"
        )
        unlike = _mixed_endings(found, images, labels, maps) if label_suffix is None else None
        raise DatasetError(unlike or (best[1] if best else nothing))
    pairs = next(iter(complete.values()))
    _check_distinct(pairs)
    return pairs


def _mixed_endings(
    found: Sequence[Path], images: Path, labels: Path, maps: dict[str, list[Path]]
) -> str | None:
    """Says so where the label maps of some images end otherwise than those of others."""
    endings = ("", *LABEL_SUFFIXES) if images.resolve() != labels.resolve() else LABEL_SUFFIXES
    first: dict[str, Path] = {}
    counts: Counter[str] = Counter()
    for path in found:
        name = image_name(path, images)
        stems = {name.removesuffix(of_image) for of_image in ("", *IMAGE_SUFFIXES)}
        there = [
            (ending, each)
            for ending in endings
            for stem in stems
            for each in maps.get(stem + ending, ())
            if each != path
        ]
        if there:  # the ending that most others have, where an image has several label maps
            ending, label = max(there, key=lambda each: counts[each[0]])
            first.setdefault(ending, label)
            counts[ending] += 1
    if len(counts) < 2:
        return None
    told = " and ".join(
        f"{ending or 'in nothing'} ({first[ending].relative_to(labels)}, of {number} image"
        f"{'s' if number > 1 else ''})"
        for ending, number in counts.most_common(2)
    )
    return (
        f"{labels}: the stems of its label maps end in {told}; rename them so that all end "
        "alike, or keep each kind in a folder of its own"
    )


def _match(
    inputs: Sequence[Path],
    images: Path,
    maps: dict[str, list[Path]],
    image_suffix: str,
    label_suffix: str,
) -> tuple[list[Pair], list[tuple[Path, str]]]:
    """Pairs by these endings, and images without a label map with the name it should have."""
    pairs, missing = [], []
    for path in inputs:
        name = image_name(path, images)
        wanted = name.removesuffix(image_suffix) + label_suffix
        there = maps.get(wanted, [])
        lossless = [each for each in there if each.suffix.lower() in LABEL_EXTENSIONS]
        if len(lossless) > 1:
            raise DatasetError(
                f"{lossless[1]}: same stem as {lossless[0].name}; which is the label map of "
                f"{path.name}?"
            )
        # Of another extension it is refused when it is read, with the reason.
        if there:
            pairs.append(Pair(name, path, (lossless or there)[0]))
        else:
            missing.append((path, wanted))
    return pairs, missing


def _check_distinct(pairs: Sequence[Pair]) -> None:
    first: dict[str, Path] = {}
    for pair in pairs:
        other = first.setdefault(pair.name, pair.image)
        if other != pair.image:
            raise DatasetError(f"{pair.image}: same stem as {other.name} in {other.parent}")


def divide(pairs: Sequence[Pair], split: str, held_out: float) -> list[Pair]:
    """The part of an undivided data set that a split gets, drawn by the names of its images.

    An image that is added moves few others, and the same names give the same parts everywhere.

    Args:
        pairs: at least 2.
        split: ``"train"`` or ``"val"``.
        held_out: share of ``"val"``, above 0 and below 1; either part gets at least one pair.

    Raises:
        DatasetError: there is one pair alone.
    """
    if len(pairs) < 2:
        raise DatasetError(
            f"{pairs[0].image.parent}: holds one image alone; validation needs another"
        )
    number = min(len(pairs) - 1, max(1, round(held_out * len(pairs))))
    drawn = sorted(pairs, key=lambda pair: hashlib.sha256(pair.name.encode()).digest())[:number]
    validation = {pair.name for pair in drawn}
    return [pair for pair in pairs if (pair.name in validation) == (split == "val")]
