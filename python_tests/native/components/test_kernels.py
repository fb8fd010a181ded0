"""Connected components and means over them on the host, against scikit-image, cc3d and float64.

Each case runs under several schedules, which must agree bit for bit. Scratch and outputs start as
garbage, and nothing around them may change.
"""

from __future__ import annotations

import math
from types import ModuleType

import cc3d
import numpy as np
import pytest

from python_tests.label_maps import PATTERNS, blobs, noise, spiral
from python_tests.native.components import references
from python_tests.native.harness import (
    DTYPES,
    Array,
    accumulate_type,
    assert_close,
    decode,
    encode,
    place,
    rounding,
    run_under_seeds,
    thinned,
)

BOTH = pytest.mark.parametrize("diagonal", [False, True])
# Around the sizes of warps and tiles; threads move 8 pixels where that divides the width.
WIDTHS = (1, 31, 32, 33, 63, 64, 65, 72)
LABEL_TYPES = (np.uint8, np.int16, np.int32, np.int64)


# ---- Running and checking


def run_components(
    host: ModuleType,
    labels: Array,
    diagonal: bool,
    ignored: int | None,
    layout: str = "planar",
) -> dict[str, Array]:
    placed = place(labels.shape, labels.dtype, layout, labels)
    before = placed.buffer.copy()
    outputs = {
        "components": place(labels.shape, np.int32, layout),
        "counts": place((len(labels),), np.int64),
    }
    arguments = {"labels": placed.view, "diagonal": diagonal, "ignored": ignored}
    scratch = place((host.components_scratch_bytes(**arguments),), np.uint8)
    host.connected_components(
        **arguments,
        scratch=scratch.view,
        **{name: output.view for name, output in outputs.items()},
    )
    for name, output in {"scratch": scratch, **outputs}.items():
        output.check_surroundings(name)
    assert np.array_equal(placed.buffer, before), "the labels have changed"
    return {name: output.view.copy() for name, output in outputs.items()}


def run_mean(
    host: ModuleType,
    labels: Array,
    values: Array,
    dtype: str,
    diagonal: bool,
    ignored: int | None,
    bound: float,
    layout: str = "planar",
) -> dict[str, Array]:
    """values: as stored."""
    placed = place(values.shape, values.dtype, layout, values)
    means = place(values.shape, values.dtype, layout)
    arguments = {
        "labels": place(labels.shape, labels.dtype, layout, labels).view,
        "values": placed.view,
        "dtype": dtype,
        "diagonal": diagonal,
        "ignored": ignored,
        "bound": bound,
    }
    scratch = place((host.component_mean_scratch_bytes(**arguments),), np.uint8)
    host.component_mean(**arguments, means=means.view, scratch=scratch.view)
    for name, output in {"scratch": scratch, "means": means, "values": placed}.items():
        output.check_surroundings(name)
    assert placed.view.tobytes() == values.tobytes(), "the values have changed"
    return {"means": means.view.copy()}


def check_mean(
    host: ModuleType,
    labels: Array,
    values: Array,
    ids: Array,
    dtype: str = "f32",
    *,
    diagonal: bool = True,
    ignored: int | None = None,
    bound: float = 0.0,
) -> Array:
    """Compares with float64 on the stored values; returns the means, decoded."""
    stored = encode(values, dtype)
    exact = decode(stored, dtype)
    results = run_under_seeds(
        host, lambda: run_mean(host, labels, stored, dtype, diagonal, ignored, bound)
    )
    actual = decode(results["means"], dtype)
    expected = references.component_mean(exact, ids)
    finite = np.abs(exact[np.isfinite(exact) & (ids > 0)])
    largest = bound or float(finite.max(initial=0.0))
    pixels = math.prod(labels.shape[1:])
    relative, absolute = rounding(dtype)
    # Of the fixed point, of the reference's own sums, and of rounding the result.
    fixed_point = max(pixels * 2.0**-60, 0 if dtype == "f64" else 2.0**-44)
    slack = largest * (fixed_point + pixels * 2.0**-53) + absolute
    scale = relative + float(np.finfo(accumulate_type(dtype)).eps)
    assert_close("means", actual, expected, np.abs(np.nan_to_num(expected)) * scale + slack)
    return actual


