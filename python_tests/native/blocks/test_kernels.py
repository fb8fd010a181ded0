"""csrc/blocks/cuda/kernels.h, run on the host, against float64 NumPy.

Each case runs under several schedules, which must agree bit for bit. Outputs start as garbage, and
nothing around them may change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest

from python_tests.native.harness import (
    CLASS_COUNTS,
    DTYPES,
    LAYOUTS,
    Array,
    accumulate_type,
    assert_close,
    decode,
    encode,
    epsilon,
    place,
    place_elements,
    run_under_seeds,
    shared_bytes,
    thinned,
)
from python_tests.native.interpolation import Interpolated, interpolated
from python_tests.native.references import log_softmax

# Size, block and stride of an axis.
Axis = tuple[int, int, int]

# Rows and columns: side by side and overlapping, strides that divide blocks and that do not, the
# last block shifted inside or not; blocks of all pixels and of single ones; columns of several
# tiles, where a tile starts with a cell and where it does not; starts that meet ends; rows of
# channels_last that are no whole vectors.
GRIDS: tuple[tuple[Axis, Axis], ...] = (
    ((8, 4, 4), (16, 8, 8)),
    ((12, 8, 4), (20, 8, 4)),
    ((9, 4, 3), (33, 20, 7)),
    ((7, 7, 7), (131, 64, 33)),
    ((1, 1, 1), (7, 2, 2)),
    ((5, 1, 1), (6, 1, 1)),
    ((6, 3, 1), (36, 12, 1)),
    ((11, 6, 6), (10, 4, 3)),
    ((4, 4, 2), (260, 128, 64)),
    ((4, 2, 2), (384, 128, 128)),
    ((3, 3, 3), (300, 299, 150)),
    ((2, 1, 1), (22, 7, 5)),
    ((2, 2, 1), (1024, 512, 512)),
    ((2, 1, 1), (1100, 700, 100)),
)


@dataclass(frozen=True)
class BlocksCase:
    dtype: str
    layout: str
    classes: int
    rows: Axis
    columns: Axis
    images: int = 2
    source: tuple[int, int] | None = None  # of logits that are interpolated
    align_corners: bool = False
    seed: int = 0

    def __str__(self) -> str:
        axes = "-".join("/".join(map(str, axis)) for axis in (self.rows, self.columns))
        source = f"-from-{'x'.join(map(str, self.source))}" if self.source else ""
        corners = "-corners" if self.align_corners else ""
        return f"{self.dtype}-{self.layout}-{self.images}x{self.classes}-{axes}{source}{corners}"

    @property
    def size(self) -> tuple[int, int]:
        return self.rows[0], self.columns[0]


def starts(axis: Axis) -> list[int]:
    size, block, stride = axis
    return [min(k * stride, size - block) for k in range(math.ceil((size - block) / stride) + 1)]


def logits_of(case: BlocksCase, spread: float = 3.0) -> Array:
    generator = np.random.default_rng(case.seed)
    shape = (case.images, case.classes, *(case.source or case.size))
    return decode(encode(generator.normal(size=shape) * spread, case.dtype), case.dtype)


def expected(case: BlocksCase, logits: Array) -> Array:
    """Block by block, in bits."""
    if case.source:
        logits = interpolated(logits, Interpolated(case.size, case.align_corners), case.dtype)
    log_p = log_softmax(logits)
    with np.errstate(invalid="ignore"):
        p = np.exp(log_p)
        entropy = -np.where(p == 0, 0, p * log_p).sum(1) / math.log(2)
    height, width = case.rows[1], case.columns[1]
    means = [
        [entropy[:, y : y + height, x : x + width].mean((1, 2)) for x in starts(case.columns)]
        for y in starts(case.rows)
    ]
    return np.moveaxis(np.array(means), -1, 0)


def run_blocks(host: ModuleType, case: BlocksCase, logits: Array) -> dict[str, Array]:
    shape = (case.images, len(starts(case.rows)), len(starts(case.columns)))
    means = place(shape, accumulate_type(case.dtype))
    host.block_means(
        logits=place_elements(logits, case.dtype, case.layout).view,
        dtype=case.dtype,
        as_strided=case.layout == "forced",
        rows=list(case.rows),
        columns=list(case.columns),
        align_corners=case.align_corners if case.source else None,
        factor=1 / (case.rows[1] * case.columns[1] * math.log(2)),
        means=means.view,
    )
    means.check_surroundings("means")
    return {"means": means.view.copy()}


def verify(host: ModuleType, case: BlocksCase, logits: Array) -> Array:
    means = run_under_seeds(host, lambda: run_blocks(host, case, logits))["means"]
    # Of each pixel: rounded logits, sums over classes, a logarithm.
    size = 1 + float(np.abs(logits[np.isfinite(logits)]).max()) if case.source else 4.0
    tolerance = 8 * epsilon(case.dtype) * size * (2 + math.log2(case.classes))
    assert_close("means", means, expected(case, logits), tolerance)
    return means


CASES = [
    BlocksCase(dtype, layout, classes, *GRIDS[(5 * i + 3 * j + k) % 11], seed=i + j + k)
    for i, dtype in enumerate(DTYPES)
    for j, layout in enumerate(LAYOUTS)
    for k, classes in enumerate(CLASS_COUNTS)
    if (i + j + k) % 2 == 0 or classes == 19
]


@pytest.mark.parametrize("case", thinned(CASES), ids=str)
def test_every_type_layout_and_number_of_classes(host: ModuleType, case: BlocksCase) -> None:
    verify(host, case, logits_of(case))


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop", "unaligned"])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid(host: ModuleType, grid: tuple[Axis, Axis], layout: str) -> None:
    case = BlocksCase("f32", layout, 3, *grid, images=1)
    verify(host, case, logits_of(case))


def test_random_axes(host: ModuleType) -> None:
    """Cells are whatever starts and ends of blocks cut: any size, block and stride."""
    generator = np.random.default_rng(0)
    for number in thinned([*range(40)]):
        axes = []
        for most in (14, 160):
            size = int(generator.integers(1, most))
            block = int(generator.integers(1, size + 1))
            axes.append((size, block, int(generator.integers(1, block + 1))))
        case = BlocksCase("f32", "planar", 2, *axes, images=1, seed=number)
        logits = logits_of(case)
        assert_close("means", run_blocks(host, case, logits)["means"], expected(case, logits), 2e-5)


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
def test_more_tiles_than_blocks(host: ModuleType, layout: str) -> None:
    case = BlocksCase("f32", layout, 2, (41, 20, 10), (650, 300, 200), images=3)
    verify(host, case, logits_of(case))


SOURCES = ((1, 1), (4, 5), (9, 33), (30, 11))


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_interpolated_logits(host: ModuleType, dtype: str, layout: str) -> None:
    for number, source in enumerate(SOURCES):
        for align_corners in (False, True):
            grid = GRIDS[(number + 4 * align_corners + DTYPES.index(dtype)) % 10]
            classes = (1, 3, 19, 6)[number]
            case = BlocksCase(dtype, layout, classes, *grid, 2, source, align_corners, number)
            verify(host, case, logits_of(case))


@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_nan_and_infinity(host: ModuleType, dtype: str, classes: int, layout: str) -> None:
    """NaN makes its block NaN, as infinity does; a class of logit -inf has no mass, and logits may
    have any size."""
    case = BlocksCase(dtype, layout, classes, (1, 1, 1), (16, 1, 1), images=1)
    logits = logits_of(case)
    logits[0, 2, 0, 3] = np.nan
    logits[0, :, 0, 4] = np.nan
    logits[0, 1, 0, 5] = np.inf
    logits[0, :, 0, 6] = -np.inf
    logits[0, 0, 0, 7] = -np.inf
    logits[0, 2, 0, 8] = -np.inf
    logits[0, :, 0, 9] = 1e4
    logits[0, :, 0, 10] = 1e30
    logits[0, :, 0, 11] = -1e30
    logits[0, 1, 0, 11] = -2e30
    logits[0, :-1, 0, 12] = -np.inf
    logits[0, :, 0, 13] = np.linspace(-90, 0, classes)
    means = run_under_seeds(host, lambda: run_blocks(host, case, logits))["means"][0, 0]
    assert np.isnan(means[3:7]).all()
    kept = [i for i in range(16) if not 3 <= i < 7]
    assert_close("means", means[kept], expected(case, logits)[0, 0, kept], 64 * epsilon(dtype))
    assert means[12] == 0


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_share_of_zero_spreads_nothing(host: ModuleType, align_corners: bool) -> None:
    case = BlocksCase(
        "f32", "planar", 3, (11, 1, 1), (13, 1, 1), 1, (6, 7), align_corners=align_corners
    )
    logits = logits_of(case)
    logits[0, 0, 3, 3] = np.nan
    logits[0, 1, 5, 6] = -np.inf
    means = verify(host, case, logits)
    assert 0 < np.isnan(means).sum() < 30


def test_the_overlap_changes_nothing(host: ModuleType) -> None:
    """The mean of a block is the same number whatever blocks lie over it."""
    for height, width in ((4, 2), (16, 64)):
        alone = BlocksCase("f32", "planar", 5, (32, height, height), (256, width, width), images=1)
        logits = logits_of(alone)
        wanted = run_blocks(host, alone, logits)["means"]
        for stride in (1, 2):
            case = replace(alone, rows=(32, height, stride), columns=(256, width, stride))
            means = run_blocks(host, case, logits)["means"]
            assert np.array_equal(means[:, :: height // stride, :: width // stride], wanted)


def test_sums_are_few(host: ModuleType) -> None:
    """No map: of bands of four rows, cells as wide as blocks, and where tiles cut them."""
    means = np.empty((1, 4, 8), np.float32)
    for width, most in ((2048, 256 * (8 + 3)), (2044, 256 * (9 + 3))):
        logits = np.zeros((1, 1, 1024, width), np.float32)
        sums = host.block_means(
            logits=logits,
            dtype="f32",
            rows=[1024, 256, 256],
            columns=[width, 256, 256],
            factor=1.0,
            means=means,
        )
        assert sums <= most


@pytest.mark.parametrize("classes", thinned([64, 65, 129, 256, 257, 511, 512, 513]))
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_largest_tiles_fit_shared_memory(host: ModuleType, dtype: str, classes: int) -> None:
    case = BlocksCase(dtype, "channels_last", classes, (3, 2, 1), (20, 9, 5), images=1)
    logits = logits_of(case)
    results: dict[str, Array] = {}
    assert shared_bytes(host, lambda: results.update(run_blocks(host, case, logits))) > 0
    assert_close("means", results["means"], expected(case, logits), 200 * epsilon(dtype))
