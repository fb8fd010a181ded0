"""Images with label maps: generated scenes, folders, augmentation and loading."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from . import MAX_CLASSES, scenes
from .image_files import DatasetError as DatasetError
from .image_files import check_bytes, open_image, read_file, read_label, told_orientation
from .label_mapping import LabelMapping, cityscapes_mapping
from .layouts import Pair, divide, pair_files
from .wording import are, have, number_of, number_of_classes

Size = tuple[int, int]
Labels = NDArray[np.int32] | NDArray[np.int64]

MAPPING = "label mapping"
"""What of :meth:`FolderDataset.contents` tells its mapping, if it has one."""

_BATCHES_AHEAD = 2
# Labels from here on are taken for void or instances, not for classes that nobody has declared.
_MAX_UNDECLARED_CLASSES = 4096
_MAX_INDEX = (1 << 31) - 1
_MAX_LISTED = 5
_MAX_ADVISED_LABELS = 16
_OTHER = "other"
_CITYSCAPES_LABELS = ("_gtFine_labelIds", "_gtCoarse_labelIds")


class Sample(NamedTuple):
    """An image, its label map and, if there are such, its uncertainty mask and its bootstrap."""

    image: NDArray[np.uint8]
    """RGB, (H, W, 3)."""
    label: NDArray[np.uint8] | Labels
    """Class indices, (H, W); uint8 where they and the ignored index fit."""
    mask: NDArray[np.float32] | None = None
    """Uncertainty, (H, W)."""
    bootstrap: bool | None = None
    """Whether a network may replace its labels: False where they are exact."""


class SegmentationDataset(Protocol):
    """What training and evaluation need to know of a dataset."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0 to C - 1."""

    @property
    def ignore_index(self) -> int:
        """Label of the pixels that count for nothing."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def label(self, index: int) -> NDArray[np.integer]:
        """The label map (H, W) alone, which may cost less than the whole sample."""


def one_class_names(name: str) -> tuple[str, str]:
    """Names of the two classes that are left where one counts."""
    return (_OTHER, name)


def number_classes(num_classes: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(f"class {c}" for c in range(num_classes))


class SceneDataset:
    """Generated street scenes (:mod:`segunc_ops.experiments.scenes`), kept once generated.

    Args:
        length: number of scenes.
        seed: seed of the series; different seeds share no scene.
        size: height and width in pixels.
        label_noise: whether labels have the misplaced and void borders of human annotation.
    """

    class_names: tuple[str, ...] = scenes.CLASS_NAMES
    ignore_index = scenes.IGNORE_INDEX
    one_class: str | None = None

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        size: Size = (160, 240),
        label_noise: bool = True,
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.seed = seed
        self.size = size
        self.label_noise = label_noise
        self._samples: list[Sample | None] = [None] * length

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        if sample is None:
            index %= len(self)
            scene = scenes.generate_scene(self.seed, index, self.size, label_noise=self.label_noise)
            sample = self._samples[index] = Sample(*scene)
        if self.one_class is None:
            return sample
        own = sample.label == scenes.CLASS_NAMES.index(self.one_class)
        ignored = sample.label == self.ignore_index
        return sample._replace(label=np.where(ignored, sample.label, own.astype(np.uint8)))

    def label(self, index: int) -> NDArray[np.integer]:
        """The label map (H, W)."""
        return self[index].label

    def of_class(self, name: str) -> SceneDataset:
        """The same scenes, in which a class is labelled 1 and all others 0."""
        scenes_of_class = copy.copy(self)
        scenes_of_class.one_class = name
        scenes_of_class.class_names = one_class_names(name)
        return scenes_of_class

    def contents(self) -> dict[str, Any]:
        """What the scenes depend on."""
        contents = {"seed": self.seed, "size": self.size, "label noise": self.label_noise}
        return contents if self.one_class is None else {**contents, "class": self.one_class}


class FolderDataset:
    """Images and the one-channel label maps that belong to them by name, in folders of any depth.

    Args:
        images: folder of images in any format that Pillow reads, 8 or 16 bits a channel; they are
            turned as EXIF says where their label maps are.
        labels: folder of label maps without loss (PNG, TIFF, BMP, GIF), which may be the same: grey
            value or palette index = class, of any bit depth.
        num_classes: C; None counts up to the highest label that :meth:`scan` finds, and labels that
            are negative or 4096 and more are then refused.
        class_names: C names; None numbers the classes.
        ignore_index: label of the pixels that count for nothing.
        image_suffix: end of the images' stems that label maps do not share; None finds it out
            (:func:`segunc_ops.experiments.layouts.pair_files`).
        label_suffix: end of the label maps' stems, such as ``"_mask"``; None finds it out.
        mapping: classes by labels; an empty one keeps labels as they are. None does so too, but
            maps the 34 ids of label maps that are named like Cityscapes' (``_gtFine_labelIds``) to
            its 19 classes.
        part: of an undivided data set, the split and the share of its images held out for
            ``"val"``, such as ``("train", 0.2)``; None takes all images.

    ``notes`` has a line for what its user should know: images and labels that were divided and
    mapped unasked and, after
    :meth:`scan`, an ignored index that leaves one class alone, labels of the mapping that do not
    occur, and classes without a pixel.

    Raises:
        DatasetError: a folder that is missing or empty, an image without a label map.
        ValueError: as many names as `num_classes` are expected.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        ignore_index: int = 255,
        image_suffix: str | None = None,
        label_suffix: str | None = None,
        mapping: LabelMapping | None = None,
        part: tuple[str, float] | None = None,
    ) -> None:
        self.image_folder = Path(images)
        self._unasked: tuple[str, ...] = ()
        self._pairs = pair_files(
            Path(images), Path(labels), image_suffix=image_suffix, label_suffix=label_suffix
        )
        if part is not None:
            split, held_out = part
            total = len(self._pairs)
            self._pairs = divide(self._pairs, split, held_out)
            self._unasked += (
                f"{images}: is not divided; {len(self._pairs)} of its {number_of(total, 'image')} "
                f"{are(len(self._pairs))} {split}'s (--held-out {held_out:g}, by their names)",
            )
        if mapping is None:
            mapping = LabelMapping()
            if all(pair.label.stem.endswith(_CITYSCAPES_LABELS) for pair in self._pairs):
                mapping = cityscapes_mapping(ignore_index)
                self._unasked += (
                    f"Cityscapes' ids are mapped to its {mapping.num_classes} classes, the others "
                    "ignored; --map none keeps them",
                )
        self.notes: tuple[str, ...] = self._unasked
        self.mapping = mapping
        self._declared = num_classes is not None or class_names is not None
        if class_names is None and num_classes in (None, mapping.num_classes):
            num_classes, class_names = mapping.num_classes, mapping.class_names
        if class_names is not None:
            if num_classes is not None and num_classes != len(class_names):
                raise ValueError(
                    f"class_names: expected {number_of(num_classes, 'name')}, got "
                    f"{len(class_names)}"
                )
            num_classes = len(class_names)
        self.ignore_index = ignore_index
        self._names = None if class_names is None else tuple(class_names)
        self._num_classes = num_classes
        self._contents: dict[str, Any] | None = None
        # Of the bytes of images and label maps, once scanned.
        self._digests: list[tuple[bytes, bytes]] = []

    @property
    def num_classes(self) -> int:
        """C, as given or as :meth:`scan` found it."""
        if self._num_classes is None:
            self.scan()
        assert self._num_classes is not None
        return self._num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names given, or ``class 0`` to ``class C-1``."""
        if self._names is None:
            self._names = number_classes(self.num_classes)
        return self._names

    def __len__(self) -> int:
        return len(self._pairs)

    def image_path(self, index: int) -> Path:
        """The file of an image."""
        return self._pairs[index].image

    def name(self, index: int) -> str:
        """An image's path below its folder, less the extension, with forward slashes."""
        return self._pairs[index].name

    def contents(self) -> dict[str, Any]:
        """Digests of names and bytes of the files, as :meth:`scan` or the first call found them.

        Raises:
            DatasetError: a file cannot be read.
        """
        if self._contents is None:
            names = "\n".join(pair.name for pair in self._pairs)
            images, labels = zip(*self.digests(), strict=True)
            self._contents = {
                "names of files": hashlib.sha256(os.fsencode(names)).hexdigest()[:16],
                "images": _combine(images),
                "label maps": _combine(labels),
            }
            if self.mapping:
                self._contents[MAPPING] = str(self.mapping)
        return self._contents

    def digests(self) -> list[tuple[bytes, bytes]]:
        """SHA-256 of the bytes of each image's file and of its label map's.

        Raises:
            DatasetError: a file cannot be read.
        """
        if not self._digests:
            _, images, labels = zip(*self._pairs, strict=True)
            self._digests = list(zip(_digests(images), _digests(labels), strict=True))
        return self._digests

    def shared_images(self, other: FolderDataset) -> list[tuple[Path, Path]]:
        """Images of this data set that another has too, byte for byte, with the file there.

        Raises:
            DatasetError: a file cannot be read.
        """
        theirs = {
            image: pair.image
            for pair, (image, _) in zip(other._pairs, other.digests(), strict=True)
        }
        return [
            (pair.image, theirs[image])
            for pair, (image, _) in zip(self._pairs, self.digests(), strict=True)
            if image in theirs
        ]

    def label(self, index: int) -> NDArray[np.integer]:
        """The label map (H, W) without reading the image."""
        path = self._pairs[index].label
        return self._classes(path, read_label(path))

    def _classes(self, path: Path, label: Labels) -> Labels:
        """What the labels of a map stand for."""
        try:
            label = self.mapping.apply(label, self.ignore_index)
        except ValueError as problem:
            raise DatasetError(f"{path}: {problem}") from None
        if self._num_classes is not None:
            wrong = (label != self.ignore_index) & ((label < 0) | (label >= self._num_classes))
            if wrong.any():
                raise DatasetError(
                    f"{path}: class {label[wrong][0]} is outside 0 to {self._num_classes - 1} and "
                    f"is not the ignored index {self.ignore_index}; the map holds "
                    f"{len(_distinct(label))} distinct values"
                )
        return label

    def __getitem__(self, index: int) -> Sample:
        pair = self._pairs[index]
        decoded, label = self._decode(pair)
        image, label = np.asarray(decoded), self._classes(pair.label, label)
        if max(self.num_classes - 1, self.ignore_index) < 256 and self.ignore_index >= 0:
            return Sample(image, label.astype(np.uint8))
        return Sample(image, label)

    def _decode(
        self, pair: Pair, image_data: bytes | None = None, label_data: bytes | None = None
    ) -> tuple[Image.Image, Labels]:
        label = read_label(pair.label, label_data)
        width, height = size = label.shape[1], label.shape[0]
        image = open_image(pair.image, size, image_data)
        if image.size != size:
            orientation = told_orientation(pair.image)
            turned = f" once turned by its EXIF orientation {orientation}"
            raise DatasetError(
                f"{pair.label}: label map is {width} x {height}, its image {pair.image.name} "
                f"{image.size[0]} x {image.size[1]}{turned if orientation != 1 else ''}"
            )
        return image, label

    def scan(
        self, progress: Callable[[int], object] | None = None, *, for_training: bool = False
    ) -> None:
        """Decodes every image and label map once, so that a bad one is found before training.

        Args:
            progress: called with 1 after each pair.
            for_training: whether a network is to learn from them.

        Raises:
            DatasetError: an image that :func:`open_image` or a map that :func:`read_label` refuses;
                a map that is out of range or of another size than its image; no labelled pixel at
                all; or, for training and where C was not given, one class alone. A single one
                that is declared is let through.
        """

        def check(pair: Pair) -> tuple[list[int], list[int], tuple[bytes, bytes]]:
            image, label = read_file(pair.image), read_file(pair.label)
            raw = self._decode(pair, image, label)[1]
            check_bytes(pair.image, image)
            check_bytes(pair.label, label)
            digests = (hashlib.sha256(image).digest(), hashlib.sha256(label).digest())
            classes = _distinct(self._classes(pair.label, raw))
            return classes, _distinct(raw) if self.mapping else classes, digests

        where: dict[int, Path] = {}
        labels: set[int] = set()
        every: list[tuple[bytes, bytes]] = []
        empty: list[Path] = []
        with ThreadPoolExecutor() as pool:
            for pair, (classes, found, digests) in zip(
                self._pairs, pool.map(check, self._pairs), strict=True
            ):
                every.append(digests)
                if classes == [self.ignore_index]:
                    empty.append(pair.label)
                for value in classes:
                    where.setdefault(value, pair.label)
                labels.update(found)
                if progress is not None:
                    progress(1)
        self._digests, self._contents = every, None
        ignored = where.pop(self.ignore_index, None)
        if not where:
            raise DatasetError(
                f"{self._folder}: every pixel is ignored (index {self.ignore_index})"
            )
        if self._num_classes is None:
            self._check_stray_label(where, ignored)
            highest = max(where)
            if min(where) < 0 or highest >= _MAX_UNDECLARED_CLASSES:
                value = min(where) if min(where) < 0 else highest
                distinct = len(where) + (ignored is not None)
                advice = f"if there are so many classes, declare them (--classes {value + 1})"
                if value >= MAX_CLASSES:
                    advice = f"--map turns labels into at most {MAX_CLASSES} classes"
                ignore = f"--ignore-index {value}"
                if value > _MAX_INDEX:
                    ignore = f"--map {value}:{self.ignore_index} and the others' LABEL:CLASS"
                raise DatasetError(
                    f"{where[value]}: label {value} is no class that was declared; the label maps "
                    f"hold {distinct} distinct values. If it stands for no class, ignore it "
                    f"({ignore}); {advice if value >= 0 else 'classes start at 0'}"
                )
            self._num_classes = highest + 1
        declared_alone = self._declared and self._num_classes == 1
        if len(where) == 1 and not declared_alone and (for_training or not self._declared):
            raise DatasetError(
                f"{self._one_class(labels, next(iter(where)), ignored)}. Of one class a network "
                "learns nothing; if that is meant, declare it (--classes 1)"
            )
        self.notes = (*self._unasked, *self._notes(labels, sorted(where), ignored))
        if empty:
            of = f"{len(empty)} of {number_of(len(self), 'label map')}"
            self.notes += (f"{empty[0]}: every pixel is ignored ({of})",)

    def _check_stray_label(self, where: Mapping[int, Path], ignored: Path | None) -> None:
        """Refuses masks of 0 and 255 that hold one label more, which would be the only one beside
        0 that counts."""
        if self.mapping or ignored is None or len(where) != 2 or min(where) != 0 or 1 in where:
            return
        stray = max(where)
        raise DatasetError(
            f"{where[stray]}: label {stray} occurs beside 0 and {self.ignore_index}, which is "
            f"ignored; if {self.ignore_index} is a class of binary masks, `--map 0:0 "
            f"{self.ignore_index}:1 rest:{self.ignore_index}` ignores {stray} instead; if it is "
            f"not, `--map 0:0 {stray}:1` makes two classes"
        )

    def _one_class(self, labels: set[int], only: int, ignored: Path | None) -> str:
        """Says that one class alone is labelled, and what to do."""
        absent = self._absent(labels)
        absent += "; " if absent else ""
        if ignored is None:
            return f"{self._folder}: {absent}every pixel is of class {only}"
        advice = "map two labels to classes that are not ignored"
        if len(labels) == 2:
            low, high = sorted(labels)
            advice = f"`--map {low}:0 {high}:1` makes two classes of them"
            if self.ignore_index in (0, 1):
                advice += ", with another --ignore-index"
        return (
            f"{self._folder}: {absent}{self.ignore_index} occurs and is ignored; is this a binary "
            f"mask? Class {only} alone is left; {advice}"
        )

    @property
    def _folder(self) -> Path:
        """Of label maps, for messages."""
        return Path(os.path.commonpath([pair.label.parent for pair in self._pairs]))

    def _absent(self, labels: set[int]) -> str:
        """Names the labels of the mapping that do not occur, if there are such."""
        absent = [label for label in self.mapping.spelled_out if label not in labels]
        return f"no label map holds {_listing(absent)}, which --map lists" if absent else ""

    def _notes(self, labels: set[int], labelled: list[int], ignored: Path | None) -> Iterator[str]:
        if ignored is not None and len(labelled) == 1:
            yield self._one_class(labels, labelled[0], ignored)
        elif absent := self._absent(labels):
            yield f"{self._folder}: {absent}"
        missing = sorted(set(range(self.num_classes)) - {*labelled, self.ignore_index})
        if missing:
            which = _listing(
                [f"{index} ({self._names[index]})" if self._names else index for index in missing]
            )
            advice = ""
            advised = len(labelled) <= min(len(missing), _MAX_ADVISED_LABELS)
            if advised and not (self._declared or self.mapping):
                pairs = [f"{label}:{index}" for index, label in enumerate(labelled)]
                advice = f"; `--map {' '.join(pairs)}` numbers the {len(pairs)} that have some"
            yield (
                f"{self._folder}: {len(missing)} of "
                f"{number_of_classes(self.num_classes)} {have(len(missing))} no pixel: "
                f"{which}{advice}"
            )