def verify(
    host: ModuleType, labels: Array, diagonal: bool, ignored: int | None = None
) -> tuple[Array, Array]:
    """Ids and means of [N, *spatial]; returns ids and counts."""
    ids, counts = references.components(labels, diagonal, ignored)
    results = run_under_seeds(host, lambda: run_components(host, labels, diagonal, ignored))
    assert np.array_equal(results["counts"], counts)
    wrong = np.argwhere(results["components"] != ids)
    assert len(wrong) == 0, f"{len(wrong)} ids are wrong, the first at {wrong[0].tolist()}"
    values = np.random.default_rng(labels.size).random(labels.shape)
    check_mean(host, labels, values, ids, diagonal=diagonal, ignored=ignored, bound=1.0)
    return results["components"], results["counts"]


# ---- Shapes and patterns


@BOTH
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(host: ModuleType, pattern: str, diagonal: bool) -> None:
    verify(host, np.ascontiguousarray(PATTERNS[pattern](70, 136))[None], diagonal)


NOISE = [
    (classes, share, diagonal)
    for classes, share in ((2, 0.4), (2, 0.5), (2, 0.6), (3, None), (3, 0.9), (19, None), (19, 0.7))
    for diagonal in (False, True)
]


@pytest.mark.parametrize(("classes", "share", "diagonal"), thinned(NOISE))
def test_noise(host: ModuleType, classes: int, share: float | None, diagonal: bool) -> None:
    verify(host, noise((1, 66, 131), classes, share), diagonal)


@BOTH
@pytest.mark.parametrize("width", WIDTHS)
def test_ragged_sizes(host: ModuleType, width: int, diagonal: bool) -> None:
    for height in (1, 31, 33):
        verify(host, noise((2, height, width), 2), diagonal)


@BOTH
@pytest.mark.parametrize("shape", [(1, 500, 1), (1, 1, 500), (3, 1, 1), (1, 64, 128)])
def test_thin_and_whole_tiles(host: ModuleType, shape: tuple[int, ...], diagonal: bool) -> None:
    verify(host, noise(shape, 2), diagonal)


@pytest.mark.parametrize("flipped", [False, True])
def test_diagonals_across_borders_of_tiles(host: ModuleType, flipped: bool) -> None:
    """Pairs of pixels that nothing else connects, at corners of tiles, too."""
    labels = np.zeros((1, 96, 192), np.uint8)
    places = [(y, x) for y in (32, 64) for x in range(4, 192, 4)]
    places += [(y, x) for x in (64, 128) for y in range(4, 96, 4)]
    for y, x in places:
        labels[0, y - 1, x - 1] = labels[0, y, x] = 1
    verify(host, np.ascontiguousarray(labels[..., ::-1] if flipped else labels), True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_unaligned_maps(host: ModuleType, dtype: type) -> None:
    """What moves as vectors elsewhere gives the same where it cannot."""
    labels = noise((1, 40, 72), 3, 0.5, dtype)
    values = np.random.default_rng(3).random(labels.shape).astype(np.float32)
    for run in (
        lambda layout: run_components(host, labels, True, None, layout),
        lambda layout: run_mean(host, labels, values, "f32", True, None, 1.0, layout),
    ):
        expected = run("planar")
        for name, actual in run("unaligned").items():
            assert np.array_equal(actual, expected[name])


def test_maps_at_any_address(host: ModuleType) -> None:
    """Vectors move where an address is a multiple of 16 bytes, and of nothing else."""
    labels = noise((1, 4, 8), 2)
    ids, _ = references.components(labels, True, None)
    arguments = {"labels": labels, "diagonal": True, "ignored": None}
    scratch = np.empty(host.components_scratch_bytes(**arguments), np.uint8)
    buffer, counts = np.empty(100, np.int32), np.empty(1, np.int64)
    for first in range(buffer.size - labels.size):
        components = buffer[first : first + labels.size].reshape(labels.shape)
        host.connected_components(
            **arguments, scratch=scratch, components=components, counts=counts
        )
        assert np.array_equal(components, ids)


# On the host a chunk has 8 tiles: several images each, one each, and images that are larger.
@pytest.mark.parametrize("shape", [(19, 9, 21), (5, 40, 70), (2, 100, 130)])
def test_batches_go_through_in_chunks(host: ModuleType, shape: tuple[int, ...]) -> None:
    verify(host, noise(shape, 3, 0.5), True)


# There a segment of the bitmap of first pixels has 8 words, and a block scans 256 segments at once.
def test_many_segments_are_scanned(host: ModuleType) -> None:
    labels = blobs(290, 240)
    labels[noise(labels.shape, 2, 0.97) == 1] = 9
    verify(host, labels[None], False)


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 3, 4)])
def test_nothing(host: ModuleType, shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, np.uint8)
    results = run_components(host, labels, True, None)
    assert results["counts"].tolist() == [0] * shape[0]
    run_mean(host, labels, np.zeros(shape, np.float32), "f32", True, None, 0.0)


