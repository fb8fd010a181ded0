"""What is measured: the cases of a suite, and who computes each."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from . import costs
from .timing import Clock

# How logits lie in memory, or what label maps show.
Layout = Literal["nchw", "channels_last", "street scene", "noise"]
Mode = Literal["forward", "forward+backward"]
Suite = Literal["quick", "default", "full"]
# What a case is part of besides the tables: the matrix of types and class counts, or a curve over
# pixels, classes or samples.
Study = Literal["", "types", "pixels", "classes", "samples"]

SUITES: tuple[Suite, ...] = ("quick", "default", "full")
OPS = (
    "cross_entropy",
    "upsampled_cross_entropy",
    "linear_cross_entropy",
    "predictive_statistics",
    "upsampled_predictive_statistics",
    "component_mean",
    "accumulate_counts",
    "upsampled_accumulate_counts",
)
CURVES: tuple[Study, ...] = ("pixels", "classes", "samples")

OURS = "ours"
KERNEL = "ours, kernel alone"
STREAMED = "ours, streamed"
ALL_TABLES = "ours, all metrics"
COMPILED = "torch.compile"
MAX_AUTOTUNE = "torch.compile, max-autotune"
EAGER = "eager"
TORCH_COMPILED = "F.cross_entropy, torch.compile"
TORCH = "F.cross_entropy"
TORCH_LINEAR = "F.linear_cross_entropy"
LIGER = "Liger"
KORNIA = "kornia's focal loss"
MONAI = "MONAI's focal loss"
PLAIN = "softmax, std, xlogy"
TORCHMETRICS = "torchmetrics"
LABELS = "ours, labels alone"
CC3D = "cc3d and NumPy"
CC3D_LABELS = "cc3d, labels alone"
SKIMAGE = "scikit-image and NumPy"
SKIMAGE_LABELS = "scikit-image, labels alone"
OPENCV = "OpenCV, class by class"
SCIPY = "SciPy, class by class"
CUPY = "CuPy, class by class"
# Peers that need a working compiler for the device, or a package or a torch that may be missing.
OPTIONAL = (
    *(COMPILED, MAX_AUTOTUNE, TORCH_COMPILED, TORCH_LINEAR, LIGER, KORNIA, MONAI),
    *(CC3D, CC3D_LABELS, SKIMAGE, SKIMAGE_LABELS, OPENCV, SCIPY, CUPY),
)
_GPU_ONLY = (MAX_AUTOTUNE, LIGER, CUPY)
_CPU_ONLY = (CC3D, CC3D_LABELS, SKIMAGE, SKIMAGE_LABELS, OPENCV, SCIPY)

# Height and width of the targets of an upsampled op, in those of the logits.
ENLARGEMENT = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CALL_OVERHEAD_PIXELS = 128 * 128
_MIN_ROUNDS, _MIN_SHOWCASE_ROUNDS = 3, 5


@dataclass(frozen=True)
class Case:
    """One point of the axes.

    `shape` is ``(N, C, H, W)``, for statistics with S before it, for label maps ``(N, H, W)``.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout = "nchw"
    mode: Mode = "forward"
    study: Study = ""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Case:
        """The case that a row of results is of."""
        return cls(
            row["op"],
            tuple(map(int, row["shape"].split("x"))),
            row["dtype"],
            row["layout"],
            row["mode"],
            row.get("study", ""),
        )

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
    def enlargement(self) -> int:
        """Height and width of the targets, in those of the logits."""
        return ENLARGEMENT if self.op.startswith("upsampled_") else 1

    @property
    def pixels(self) -> int:
        """Pixels of all images (of one sample), or of their targets."""
        images = self.shape[0] if self.op == "component_mean" else self.shape[-4]
        return images * self.shape[-2] * self.shape[-1] * self.enlargement**2

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits of all samples, or of the values of label maps."""
        return math.prod(self.shape) * self.itemsize

    @property
    def is_training(self) -> bool:
        return self.mode == "forward+backward"

    @property
    def bytes_moved(self) -> int:
        """What any implementation must read and write: each input once, each output once."""
        return costs.must_move(self)

    @property
    def operations(self) -> int:
        """Floating-point operations of our algorithm; 0 where they are beside the point."""
        return costs.operations(self)

    @property
    def is_showcase(self) -> bool:
        """Whether a reader should see it first: a common size, as a training step has it."""
        trains = self.is_training or not self.op.endswith("cross_entropy")
        return not self.study and trains and (self.shape, self.layout) == _SHOWCASES.get(self.op)

    def implementations(self, device: torch.device) -> tuple[str, ...]:
        """Who computes the case on `device`, in the order of reports."""
        other = _CPU_ONLY if device.type == "cuda" else _GPU_ONLY
        return tuple(name for name in self._implementations() if name not in other)

    def _implementations(self) -> tuple[str, ...]:
        if self.op == "component_mean":
            mean = (OURS, LABELS, CC3D, CC3D_LABELS, SKIMAGE, SKIMAGE_LABELS)
            return (*mean, OPENCV, SCIPY, CUPY, EAGER)
        if self.op == "linear_cross_entropy":
            return (OURS, TORCH_LINEAR, LIGER, TORCH_COMPILED, TORCH)
        if self.op.endswith("accumulate_counts"):
            has_peer = self.enlargement == 1 and importlib.util.find_spec("torchmetrics")
            return (OURS, ALL_TABLES, EAGER, *((TORCHMETRICS,) if has_peer else ()))
        autotuned = (MAX_AUTOTUNE,) if self.is_showcase else ()
        if self.op.endswith("predictive_statistics"):
            if self.study == "types":
                return (OURS, COMPILED, EAGER)
            if self.study:
                return (OURS, STREAMED, EAGER)
            shows = self.is_showcase and self.enlargement == 1 and self.dtype == "fp32"
            plain = (PLAIN,) if shows else ()
            return (OURS, STREAMED, COMPILED, *autotuned, EAGER, *plain)
        if self.study == "types":
            return (OURS, TORCH_COMPILED, TORCH)
        if self.study:
            return (OURS, EAGER, TORCH)
        # fp16 recomputes its gradient in the backward operator: no single kernel makes both.
        kernel = () if self.dtype == "fp16" and self.is_training else (KERNEL,)
        focal = (KORNIA, MONAI) if self.is_showcase and self.op == "cross_entropy" else ()
        return (OURS, *kernel, COMPILED, *autotuned, EAGER, TORCH_COMPILED, TORCH, *focal)

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


_LARGE = (1, 19, 768, 768)
_QUARTER = (1, 19, 192, 192)
_CITY = (1, 1024, 2048)
_EVALUATED = (4, 19, 512, 512)
_SHOWCASES: dict[str, tuple[tuple[int, ...], Layout]] = {
    "cross_entropy": (_LARGE, "nchw"),
    "upsampled_cross_entropy": (_QUARTER, "nchw"),
    # Of channels_last features the matrix that torch's function takes is a view.
    "linear_cross_entropy": (_QUARTER, "channels_last"),
    "predictive_statistics": ((10, *_LARGE), "nchw"),
    "upsampled_predictive_statistics": ((10, *_QUARTER), "nchw"),
    "component_mean": (_CITY, "street scene"),
    "accumulate_counts": (_EVALUATED, "nchw"),
    "upsampled_accumulate_counts": ((4, 19, 128, 128), "nchw"),
}


def cases(suite: Suite, device: torch.device, op: str | None = None) -> list[Case]:
    """The cases of a suite, all or those of one operation.

    ``"quick"`` is a look at the showcase, ``"default"`` adds types, layouts, class counts and
    small inputs one at a time and the studies, ``"full"`` is the product of the axes. Each begins
    with the smaller one's cases, so that a run that is cut short has the most telling ones.
    """
    half = ["bf16"] + (["fp16"] if device.type == "cuda" else [])
    modes: tuple[Mode, ...] = ("forward", "forward+backward")
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    both: Mode = "forward+backward"

    def loss(shape: tuple[int, ...], dtype: str, layout: Layout, mode: Mode) -> Case:
        return Case("cross_entropy", shape, dtype, layout, mode)

    def upsampled(
        shape: tuple[int, ...], dtype: str, layout: Layout = "nchw", mode: Mode = both
    ) -> Case:
        return Case("upsampled_cross_entropy", shape, dtype, layout, mode)

    def linear(shape: tuple[int, ...]) -> Case:
        return Case("linear_cross_entropy", shape, "fp32", "channels_last", both)

    def statistics(shape: tuple[int, ...], dtype: str, layout: Layout = "nchw") -> Case:
        return Case("predictive_statistics", shape, dtype, layout)

    def enlarged(op: str, dtype: str = "fp32", layout: Layout = "nchw") -> Case:
        shape, _ = _SHOWCASES[op]
        return Case(op, shape, dtype, layout)

    def means(shape: tuple[int, ...], content: Layout) -> Case:
        return Case("component_mean", shape, "fp32", content)

    def counts(shape: tuple[int, ...], dtype: str, layout: Layout = "nchw") -> Case:
        return Case("accumulate_counts", shape, dtype, layout)

    showcase = _LARGE
    patches = (2, 19, 64, 64)
    tiny = (1, 19, 16, 16)
    quarter = _QUARTER
    many = (2, 150, 128, 128)
    wide = (10, 1, 150, 256, 256)
    evaluated = _EVALUATED
    chosen: list[Case] = [
        loss(showcase, "fp32", "nchw", both),
        loss(showcase, "bf16", "nchw", both),
        loss(tiny, "fp32", "nchw", both),
        upsampled(quarter, "fp32"),
        statistics((10, *showcase), "fp32"),
        enlarged("upsampled_predictive_statistics"),
        means(_CITY, "street scene"),
        counts(evaluated, "fp32"),
        enlarged("upsampled_accumulate_counts"),
        linear(quarter),
    ]
    if suite in ("default", "full"):
        chosen += [loss(showcase, dtype, "nchw", both) for dtype in half[1:]]
        chosen += [loss(showcase, dtype, "channels_last", both) for dtype in ("fp32", *half)]
        chosen += [loss(showcase, dtype, "nchw", "forward") for dtype in ("fp32", *half)]
        chosen += [loss(showcase, "fp32", "channels_last", "forward")]
        chosen += [loss((1, c, 768, 768), "fp32", "nchw", both) for c in (2, 150)]
        chosen += [loss(tiny, "fp32", "nchw", "forward")]
        chosen += [loss(patches, "fp32", "nchw", mode) for mode in modes]
        chosen += [upsampled(quarter, dtype) for dtype in half]
        chosen += [upsampled(quarter, "fp32", "channels_last")]
        chosen += [upsampled(quarter, "fp32", mode="forward")]
        chosen += [upsampled(shape, "fp32") for shape in ((1, 2, 192, 192), many, tiny)]
        chosen += [statistics((10, *showcase), dtype) for dtype in half]
        chosen += [statistics((10, *showcase), "fp32", "channels_last")]
        chosen += [statistics((10, *patches), "fp32")]
        chosen += [means(_CITY, "noise"), means((8, 360, 480), "street scene")]
        chosen += [counts(evaluated, dtype) for dtype in half]
        chosen += [counts(evaluated, "fp32", "channels_last")]
        for name in ("upsampled_predictive_statistics", "upsampled_accumulate_counts"):
            chosen += [enlarged(name, dtype) for dtype in half]
            chosen += [enlarged(name, layout="channels_last")]
        chosen += [linear(many)]
        chosen += _curves() + _types(chosen)
    if suite == "full":
        chosen += [
            loss((1, c, 768, 768), dtype, layout, mode)
            for c, dtype, layout, mode in itertools.product(
                (2, 19, 150), ("fp32", *half), layouts, modes
            )
        ]
        chosen += [
            loss(shape, dtype, "nchw", mode)
            for shape, dtype, mode in itertools.product((tiny, patches), half, modes)
        ]
        chosen += [
            upsampled(shape, dtype, layout, mode)
            for shape, dtype, layout, mode in itertools.product(
                ((1, 2, 192, 192), quarter, many), ("fp32", *half), layouts, modes
            )
        ]
        chosen += [
            statistics(shape, dtype, layout)
            for shape, dtype, layout in itertools.product(
                ((10, 1, 2, 768, 768), (10, *showcase), wide), ("fp32", *half), layouts
            )
        ]
        chosen += [
            counts(shape, dtype, layout)
            for shape, dtype, layout in itertools.product(
                ((4, 2, 512, 512), evaluated, (1, 150, 512, 512)), ("fp32", *half), layouts
            )
        ]
    return [case for case in dict.fromkeys(chosen) if op in (None, case.op)]


def _curves() -> list[Case]:
    """Time and memory against pixels, classes and samples, in fp32."""

    def loss(classes: int, size: int, study: Study) -> Case:
        shape = (1, classes, size, size)
        return Case("cross_entropy", shape, "fp32", mode="forward+backward", study=study)

    def statistics(samples: int, classes: int, size: int, study: Study) -> Case:
        shape = (samples, 1, classes, size, size)
        return Case("predictive_statistics", shape, "fp32", study=study)

    return [
        *(loss(19, size, "pixels") for size in (64, 128, 256, 512, 1024, 2048)),
        *(loss(2**k, 256, "classes") for k in range(1, 9)),
        *(statistics(4, 19, size, "pixels") for size in (64, 128, 256, 512, 1024)),
        *(statistics(4, 2**k, 256, "classes") for k in range(1, 9)),
        *(statistics(2**k, 19, 256, "samples") for k in range(1, 7)),
    ]


def _types(measured: list[Case]) -> list[Case]:
    """What is missing to compare types, layouts and class counts: see :func:`types_matrix`."""

    def missing(op: str, shape: tuple[int, ...], dtype: str, layout: Layout = "nchw") -> list[Case]:
        mode: Mode = "forward" if op == "predictive_statistics" else "forward+backward"
        if Case(op, shape, dtype, layout, mode) in measured:
            return []
        return [Case(op, shape, dtype, layout, mode, study="types")]

    chosen: list[Case] = []
    for dtype in ("fp32", "bf16"):
        for c in (2, 11, 19, 21, 150):
            enlarged = (1, c, 192, 192) if c < 150 else (2, c, 128, 128)
            chosen += missing("cross_entropy", (1, c, 768, 768), dtype)
            chosen += missing("upsampled_cross_entropy", enlarged, dtype)
            chosen += missing("predictive_statistics", (10, 1, c, 256, 256), dtype)
    others: tuple[tuple[str, Layout], ...] = (
        ("fp32", "channels_last"),
        ("bf16", "channels_last"),
        ("fp16", "nchw"),
    )
    for dtype, layout in others:
        chosen += missing("cross_entropy", _LARGE, dtype, layout)
        chosen += missing("upsampled_cross_entropy", _QUARTER, dtype, layout)
        chosen += missing("predictive_statistics", (10, 1, 19, 256, 256), dtype, layout)
    return chosen


# The images of the matrix of types, one size for each op and class count.
_MATRIX_SIZES = {
    "cross_entropy": ("768x768",),
    "upsampled_cross_entropy": ("192x192", "128x128"),
    "predictive_statistics": ("256x256",),
}


def in_types_matrix(case: Case) -> bool:
    """Whether a case is a cell of the matrix of types, layouts and class counts of its op."""
    size = f"{case.shape[-2]}x{case.shape[-1]}"
    return (
        case.study in ("", "types")
        and size in _MATRIX_SIZES.get(case.op, ())
        and case.is_training != (case.op == "predictive_statistics")
    )
