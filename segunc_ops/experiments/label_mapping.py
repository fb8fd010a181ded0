"""What labels in files stand for, where that is not the class itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import MAX_CLASSES

_PRESETS = ("cityscapes", "reduce-zero-label", "none")
_REST = "rest"
_PAIR = re.compile(r"(\d{1,10}|rest):(\d{1,9})")
_UNLISTED = -(1 << 31)
_TABLE_SIZE = 1 << 16
# The ids that are evaluated, in the order of their training ids.
_CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}


@dataclass(frozen=True)
class LabelMapping:
    """Classes by labels.

    ``pairs`` maps labels to classes or to the ignored index, ``rest`` all that it does not list;
    the ignored index, unless listed, stays what it is. Without ``rest`` any other label is refused,
    so that none passes for a class by chance; without either, labels are kept.
    """

    pairs: tuple[tuple[int, int], ...] = ()
    rest: int | None = None
    num_classes: int | None = None
    """C, if the mapping determines it."""
    class_names: tuple[str, ...] | None = None
    name: str | None = None
    """The word that asks for it, if pairs do not."""

    def __str__(self) -> str:
        if self.name is not None:
            return self.name
        pairs = [f"{label}:{index}" for label, index in self.pairs]
        return " ".join(pairs if self.rest is None else [*pairs, f"{_REST}:{self.rest}"])

    def __bool__(self) -> bool:
        return bool(self.pairs) or self.rest is not None

    @property
    def spelled_out(self) -> tuple[int, ...]:
        """The labels of pairs that its user has listed."""
        return () if self.name else tuple(label for label, _ in self.pairs)

    def apply(
        self, label: NDArray[np.int32] | NDArray[np.int64], ignore_index: int
    ) -> NDArray[np.int32] | NDArray[np.int64]:
        """Classes of labels of any shape.

        Raises:
            ValueError: a label is not listed.
        """
        if not self:
            return label
        if label.size and label.min() >= 0 and label.max() < _TABLE_SIZE:
            mapped = self._classes(range(label.max() + 1), ignore_index)[label]
        else:
            values, where = np.unique(label, return_inverse=True)
            mapped = self._classes(values.tolist(), ignore_index)[where].reshape(label.shape)
        unlisted = mapped == _UNLISTED
        if unlisted.any():
            value = label[unlisted][0]
            raise ValueError(
                f"label {value} is not mapped; add {value}:CLASS to --map, or "
                f"{_REST}:{ignore_index} to ignore all that it does not list"
            )
        return mapped

    @cached_property
    def _listed(self) -> dict[int, int]:
        return dict(self.pairs)

    def _classes(self, labels: Iterable[int], ignore_index: int) -> NDArray[np.int32]:
        rest = _UNLISTED if self.rest is None else self.rest
        classes = [
            self._listed.get(label, label if label == ignore_index else rest) for label in labels
        ]
        return np.array(classes, np.int32)


def cityscapes_mapping(ignore_index: int) -> LabelMapping:
    """The 19 classes that Cityscapes evaluates, of its 34 ids; the others are ignored."""
    pairs = tuple((label, index) for index, label in enumerate(_CITYSCAPES))
    names = tuple(_CITYSCAPES.values())
    return LabelMapping(pairs, ignore_index, len(pairs), names, name="cityscapes")


def _reduce_zero_label(ignore_index: int) -> LabelMapping:
    """Label 0 ignored, every other one less: of data whose 0 is "everything else"."""
    pairs = [
        (label, label - 1)
        for label in range(1, _TABLE_SIZE)
        if ignore_index not in (label, label - 1)
    ]
    return LabelMapping(((0, ignore_index), *pairs), name="reduce-zero-label")


def one_class_mapping(mapping: LabelMapping, index: int, ignore_index: int) -> LabelMapping:
    """1 for what a mapping makes a class of, 0 for all other labels but the ignored ones.

    Args:
        mapping: to all classes.
        index: of the class.
        ignore_index: the class of what counts for nothing.

    Raises:
        ValueError: no label is of that class, or 0 or 1 is the ignored index.
    """
    if ignore_index in (0, 1):
        raise ValueError(f"makes classes 0 and 1, of which {ignore_index} is ignored")

    def mapped(found: int) -> int:
        return found if found == ignore_index else int(found == index)

    if not mapping:
        return LabelMapping(((index, 1),), 0, 2)
    pairs = [(label, mapped(found)) for label, found in mapping.pairs]
    if index not in {found for _, found in mapping.pairs} | {mapping.rest}:
        raise ValueError(f"no label stands for class {index}, by --map {mapping}")
    # What is refused otherwise would be the rest, too; presets list more labels than there are.
    rest = 0 if mapping.rest is None and mapping.name is not None else mapping.rest
    rest = None if rest is None else mapped(rest)
    return LabelMapping(tuple(pair for pair in pairs if pair[1] != rest), rest, 2)


def parse_mapping(words: Sequence[str], ignore_index: int) -> LabelMapping:
    """The mapping that ``--map`` asks for.

    Args:
        words: pairs ``LABEL:CLASS``, of which one label may be ``rest``; or one of
            ``cityscapes``, ``reduce-zero-label`` and ``none``. One word may hold several of them.
        ignore_index: the class of what counts for nothing.

    Raises:
        ValueError: another word, a label twice, or more classes than there may be.
    """
    words = " ".join(words).split() or [""]
    if len(words) == 1 and words[0] in _PRESETS:
        if words[0] == "cityscapes":
            return cityscapes_mapping(ignore_index)
        return LabelMapping() if words[0] == "none" else _reduce_zero_label(ignore_index)
    found: dict[int | str, int] = {}
    for word in words:
        match = _PAIR.fullmatch(word)
        if match is None:
            raise ValueError(
                f"expected LABEL:CLASS, {_REST}:CLASS, or alone {', '.join(_PRESETS)}; got {word!r}"
            )
        label = match[1] if match[1] == _REST else int(match[1])
        if label in found:
            raise ValueError(f"label {match[1]} is mapped twice")
        found[label] = int(match[2])
        if found[label] >= MAX_CLASSES and found[label] != ignore_index:
            raise ValueError(f"expected classes below {MAX_CLASSES}, got {word!r}")
    classes = {*found.values()} - {ignore_index}
    if not classes:
        raise ValueError(f"maps every label to {ignore_index}, which is ignored")
    rest = found.pop(_REST, None)
    pairs = sorted((int(label), index) for label, index in found.items())
    return LabelMapping(tuple(pairs), rest, max(classes) + 1)