def test_images_of_too_many_pixels_are_refused(host: ModuleType) -> None:
    most = np.zeros((0, 2**31 - 1, 1), np.uint8)
    assert host.components_scratch_bytes(labels=most, diagonal=True) == 0
    for shape in ((0, 2**16, 2**15), (0, 2**11, 2**10, 2**10), (0, 2**31, 2**31)):
        labels = np.zeros(shape, np.uint8)
        with pytest.raises(RuntimeError, match=r"fewer than 2\^31 pixels"):
            host.components_scratch_bytes(labels=labels, diagonal=True)
        with pytest.raises(RuntimeError, match=r"fewer than 2\^31 pixels"):
            host.component_mean_scratch_bytes(labels=labels, diagonal=True, dtype="f32", bound=1.0)


# ---- Volumes


@BOTH
@pytest.mark.parametrize(
    ("shape", "classes", "share"),
    [
        ((2, 5, 9, 33), 2, 0.5),
        ((1, 3, 40, 70), 3, None),
        ((1, 4, 33, 66), 2, 0.8),
        ((1, 40, 1, 1), 2, 0.5),
        ((1, 2, 3, 65), 19, None),
    ],
)
def test_volumes(
    host: ModuleType, shape: tuple[int, ...], classes: int, share: float | None, diagonal: bool
) -> None:
    labels = noise(shape, classes, share)
    ids, counts = verify(host, labels, diagonal)
    ignoring, _ = verify(host, labels, diagonal, ignored=1)
    for i, image in enumerate(labels):
        # Label 0 would be background.
        partition = cc3d.connected_components(image + 1, connectivity=26 if diagonal else 6)
        assert np.array_equal(ids[i], references.numbered_in_raster_order(partition))
        assert counts[i] == partition.max()
        partition = cc3d.connected_components(
            np.where(image == 1, 0, image + 1), connectivity=26 if diagonal else 6
        )
        assert np.array_equal(ignoring[i], references.numbered_in_raster_order(partition))


@BOTH
def test_smooth_volumes(host: ModuleType, diagonal: bool) -> None:
    """Large faces, so that nearly all edges between slices are implied by others."""
    z, y, x = np.indices((4, 40, 70))
    labels = (np.sin(x * 0.2 + z) + np.sin(y * 0.15) > 0.3).astype(np.uint8)
    verify(host, labels[None], diagonal)


# ---- Labels


