"""How often classes occur in a dataset: pixels, images and instances, and the file of them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..functional import class_sizes, connected_components
from .datasets import SegmentationDataset
from .identity import identify
from .losses import CONNECTIVITY, Unit
from .mask_files import MASKS
from .wording import have, number_of_classes

UNITS: tuple[Unit, ...] = get_args(Unit)
_IMAGES = "images"
_THREADS = 4
_TARGET_TYPES = (np.uint8, np.int16, np.int32, np.int64)
_NO_COUNTS = "not what `segunc stats` writes to stats.json, or damaged"


class CountsError(ValueError):
    """Counts that cannot be read, are of other classes, or lack a class that a loss needs."""


class AbsentClassError(CountsError):
    """A class has none of what a loss needs some of.

    Args:
        finding: which class, of what; without what to do.
    """

    def __init__(self, finding: str) -> None:
        super().__init__(
            f"{finding}; leave the class out (--map), or give it 1 in a copy of stats.json for "
            "--counts"
        )
        self.finding = finding


@dataclass(frozen=True)
class ClassCounts:
    """Pixels, images and instances of each class of a dataset."""

    class_names: tuple[str, ...]
    ignore_index: int
    connectivity: int
    """Of the label maps' components, which are the instances: 4 or 8 neighbours."""
    num_images: int
    unlabelled: int
    """Pixels that count for nothing."""
    pixels: tuple[int, ...]
    """``(C,)``."""
    images: tuple[int, ...]
    """``(C,)``: those with at least one pixel of the class."""
    instances: tuple[int, ...]
    """``(C,)``."""
    source: dict[str, str] = field(default_factory=dict)
    """What tells the label maps from others, as :func:`source_of` gives it."""

    def of(self, unit: Unit) -> tuple[int, ...]:
        """The counts of one kind."""
        counts: tuple[int, ...] = getattr(self, unit)
        return counts

    def called(self, index: int) -> str:
        """A class's number and, if it has one, its name."""
        name, number = self.class_names[index], f"class {index}"
        return number if name == number else f"{number} ({name})"

    def of_every_class(self, unit: Unit, needed_by: str) -> tuple[int, ...]:
        """The counts of one kind, none of which is zero.

        Args:
            unit: their kind.
            needed_by: what asks for them, for messages.

        Raises:
            AbsentClassError: a class has none; names it.
        """
        counts = self.of(unit)
        absent = [self.called(index) for index, count in enumerate(counts) if count == 0]
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise AbsentClassError(
                f"{', '.join(absent[:3])}{more} {have(len(absent))} no {unit}, of which "
                f"{needed_by} needs at least one of every class"
            )
        return counts


def source_of(dataset: SegmentationDataset) -> dict[str, str]:
    """What tells a dataset's label maps from others; nothing if it cannot tell.

    Raises:
        DatasetError: a file cannot be read.
    """
    contents = identify(dataset)["contents"]
    return {name: str(value) for name, value in contents.items() if name not in (_IMAGES, MASKS)}


def counts_apply(counts: ClassCounts, dataset: SegmentationDataset, connectivity: int) -> bool:
    """Whether counting a dataset would give these counts.

    Raises:
        DatasetError: a file cannot be read.
    """
    source = source_of(dataset)
    return (
        bool(source)
        and counts.source == source
        and counts.class_names == tuple(dataset.class_names)
        and counts.ignore_index == dataset.ignore_index
        and counts.num_images == len(dataset)
        and counts.connectivity == connectivity
    )


def check_classes(counts: ClassCounts, dataset: SegmentationDataset) -> None:
    """Raises unless counts are of a dataset's classes.

    Raises:
        CountsError: another number of classes, name or ignored index.
    """
    names, wanted = counts.class_names, tuple(dataset.class_names)
    if len(names) != len(wanted):
        raise CountsError(
            f"counts of {number_of_classes(len(names))}, but the images have {len(wanted)}"
        )
    for index, (name, other) in enumerate(zip(names, wanted, strict=True)):
        if name != other:
            raise CountsError(f"class {index} is called {name!r}, that of the images {other!r}")
    if counts.ignore_index != dataset.ignore_index:
        raise CountsError(
            f"counted with the ignored index {counts.ignore_index}, but that of the images is "
            f"{dataset.ignore_index}"
        )


