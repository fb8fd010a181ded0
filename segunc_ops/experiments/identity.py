"""What a run is trained on, so that it is never resumed with anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from .datasets import SegmentationDataset
from .mask_files import MASKS
from .wording import number_of, number_of_classes

Identity = dict[str, Any]


@runtime_checkable
class Identified(Protocol):
    """A dataset that can tell its contents from those of any other."""

    def contents(self) -> Mapping[str, Any]:
        """Values by what they are of; any two datasets that differ differ in one."""


def identify(dataset: SegmentationDataset) -> Identity:
    """What tells a dataset from another: classes, ignored index, images, contents.

    One that has no method `contents` (:class:`Identified`) is known by the first three alone.

    Raises:
        DatasetError: a file cannot be read.
    """
    return {
        "class_names": tuple(dataset.class_names),
        "ignore_index": dataset.ignore_index,
        "images": len(dataset),
        "contents": dict(dataset.contents()) if isinstance(dataset, Identified) else {},
    }


def difference(before: Identity, now: Identity, part: str, *, masks: bool) -> str | None:
    """In what data differ from those of a training, for a message; None if in nothing.

    Args:
        before: of the training.
        now: of what is there.
        part: what they are for.
        masks: whether masks count.
    """
    names, names_now = before["class_names"], now["class_names"]
    if len(names) != len(names_now):
        return f"was trained for {number_of_classes(len(names))}, not {len(names_now)}"
    for index, (old, new) in enumerate(zip(names, names_now, strict=True)):
        if old != new:
            return f"was trained with class {index} called {old!r}, not {new!r}"
    if before["ignore_index"] != now["ignore_index"]:
        return (
            f"was trained with ignore_index = {before['ignore_index']}, not {now['ignore_index']}"
        )
    if before["images"] != now["images"]:
        return (
            f"was trained with {number_of(before['images'], f'{part} image')}, not {now['images']}"
        )
    for what in sorted({*before["contents"], *now["contents"]} - (set() if masks else {MASKS})):
        old, new = (each["contents"].get(what) for each in (before, now))
        if old != new:
            return f"was trained with other {part} data: {what} {old}, not {new}"
    return None
