"""Arrays for kernels that run on the host: element types, layouts, guarded memory.

A kernel gets an array inside a larger buffer whose other elements are NaN (all bits set). Reading
one of them shows in a result, writing one is found by :meth:`Placed.check_surroundings`.
"""

from __future__ import annotations

import importlib
import math
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FLAVORS = ("plain", "sanitize", "race")
# The build that this process runs; test_flavors.py starts processes for the other two.
FLAVOR = os.environ.get("SEGUNC_NATIVE_FLAVOR", "plain")
# Schedules that each case runs under. Instrumented builds are slower: they get fewer, and of a grid
# of cases every fifth, which shares no factor with the sizes of its axes.
SEEDS = {"plain": range(5), "sanitize": range(1, 3), "race": range(1, 4)}[FLAVOR]
_THINNING = {"plain": 1, "sanitize": 5, "race": 5}[FLAVOR]

DTYPES = ("f64", "f32", "bf16", "f16")
LAYOUTS = ("planar", "channels_last", "crop", "class_gap", "unaligned", "forced")
# What is dense but for a gap, with numbers of pixels of which it leaves some vectors of 16 bytes
# aligned, in float32, and others not.
GAPS = (("class_gap", 66), ("odd_classes", 64), ("odd_images", 64), ("images_apart", 65))
CLASS_COUNTS = (1, 2, 3, 11, 19, 21, 33, 150)
TARGET_TYPES = (np.int64, np.int32, np.int16, np.uint8)
# Pixels of an image, around the sizes of warps, vectors, tiles and blocks, and shapes of so many.
SIZES = (1, 31, 32, 33, 127, 129, 1031)
SHAPES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((), (1,), (1, 1)),
    31: ((31,), (1, 31)),
    32: ((32,), (4, 8), (2, 4, 4)),
    33: ((33,), (3, 11), (11, 3)),
    127: ((127,), (127, 1)),
    129: ((129,), (3, 43)),
    1031: ((1031,), (1031, 1)),
}

_STORAGE = {"f64": np.float64, "f32": np.float32, "bf16": np.uint16, "f16": np.uint16}
_GUARD = 64  # elements: keeps the alignment of the buffer


def native_directory() -> Path:
    """Where the test modules lie: ``SEGUNC_NATIVE_DIR``, else ``build/native``."""
    default = Path(__file__).resolve().parents[2] / "build" / "native"
    return Path(os.environ.get("SEGUNC_NATIVE_DIR", default))


def load_module(flavor: str) -> ModuleType:
    """The test module of a build.

    Raises:
        FileNotFoundError: it has not been built.
    """
    directory = native_directory()
    name = f"segunc_host_{flavor}"
    if not any(directory.glob(f"{name}.*")):
        raise FileNotFoundError(
            f"{name} is not in {directory}: `make test` builds it, SEGUNC_NATIVE_DIR names another "
            "folder"
        )
    sys.path.insert(0, str(directory))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(directory))


def thinned(cases: list[Any]) -> list[Any]:
    """The cases for this build: all of them only in the fast one."""
    return cases[::_THINNING]


def accumulate_type(dtype: str) -> type[np.floating[Any]]:
    """The type that a kernel computes and returns per-pixel results in."""
    return np.float64 if dtype == "f64" else np.float32


def epsilon(dtype: str) -> float:
    return float(np.finfo(accumulate_type(dtype)).eps)


def pixels_last(values: Array) -> Array:
    """[N, C, *spatial] to [N, C, P]."""
    return np.ascontiguousarray(values).reshape(*values.shape[:2], -1)


def drawn_spatial(generator: np.random.Generator, most_pixels: int) -> tuple[int, ...]:
    """One of ``SHAPES``."""
    sizes = [size for size in SIZES if size <= most_pixels]
    shapes = SHAPES[int(generator.choice(sizes))]
    return shapes[int(generator.integers(len(shapes)))]


def encode(values: Array, dtype: str) -> Array:
    """Real numbers to storage, rounded to nearest even."""
    if dtype == "f16":
        return values.astype(np.float16).view(np.uint16)
    if dtype == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    return values.astype(_STORAGE[dtype])


def decode(stored: Array, dtype: str) -> NDArray[np.float64]:
    """Storage to float64, exactly."""
    if dtype == "f16":
        return np.ascontiguousarray(stored).view(np.float16).astype(np.float64)
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def rounding(dtype: str) -> tuple[float, float]:
    """The relative and absolute error of storing a result."""
    return {
        "f64": (0.0, 0.0),
        "f32": (0.0, 0.0),
        "bf16": (2.0**-8, 0.0),
        "f16": (2.0**-11, 2.0**-25),
    }[dtype]


@dataclass
class Placed:
    """An array in a larger buffer.

    Attributes:
        view: the array, of any strides.
        buffer: the whole of it, flat.
    """

    view: Array
    buffer: Array
    _positions: Array = field(repr=False)

    def fill_garbage(self) -> None:
        """Forgets the array's contents."""
        self.buffer.view(np.uint8)[:] = 0xFF

    def check_surroundings(self, name: str) -> None:
        """Fails if an element outside the array has changed."""
        outside = np.ones(self.buffer.size, bool)
        outside[self._positions.ravel()] = False
        width = self.buffer.itemsize
        changed = (self.buffer.view(np.uint8).reshape(-1, width) != 0xFF).any(1) & outside
        assert not changed.any(), f"{name}: written outside at {np.flatnonzero(changed)[:5]}"