@pytest.mark.parametrize("dtype", LABEL_TYPES)
@pytest.mark.parametrize("ignored", [None, 0, 2])
def test_label_types(host: ModuleType, dtype: type, ignored: int | None) -> None:
    """Labels that differ in their highest byte alone are different."""
    bits = np.dtype(dtype).itemsize * 8
    values = np.array([1, 1 + 2 ** (bits - 2), 5, np.iinfo(dtype).min], dtype)
    labels = values[noise((2, 35, 67), 4)]
    verify(host, labels, True, None if ignored is None else int(values[ignored]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64])
def test_ignored_labels_count_by_their_low_bytes(host: ModuleType, dtype: type) -> None:
    last = np.array(-1).astype(dtype)
    small = noise((1, 20, 70), 3).astype(np.int64)
    labels = np.where(small == 2, last, small.astype(dtype))
    ids, _ = references.components(small, True, 2)
    for ignored in {-1, int(last)}:
        results = run_under_seeds(
            host, lambda ignored=ignored: run_components(host, labels, True, ignored)
        )
        assert np.array_equal(results["components"], ids)


def test_everything_ignored(host: ModuleType) -> None:
    labels = np.full((2, 33, 65), 255, np.uint8)
    ids, counts = verify(host, labels, True, 255)
    assert not ids.any()
    assert not counts.any()


def test_labels_of_three_bytes_are_refused(host: ModuleType) -> None:
    labels = np.zeros((1, 2, 2), "V3")
    with pytest.raises(RuntimeError, match="labels of 3 bytes"):
        run_components(host, labels, True, None)


# ---- Values


@pytest.mark.parametrize("bound", [0.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_types(host: ModuleType, dtype: str, bound: float) -> None:
    """The bound is known, too large, or not known at all."""
    labels = np.stack([spiral(40, 90), blobs(40, 90)])
    ids, _ = references.components(labels, True, 1)
    values = np.random.default_rng(0).uniform(-1, 1, labels.shape)
    check_mean(host, labels, values, ids, dtype, ignored=1, bound=0 if bound == math.inf else bound)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("f32", 1e30), ("f32", 3e38), ("f32", 1e-30), ("f64", 1e300), ("f64", 1e-300), ("f16", 6e4)],
)
def test_values_of_any_scale(host: ModuleType, dtype: str, scale: float) -> None:
    """Each image by its own largest value; that of ignored pixels plays no part."""
    labels = noise((2, 33, 65), 3)
    ids, _ = references.components(labels, True, 2)
    values = np.random.default_rng(1).uniform(-1, 1, labels.shape) * scale
    values[1] /= 1e3
    expected = np.where(labels == 2, 0.0, values)
    values[labels == 2] = scale
    check_mean(host, labels[:1], values[:1], ids[:1], dtype, ignored=2)
    actual = check_mean(host, labels, values, ids, dtype, ignored=2)[1:]
    means = references.component_mean(decode(encode(expected, dtype), dtype)[1:], ids[1:])
    relative = 2.0**-8 if dtype == "f16" else float(np.finfo(accumulate_type(dtype)).eps)
    assert_close(
        "means of the image of smaller values",
        actual,
        means,
        np.abs(means) * relative + scale / 1e3 * 2.0**-40,
    )


