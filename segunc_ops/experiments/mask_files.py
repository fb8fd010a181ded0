"""Uncertainty masks as files, a float32 TIFF for each image, and a dataset with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .datasets import DatasetError, FolderDataset, Sample, digest_files
from .layouts import check_folder
from .map_files import Record, read_map, write_tiff
from .output_files import remove_partial_files
from .wording import have, number_of

MASKS = "masks"
"""What of :meth:`MaskedDataset.contents` counts only for those who train by them."""

MaskKind = Literal["instance", "entropy"]


@dataclass(frozen=True)
class MaskRecord(Record):
    """What a mask was made of, as it tells in its TIFF description.

    ``members`` are the SHA-256 digests of the members' weights, sorted. Of a map of raw entropy,
    which knows no components, ``components``, ``connectivity`` and ``ignore_index`` are None;
    ``label_mapping`` is None too where labels were classes. ``image`` and ``labels`` are the
    SHA-256 digests of the files, ``labels`` None where components are not those of the label map.
    """

    FORMAT = "segunc mask 1"

    members: tuple[str, ...]
    map: MaskKind
    num_classes: int
    components: str | None = None
    connectivity: int | None = None
    ignore_index: int | None = None
    label_mapping: str | None = None
    image: str | None = None
    labels: str | None = None

    @property
    def shared(self) -> MaskRecord:
        """What all masks of an ensemble have in common."""
        return replace(self, image=None, labels=None)

    def of_files(self, digests: tuple[bytes, bytes]) -> MaskRecord:
        """What a mask made of these files says (:meth:`FolderDataset.digests`)."""
        image, labels = (digest.hex() for digest in digests)
        return replace(self, image=image, labels=labels if self.components == "target" else None)


def mask_path(folder: Path, name: str) -> Path:
    """Where the mask of the image with this name (:meth:`FolderDataset.name`) lies."""
    return folder / f"{name}.tif"


def write_mask(path: Path, values: NDArray[np.float32], record: MaskRecord) -> None:
    """Writes a mask whole or not at all; equal arguments give equal bytes.

    A process that is killed meanwhile leaves a hidden file beside it, for
    :func:`remove_partial_masks`.

    Args:
        path: the TIFF.
        values: (H, W).
        record: what they were made of.

    Raises:
        OutputError: the file cannot be written.
    """
    write_tiff(path, values, record)


def remove_partial_masks(folder: Path, names: set[str]) -> None:
    """Removes what killed processes left of the masks of the images with these names."""
    remove_partial_files(folder, (mask_path(Path(), name) for name in names))


def read_mask(path: Path) -> tuple[NDArray[np.float32], MaskRecord | None]:
    """A mask's values (H, W) and record, None if another program wrote it.

    Raises:
        DatasetError: the file is missing, unreadable or damaged, has other than one channel of
            float32, or holds NaN, infinity or negative values.
    """
    try:
        values, mode, description = read_map(path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such mask") from None
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise DatasetError(f"{path}: cannot be read as a mask ({error})") from error
    if mode != "F":
        raise DatasetError(f"{path}: expected a mask of one float32 channel, got mode {mode}")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DatasetError(
            f"{path}: expected finite uncertainties of at least 0, got {values[row, column]} at "
            f"row {row}, column {column}"
        )
    return values, MaskRecord.from_json(description)


class MaskedDataset:
    """A folder dataset whose samples have a mask of instance uncertainty too.

    Args:
        dataset: images and label maps.
        masks: folder with a TIFF for each image, of its name, as `segunc masks` writes them.

    Raises:
        DatasetError: the folder or a mask is missing.
    """

    def __init__(self, dataset: FolderDataset, masks: str | Path) -> None:
        folder = Path(masks)
        check_folder(folder)
        self._dataset = dataset
        self._paths = [mask_path(folder, dataset.name(i)) for i in range(len(dataset))]
        missing = [path for path in self._paths if not path.is_file()]
        if missing:
            raise DatasetError(
                f"{missing[0]}: no such mask ({len(missing)} of "
                f"{number_of(len(self._paths), 'image')} {have(len(missing))} none); "
                "`segunc masks` writes them, and goes on where it was stopped"
            )
        self._fingerprint: str | None = None
        self._digest: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0 to C - 1."""
        return self._dataset.class_names

    @property
    def ignore_index(self) -> int:
        """Label of the pixels that count for nothing."""
        return self._dataset.ignore_index

    @property
    def fingerprint(self) -> str:
        """What the masks were made of, in 16 letters; "unrecorded" of another program's."""
        if self._fingerprint is None:
            record = read_mask(self._paths[0])[1]
            self._fingerprint = "unrecorded"
            if record is not None:
                told = record.shared.to_json().encode()
                self._fingerprint = hashlib.sha256(told).hexdigest()[:16]
        return self._fingerprint

    def contents(self) -> dict[str, Any]:
        """Those of the dataset, and a digest of the masks' bytes, as they were at the first call.

        Raises:
            DatasetError: a file cannot be read.
        """
        if self._digest is None:
            self._digest = digest_files(self._paths)
        return {**self._dataset.contents(), MASKS: self._digest}

    def __len__(self) -> int:
        return len(self._dataset)

    def label(self, index: int) -> NDArray[np.integer]:
        """The label map (H, W) alone."""
        return self._dataset.label(index)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        mask = read_mask(self._paths[index])[0]
        self._check_size(index, mask.shape, sample.label.shape)
        return sample._replace(mask=mask)

    def _check_size(self, index: int, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if found != wanted:
            raise DatasetError(
                f"{self._paths[index]}: mask is {found[1]} x {found[0]}, its image "
                f"{self._dataset.image_path(index).name} {wanted[1]} x {wanted[0]}"
            )

    def scan(self, progress: Callable[[int], object] | None = None) -> None:
        """Reads every mask once, so that a bad one is found before training starts.

        Args:
            progress: called with 1 after each file.

        Raises:
            DatasetError: a mask that :func:`read_mask` refuses, one of another size than its image,
                of raw entropy, of other members or settings than the rest, of another image or
                label map, or of other classes than the dataset's.
        """

        def check(index: int) -> MaskRecord | None:
            mask, record = read_mask(self._paths[index])
            # Not the image file's size: it may be stored turned.
            self._check_size(index, mask.shape, self._dataset.label(index).shape)
            return record

        first: MaskRecord | None = None
        files = self._dataset.digests()
        with ThreadPoolExecutor() as pool:
            for index, record in enumerate(pool.map(check, range(len(self)))):
                path = self._paths[index]
                if record is not None and record.map != "instance":
                    raise DatasetError(
                        f"{path}: holds the {record.map} of each pixel, not the instance "
                        "uncertainty; write that with `segunc masks --values instance`"
                    )
                shared = record and record.shared
                if index == 0:
                    first = shared
                if shared != first:
                    how = "another program"
                    if shared is not None and first is not None:
                        how = shared.differs(first)
                    raise DatasetError(
                        f"{path}: was not made like {self._paths[0].name} ({how}); write all masks "
                        "in one folder with the same members"
                    )
                self._check_labels(path, record)
                self._check_files(index, record, files[index])
                if progress is not None:
                    progress(1)

    def _check_files(
        self, index: int, record: MaskRecord | None, files: tuple[bytes, bytes]
    ) -> None:
        """Refuses a mask of another image of that name. One without a record may be of any."""
        if record is None or record.image is None:
            return
        wanted = record.of_files(files)
        if record != wanted:
            raise DatasetError(
                f"{self._paths[index]}: was made with {record.differs(wanted)} than "
                f"{self._dataset.image_path(index)} and its label map; `segunc masks` writes the "
                "masks of these"
            )

    def _check_labels(self, path: Path, record: MaskRecord | None) -> None:
        """Refuses a mask whose components were those of other label maps."""
        if record is None or record.components != "target":
            return
        dataset = self._dataset
        for what, theirs, ours in (
            ("number of classes", record.num_classes, dataset.num_classes),
            ("ignored index", record.ignore_index, dataset.ignore_index),
            ("label mapping", record.label_mapping or "none", str(dataset.mapping) or "none"),
        ):
            if theirs != ours:
                raise DatasetError(
                    f"{path}: was made of label maps with another {what}, {theirs}, not {ours}; "
                    "write masks for these with `segunc masks`"
                )
