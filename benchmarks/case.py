"""What is measured: operations, their cases, and what a case costs by formula."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch

from .implementations import COMPILED, EAGER, OURS, Implementation
from .timing import Clock

# How logits lie in memory, or what label maps show.
Layout = Literal["nchw", "channels_last", "street scene", "noise"]
Mode = Literal["forward", "forward+backward"]
Suite = Literal["quick", "default", "full"]
# What a case is part of besides the tables: the matrix of types and class counts, or a curve over
# pixels, classes or samples.
Study = Literal["", "types", "pixels", "classes", "samples"]
Shape = tuple[int, ...]

SUITES: tuple[Suite, ...] = ("quick", "default", "full")
CURVES: tuple[Study, ...] = ("pixels", "classes", "samples")
LAYOUTS: tuple[Layout, ...] = ("nchw", "channels_last")
MODES: tuple[Mode, ...] = ("forward", "forward+backward")
BOTH: Mode = "forward+backward"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Height and width of the targets of an upsampled operation, in those of the logits.
ENLARGEMENT = 4
_CALL_OVERHEAD_PIXELS = 128 * 128
_MIN_ROUNDS, _MIN_SHOWCASE_ROUNDS = 3, 5
_MATRIX_CLASSES = (2, 11, 19, 21, 150)
_USUAL_CLASSES = 19


class Traffic(NamedTuple):
    """Bytes between memory and our CPU kernels, and of the fresh pages that the system clears."""

    moved: int
    cleared: int


@dataclass(frozen=True)
class Case(ABC):
    """One point of the axes of an operation, which is a subclass.

    `shape` is ``(N, C, H, W)``, for statistics with S before it, for label maps ``(N, H, W)``; Dice
    has volumes, too.
    """

    op: ClassVar[str]  # as rows of results name it
    # The shape and layout that a reader should see first: a common size, as a training step has it.
    showcase: ClassVar[tuple[Shape, Layout]]
    is_loss: ClassVar[bool] = False
    enlargement: ClassVar[int] = 1  # height and width of the targets, in those of the logits
    # The compiled and the eager one that the matrix of types relates to ours.
    matrix_peers: ClassVar[tuple[Implementation, Implementation]] = (COMPILED, EAGER)

    shape: Shape
    dtype: str
    layout: Layout = "nchw"
    mode: Mode = "forward"
    study: Study = ""

    # The suites. `half` names the half-precision types of the device.

    @classmethod
    def quick(cls) -> Iterable[Case]:
        """The showcase."""
        return [cls.shown()]

    @classmethod
    def default(cls, half: Sequence[str]) -> Iterable[Case]:
        """What the default suite adds: types, layouts, class counts and small inputs by turns."""
        return [*(cls.shown(dtype) for dtype in half), cls.shown(layout="channels_last")]

    @classmethod
    def studies(cls, measured: Collection[Case]) -> Iterable[Case]:
        """What the default suite adds for curves and for the matrix of types."""
        return ()

    @classmethod
    def full(cls, half: Sequence[str]) -> Iterable[Case]:
        """What the full suite adds: the product of the axes."""
        return ()

    @classmethod
    def shown(cls, dtype: str = "fp32", layout: Layout | None = None) -> Case:
        """The showcase, or its like of another layout."""
        shape, usual = cls.showcase
        return cls(shape, dtype, layout or usual, cls._usual_mode())

    @classmethod
    def product(cls, shapes: Iterable[Shape], half: Sequence[str]) -> Iterable[Case]:
        """The product of all axes."""
        modes = MODES if cls.is_loss else MODES[:1]
        axes = itertools.product(shapes, ("fp32", *half), LAYOUTS, modes)
        return [cls(shape, dtype, layout, mode) for shape, dtype, layout, mode in axes]

    @classmethod
    def _usual_mode(cls) -> Mode:
        return BOTH if cls.is_loss else "forward"

    @classmethod
    def matrix_shape(cls, classes: int) -> Shape | None:
        """The shape of a cell of the matrix of types; None where the operation has no matrix."""
        return None

    @classmethod
    def matrix(cls, measured: Collection[Case]) -> Iterator[Case]:
        """What is missing to compare types, layouts and class counts."""
        cells: list[tuple[str, Layout, int]] = [
            (dtype, "nchw", c) for dtype in ("fp32", "bf16") for c in _MATRIX_CLASSES
        ]
        cells += [(dtype, "channels_last", _USUAL_CLASSES) for dtype in ("fp32", "bf16")]
        cells += [("fp16", "nchw", _USUAL_CLASSES)]
        for dtype, layout, classes in cells:
            if shape := cls.matrix_shape(classes):
                case = cls(shape, dtype, layout, cls._usual_mode())
                if case not in measured:
                    yield replace(case, study="types")

    @property
    def in_matrix(self) -> bool:
        """Whether the case is a cell of the matrix of types, layouts and class counts."""
        return (
            self.study in ("", "types")
            and self.shape == self.matrix_shape(self.num_classes)
            and self.mode == self._usual_mode()
        )

    # Who computes it.

    @abstractmethod
    def everyone(self) -> tuple[Implementation, ...]:
        """Who computes the case on one device or another, in the order of reports."""

    def implementations(self, device: torch.device) -> tuple[Implementation, ...]:
        """Who computes the case on `device`, in the order of reports."""
        return tuple(name for name in self.everyone() if name.device in ("", device.type))

    # What it costs.

    @property
    @abstractmethod
    def bytes_moved(self) -> int:
        """What any implementation must read and write: each input once, each output once."""

    @property
    def operations(self) -> int:
        """Floating-point operations of our algorithm; 0 where they are beside the point."""
        return 0

    @property
    def kernel_moves(self) -> int:
        """Bytes between memory and our CPU kernels, if what a tile needs stays in the cache."""
        return self.bytes_moved

    @property
    def cleared(self) -> int:
        """Bytes of fresh pages that the system clears for large results before they are written."""
        return 0

    def traffic(self, implementation: str) -> Traffic | None:
        """What one of our implementations moves; None where that is not known."""
        # Alone the kernel meets memory that has been touched before.
        return Traffic(self.kernel_moves, self.cleared if implementation == OURS else 0)

    # Its size.

    @property
    def id(self) -> str:
        """Names the case in reports and on command lines."""
        size = "x".join(map(str, self.shape))
        study = f"-{self.study}" if self.study else ""
        return f"{self.op}-{size}-{self.dtype}-{self.layout}-{self.mode}{study}"

    @property
    def num_classes(self) -> int:
        return self.shape[-3]

    @property
    def num_samples(self) -> int:
        return self.shape[-5] if len(self.shape) > 4 else 1

    @property
    def target_shape(self) -> Shape:
        """``(N, *)`` of the targets, or of the results of one sample."""
        *_, n, _, h, w = self.shape
        return n, h * self.enlargement, w * self.enlargement

    @property
    def pixels(self) -> int:
        """Pixels of the targets of all images, or of the results of one sample."""
        return math.prod(self.target_shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits of all samples, or of the values of label maps."""
        return math.prod(self.shape) * self.itemsize

    @property
    def is_training(self) -> bool:
        return self.mode == BOTH

    @property
    def is_showcase(self) -> bool:
        """Whether a reader should see it first."""
        usual = not self.study and (self.is_training or not self.is_loss)
        return usual and (self.shape, self.layout) == self.showcase

    # How it is timed.

    @property
    def measures_overhead(self) -> bool:
        """Whether the input is so small that the call, not the computation, takes the time."""
        return self.pixels <= _CALL_OVERHEAD_PIXELS

    @property
    def clock(self) -> Clock | None:
        """The clock to time it by; None is the device's usual one."""
        return "wall" if self.measures_overhead else None

    @property
    def min_rounds(self) -> int:
        """Rounds that are timed however long they take."""
        return _MIN_SHOWCASE_ROUNDS if self.is_showcase else _MIN_ROUNDS