@pytest.mark.parametrize("bound", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_components_of_nan_and_infinity_are_nan(host: ModuleType, dtype: str, bound: float) -> None:
    """However many there are, in whichever tile; other components do not notice."""
    labels = np.zeros((2, 70, 140), np.uint8)
    labels[:, 20:50, 30:100] = 1  # across several tiles
    labels[:, 60:, :10] = 2
    labels[:, 5:8, 5:8] = 3
    labels[:, 5:8, 70:73] = 4
    labels[:, 60:, 120:] = 255
    values = np.random.default_rng(2).random(labels.shape)
    values[0, 25, 40] = np.nan
    values[0, 40, 90] = np.inf
    values[0, 65, 5] = -np.inf
    values[0, 5:8, 5:8] = np.nan
    values[1, 6, 71] = np.inf
    values[:, 60:, 120:] = np.nan
    ids, _ = references.components(labels, True, 255)
    actual = check_mean(host, labels, values, ids, dtype, ignored=255, bound=bound)
    affected = np.zeros(labels.shape, bool)
    affected[0] = np.isin(labels[0], (1, 2, 3))
    affected[1] = labels[1] == 4
    assert np.array_equal(np.isnan(actual), affected)
    assert not actual[labels == 255].any()


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_a_single_nan_is_found_anywhere(host: ModuleType, dtype: str) -> None:
    """At each column of a row, as the last pixel of a run and as the first."""
    row, column = np.indices((64, 64))
    labels = np.stack([2 * row + (column > row), 2 * row + (column >= row)]).astype(np.uint8)
    ids, _ = references.components(labels, True, None)
    values = np.random.default_rng(4).random(labels.shape)
    values[:, row == column] = np.nan
    check_mean(host, labels, values, ids, dtype, bound=1.0)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_values_beyond_the_bound_are_never_wrong(host: ModuleType, dtype: str) -> None:
    """Up to twice the bound they are added; from four times on their component's mean is NaN."""
    labels = blobs(40, 130)[None]
    ids, counts = references.components(labels, True, None)
    values = np.ones(labels.shape)
    pixels = [np.argwhere(ids == 1 + i)[0] for i in range(3)]
    for at, value in zip(pixels, (2.0, -4.001, 1e30), strict=True):
        values[tuple(at)] = value
    stored = encode(values, dtype)
    results = run_under_seeds(host, lambda: run_mean(host, labels, stored, dtype, True, None, 1.0))
    means = decode(results["means"], dtype)
    assert counts[0] > 3
    assert np.array_equal(np.isnan(means), (ids == 2) | (ids == 3))
    first = ids == 1
    assert_close("means", means[first], np.full(first.sum(), 1 + 1 / first.sum()), 1e-6)
    assert (means[ids > 3] == 1).all()


# 17 x 16 pixels take all lanes and threads of a block, and more; an image of 2 blocks' pixels some
# at the borders of warps, blocks, tiles and of what a block takes at once.
@pytest.mark.parametrize(
    ("shape", "places"),
    [
        ((17, 16), list(range(17 * 16))),
        ((64, 72), [0, 63, 64, 71, 255, 256, 2047, 2048, 2304, 4095, 4096, 4551, 4607]),
    ],
    ids=["every place", "borders"],
)
def test_largest_value_anywhere(
    host: ModuleType, shape: tuple[int, int], places: list[int]
) -> None:
    """A bound that leaves out the largest value would make that value's component NaN."""
    labels = np.zeros((len(places), *shape), np.uint8)
    values = np.full((len(places), math.prod(shape)), 2.0**-20)
    values[np.arange(len(places)), places] = -1.0
    values = values.reshape(labels.shape)
    results = run_mean(host, labels, encode(values, "f32"), "f32", True, None, 0.0)
    expected = references.component_mean(values, np.ones(labels.shape, int))
    assert_close("means", results["means"], expected, 2.0**-24)


def test_large_sums_do_not_overflow(host: ModuleType) -> None:
    """The unit follows from the number of an image's pixels."""
    values = np.full((1, 513, 512), 4.0, np.float32)
    values[0, 0, 0] = -4.0
    labels = np.zeros(values.shape, np.uint8)
    results = run_mean(host, labels, values, "f32", True, None, 1.0)
    expected = values.mean(dtype=np.float64)
    assert_close("means", results["means"], np.full(values.shape, expected), 2.0**-20)


def test_sums_lose_nothing(host: ModuleType) -> None:
    """Small values between large ones, which a sum in float32 would forget."""
    labels = np.zeros((1, 3, 70), np.uint8)
    values = np.zeros(labels.shape)
    values[0, 0, 0], values[0, 2, 69], values[0, 1, 35] = 2.0**20, -(2.0**20), 2.0**-10
    actual = check_mean(host, labels, values, np.ones(labels.shape, int), "f32")
    expected = 2.0**-10 / labels.size
    assert_close("means", actual, np.full(labels.shape, expected), expected * 2.0**-23)