def _listing(values: Sequence[object]) -> str:
    """The first few of them."""
    named = [str(each) for each in values[:_MAX_LISTED]]
    more = len(values) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _distinct(label: NDArray[np.integer]) -> list[int]:
    """The values of a label map, sorted."""
    # Counting is faster than sorting, where it takes little memory.
    if label.size and label.min() >= 0 and label.max() < 1 << 16:
        values: list[int] = np.flatnonzero(np.bincount(label.ravel())).tolist()
    else:
        values = np.unique(label).tolist()
    return values


def _resize(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def augment(
    sample: Sample,
    rng: np.random.Generator,
    *,
    crop: Size,
    ignore_index: int,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
) -> Sample:
    """Random scale, crop and horizontal flip, the same for image, label map and mask.

    The window is cut out at the source's resolution and then resized, so that enlarging costs no
    more than the crop. Where a reduced image does not fill the crop, it is padded with grey,
    `ignore_index` and an uncertainty of 0. A mask is sampled where its label map is, the nearest
    pixel: interpolated it would mix the uncertainties of neighbouring instances.

    Args:
        sample: image (H, W, 3), label map (H, W) and, if there is one, mask (H, W).
        rng: draws scale, position and flip.
        crop: height and width of the result.
        ignore_index: label of the padding.
        scale: range of the uniform scale factor.
        flip: whether half of the results are mirrored.

    Returns:
        Image (h, w, 3) uint8, label map (h, w) of the source's type, and mask (h, w), contiguous.
    """
    image, label, mask, bootstrap = sample
    height, width = label.shape
    factor = float(rng.uniform(*scale))
    window = [min(n, round(c / factor)) for n, c in zip(label.shape, crop, strict=True)]
    filled = [min(c, max(1, round(n * factor))) for n, c in zip(window, crop, strict=True)]
    top = int(rng.integers(height - window[0] + 1))
    left = int(rng.integers(width - window[1] + 1))
    part = np.s_[top : top + window[0], left : left + window[1]]
    rows = ((np.arange(filled[0]) + 0.5) * window[0] / filled[0]).astype(np.int64)
    columns = ((np.arange(filled[1]) + 0.5) * window[1] / filled[1]).astype(np.int64)
    image = _resize(image[part], (filled[0], filled[1]))
    label = label[part][rows[:, None], columns]
    if mask is not None:
        mask = mask[part][rows[:, None], columns]
    if flip and rng.uniform() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
        mask = None if mask is None else mask[:, ::-1]
    offset = [int(rng.integers(c - n + 1)) for n, c in zip(filled, crop, strict=True)]
    place = np.s_[offset[0] : offset[0] + filled[0], offset[1] : offset[1] + filled[1]]
    padded_image = np.full((*crop, 3), 128, np.uint8)
    padded_label = np.full(crop, ignore_index, label.dtype)
    padded_image[place] = image
    padded_label[place] = label
    padded_mask = None
    if mask is not None:
        padded_mask = np.zeros(crop, np.float32)
        padded_mask[place] = mask
    return Sample(padded_image, padded_label, padded_mask, bootstrap)


class Batch(NamedTuple):
    """Tensors of a batch."""

    images: Tensor
    """uint8, (N, 3, H, W)."""
    target: Tensor
    """uint8 or int32, (N, H, W)."""
    mask: Tensor | None = None
    """float32, (N, H, W)."""
    bootstrap: Tensor | None = None
    """bool, (N,)."""


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of one size; the batch has a mask, or a bootstrap, if each of them has."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    target = torch.from_numpy(np.stack([sample.label for sample in samples]))
    masks = [sample.mask for sample in samples if sample.mask is not None]
    mask = torch.from_numpy(np.stack(masks)) if len(masks) == len(samples) else None
    flags = [sample.bootstrap for sample in samples if sample.bootstrap is not None]
    bootstrap = torch.tensor(flags) if len(flags) == len(samples) else None
    return Batch(images.permute(0, 3, 1, 2), target, mask, bootstrap)


class TrainingBatches:
    """Augmented batches in an order that depends on the seed alone, prepared in background threads.

    Step ``t`` gets the same batch whether training ran through or was resumed, and for any loss
    trained on it. Every epoch visits a new permutation; the incomplete batch at its end is dropped
    unless the dataset is smaller than a batch, which then repeats images.

    Args:
        dataset: what to draw from.
        batch_size: images per batch.
        crop: height and width of the crops.
        seed: determines order and augmentation.
        scale: range of the random scale.
        workers: preparing threads.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        batch_size: int,
        crop: Size,
        seed: int,
        scale: tuple[float, float] = (0.5, 2.0),
        workers: int = 1,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.crop = crop
        self.seed = seed
        self.scale = scale
        self.workers = workers
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return max(1, len(self.dataset) // self.batch_size)

    def _items(self, step: int) -> Iterator[tuple[int, int]]:
        """Dataset index and sampling key of each image of one step."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 0, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.dataset))
        for position in range(self.batch_size):
            place = (offset * self.batch_size + position) % len(self._order)
            yield int(self._order[place]), step * self.batch_size + position

    def _sample(self, index: int, key: int) -> Sample:
        return augment(
            self.dataset[index],
            np.random.default_rng([self.seed, 1, key]),
            crop=self.crop,
            ignore_index=self.dataset.ignore_index,
            scale=self.scale,
        )

    def iterate(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """Batches of steps ``first_step`` to ``last_step - 1``."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="batches")
        pending: deque[list[Future[Sample]]] = deque()
        try:
            for step in range(first_step, last_step):
                pending.append([pool.submit(self._sample, *item) for item in self._items(step)])
                if len(pending) > _BATCHES_AHEAD:
                    yield collate([future.result() for future in pending.popleft()])
            while pending:
                yield collate([future.result() for future in pending.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _digests(paths: Iterable[Path]) -> list[bytes]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: hashlib.sha256(read_file(path)).digest(), paths))


def _combine(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def digest_files(paths: Iterable[Path]) -> str:
    """16 letters that depend on every byte of some files and on their order.

    Raises:
        DatasetError: a file cannot be read.
    """
    return _combine(_digests(paths))


class EvenlySpaced:
    """At most `length` images of a dataset, evenly spaced."""

    def __init__(self, dataset: SegmentationDataset, length: int) -> None:
        self._dataset = dataset
        size = len(dataset)
        self._indices = np.linspace(0, size - 1, min(size, length)).astype(int).tolist()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the dataset."""
        return self._dataset.class_names

    @property
    def ignore_index(self) -> int:
        """That of the dataset."""
        return self._dataset.ignore_index

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]

    def label(self, index: int) -> NDArray[np.integer]:
        """The label map (H, W)."""
        return self._dataset.label(self._indices[index])


def evaluation_batches(dataset: SegmentationDataset, batch_size: int) -> Iterator[Batch]:
    """Whole images in order, neighbours of one size together."""
    samples: list[Sample] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if samples and (len(samples) == batch_size or samples[0].label.shape != sample.label.shape):
            yield collate(samples)
            samples = []
        samples.append(sample)
    if samples:
        yield collate(samples)


def class_shares(dataset: SegmentationDataset) -> list[float]:
    """Share of each class among the labelled pixels."""
    num_classes = len(dataset.class_names)

    def count(index: int) -> NDArray[np.intp]:
        label = dataset.label(index)
        return np.bincount(label[label != dataset.ignore_index].ravel(), minlength=num_classes)

    counts = np.zeros(num_classes, np.intp)
    with ThreadPoolExecutor() as pool:
        for each in pool.map(count, range(len(dataset))):
            counts += each
    return [float(share) for share in counts / max(1, counts.sum())]


def normalize(images: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    """uint8 (N, 3, H, W) images as roughly standardised float32 on `device`."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    moved = images.to(device, non_blocking=True).to(torch.float32, memory_format=layout)
    return moved.sub_(115.0).div_(60.0)