def _element_strides(shape: tuple[int, ...], layout: str) -> tuple[list[int], int]:
    """Strides of [N, C, *spatial] and how many elements they span."""
    images, classes, *spatial = shape
    padded = [size + 3 for size in spatial] if layout == "crop" else list(spatial)
    pixels = math.prod(padded)
    spatial_strides = [math.prod(padded[axis + 1 :]) for axis in range(len(padded))]
    if layout == "channels_last":
        strides = [pixels * classes, 1, *(stride * classes for stride in spatial_strides)]
        return strides, images * pixels * classes
    if layout == "images_apart":  # channels_last, with a pixel between images
        image_stride = (pixels + 1) * classes
        strides = [image_stride, 1, *(stride * classes for stride in spatial_strides)]
        return strides, images * image_stride
    class_stride = {"class_gap": 2 * pixels, "odd_classes": pixels + 1}.get(layout, pixels)
    image_stride = classes * class_stride + (layout == "odd_images")
    return [image_stride, class_stride, *spatial_strides], images * image_stride


def place(
    shape: tuple[int, ...], dtype: Any, layout: str = "planar", values: Array | None = None
) -> Placed:
    """An array of ``shape`` in guarded memory.

    Args:
        shape: any; ``[N, C, *spatial]`` for layouts other than planar and unaligned.
        dtype: NumPy's.
        layout: one of ``LAYOUTS`` or ``GAPS``; ``forced`` lies as planar does.
        values: the contents, garbage without.
    """
    if layout in ("planar", "forced", "unaligned"):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        extent = math.prod(shape)
    else:
        strides, extent = _element_strides(shape, layout)
    offset = _GUARD + (layout == "unaligned")
    # A sanitizer sees what is read beyond the end of an allocation, if nothing else is there.
    behind = 0 if FLAVOR == "sanitize" else _GUARD
    buffer = np.empty(offset + extent + behind, dtype)

    def window(flat: Array) -> Array:
        return np.lib.stride_tricks.as_strided(
            flat[offset:], shape, [stride * flat.itemsize for stride in strides]
        )

    placed = Placed(window(buffer), buffer, window(np.arange(buffer.size)))
    placed.fill_garbage()
    if values is not None:
        placed.view[...] = values
    return placed


def place_elements(values: Array, dtype: str, layout: str) -> Placed:
    """Real numbers [N, C, *spatial] as a kernel's input."""
    return place(values.shape, _STORAGE[dtype], layout, encode(values, dtype))


def place_output(shape: tuple[int, ...], dtype: str, layout: str) -> Placed:
    """Garbage [N, C, *spatial] for a kernel to fill with elements."""
    return place(shape, _STORAGE[dtype], layout)


def assert_unchanged(input: Placed, before: Array) -> None:
    """Fails if a kernel's input is not what it was."""
    same = np.array_equal(input.buffer.view(np.uint8), before.view(np.uint8))
    assert same, "the input has changed"


def place_far_apart(values: Array) -> Array:
    """A copy of one image [1, C, P], planar, with classes further apart than 32 bits can tell. What
    lies between them is never touched and takes no memory."""
    _, classes, pixels = values.shape
    distance = 2**32
    elements = (classes - 1) * distance + pixels
    no_reserve = 0x4000  # Linux's MAP_NORESERVE, which mmap names from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = np.frombuffer(mmap.mmap(-1, elements * values.itemsize, flags=flags), values.dtype)
    strides = [values.itemsize * stride for stride in (elements, distance, 1)]
    view = np.lib.stride_tricks.as_strided(memory, values.shape, strides)
    view[...] = values
    return view


def assert_same_bits(actual: dict[str, Array], expected: dict[str, Array], seed: int) -> None:
    """Fails unless two runs have the same results, NaN included."""
    for name, value in expected.items():
        same = np.ascontiguousarray(actual[name]).tobytes() == np.ascontiguousarray(value).tobytes()
        assert same, f"{name} differs under seed {seed}"


def run_under_seeds(host: ModuleType, run: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """The results of ``run``, which are the same under every schedule."""
    first: dict[str, Array] | None = None
    for seed in SEEDS:
        host.set_seed(seed)
        results = run()
        if first is None:
            first = results
        else:
            assert_same_bits(results, first, seed)
    assert first is not None
    return first


def threads_of_report(host: ModuleType, run: Callable[[], object]) -> float:
    """How many threads of ``run``, which meets targets that are no classes, share a report to the
    host."""
    before = host.counters()
    run()
    after = host.counters()
    reports: int = after["host_flags"] - before["host_flags"]
    assert reports > 0
    threads: int = after["threads"] - before["threads"]
    return threads / reports


def assert_close(name: str, actual: Array, expected: Array, tolerance: Array | float) -> None:
    """Fails where |actual - expected| > tolerance, naming the worst element. NaN equals NaN, and
    an infinity itself."""
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(actual, np.float64) - expected)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    excess = np.where(same, 0.0, error - tolerance)
    bad = ~(excess <= 0)
    if bad.any():
        worst = np.unravel_index(
            np.argmax(np.where(bad, np.nan_to_num(excess, nan=np.inf), -1)), excess.shape
        )
        place_ = tuple(int(i) for i in worst)
        raise AssertionError(
            f"{name}: {int(bad.sum())} of {bad.size} wrong, worst at {place_}: got "
            f"{actual[worst]!r}, expected {expected[worst]!r}"
        )


def shared_bytes(host: ModuleType, run: Callable[[], object]) -> int:
    """The most shared memory that a launch of ``run`` has, static and dynamic together; where it is
    more than a GPU grants, the host execution refuses the launch."""
    host.set_seed(0)
    run()
    most: int = host.counters()["shared_bytes"]
    return most