def _label_maps(dataset: SegmentationDataset) -> Iterator[NDArray[np.integer]]:
    """Label maps in order, of which a few are read ahead."""
    pending: deque[Future[NDArray[np.integer]]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="label maps") as pool:
        for index in range(len(dataset)):
            pending.append(pool.submit(dataset.label, index))
            if len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _component_classes(label: Tensor, connectivity: int, ignore_index: int) -> Tensor:
    """The class of each component of a label map ``(1, H, W)``: ``(1, K)``."""
    components, numbers = connected_components(
        label, connectivity=connectivity, ignore_index=ignore_index
    )
    # All pixels of a component hold the same; number 0 is of those that have none.
    classes = np.empty(int(numbers) + 1, label.numpy().dtype)
    classes[components.numpy()] = label.numpy()
    return torch.from_numpy(classes[None, 1:])


def count_classes(
    dataset: SegmentationDataset,
    *,
    connectivity: int = CONNECTIVITY.default,
    progress: Callable[[int], object] | None = None,
) -> ClassCounts:
    """Counts pixels, images and instances of each class, in one pass over the label maps.

    Args:
        dataset: whose label maps are counted, at their own size.
        connectivity: 4 or 8 neighbours of a pixel, by which components are connected.
        progress: called with 1 after each label map.

    Raises:
        DatasetError: a label map cannot be read or holds what is no class.
    """
    num_classes, ignored = len(dataset.class_names), dataset.ignore_index
    pixels, images, instances = torch.zeros(3, num_classes, dtype=torch.int64)
    total = 0
    for array in _label_maps(dataset):
        # A copy: what a dataset hands out may be read-only.
        kind = array.dtype if array.dtype in _TARGET_TYPES else np.int64
        label = torch.from_numpy(np.array(array, kind)[None])
        sizes = class_sizes(label, num_classes, ignore_index=ignored)[0]
        of_components = _component_classes(label, connectivity, ignored)
        pixels += sizes
        images += sizes > 0
        instances += class_sizes(of_components, num_classes, ignore_index=ignored)[0]
        total += label.numel()
        if progress is not None:
            progress(1)
    return ClassCounts(
        class_names=tuple(dataset.class_names),
        ignore_index=ignored,
        connectivity=connectivity,
        num_images=len(dataset),
        unlabelled=total - int(pixels.sum()),
        pixels=tuple(pixels.tolist()),
        images=tuple(images.tolist()),
        instances=tuple(instances.tolist()),
        source=source_of(dataset),
    )


def counts_to_dict(counts: ClassCounts) -> dict[str, Any]:
    """Of values that JSON has, which :func:`counts_from_dict` reads."""
    return asdict(counts)


def counts_from_dict(record: Any) -> ClassCounts:
    """Reads what :func:`counts_to_dict` made, from JSON or a checkpoint.

    Raises:
        CountsError: it holds something else; says what.
    """
    if not isinstance(record, dict):
        raise CountsError(_NO_COUNTS)
    missing = [name for name in ClassCounts.__dataclass_fields__ if name not in record]
    if missing:
        raise CountsError(f"{_NO_COUNTS} ({missing[0]!r} is missing)")
    names, source = record["class_names"], record["source"]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise CountsError(f"{_NO_COUNTS} (class_names are no texts)")
    if not isinstance(source, dict):
        raise CountsError(f"{_NO_COUNTS} (source is no object)")
    for name in ("ignore_index", "connectivity", "num_images", "unlabelled"):
        if type(record[name]) is not int:
            raise CountsError(f"{name}: expected a whole number, got {record[name]!r}")
    for unit in UNITS:
        values = record[unit]
        if not isinstance(values, (list, tuple)) or len(values) != len(names):
            raise CountsError(
                f"{unit}: expected a number for each of {number_of_classes(len(names))}"
            )
        for index, value in enumerate(values):
            if type(value) is not int or not 0 <= value < 1 << 63:
                raise CountsError(
                    f"{unit}: expected a whole number of at least 0 for class {index}, got "
                    f"{value!r}"
                )
    return ClassCounts(
        class_names=tuple(names),
        ignore_index=record["ignore_index"],
        connectivity=record["connectivity"],
        num_images=record["num_images"],
        unlabelled=record["unlabelled"],
        pixels=tuple(record["pixels"]),
        images=tuple(record["images"]),
        instances=tuple(record["instances"]),
        source={str(name): str(value) for name, value in source.items()},
    )


def read_counts(path: Path) -> ClassCounts:
    """What `segunc stats` or a training has written.

    Raises:
        CountsError: the file is missing or something else; names it.
    """
    try:
        return counts_from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise CountsError(f"{path}: no such file") from None
    except OSError as error:
        raise CountsError(f"{path}: cannot be read ({error.strerror})") from None
    except CountsError as error:
        raise CountsError(f"{path}: {error}") from None
    except (ValueError, RecursionError):  # other bytes
        raise CountsError(f"{path}: {_NO_COUNTS}") from None
