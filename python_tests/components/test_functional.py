"""Connected components and means over them, against scikit-image, cc3d, SciPy and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests import label_maps
from python_tests.comparison import assert_same_bits, assert_same_bits_on_every_run
from python_tests.components.cases import BACKENDS
from python_tests.label_maps import Array
from python_tests.support import LABEL_DTYPES
from segunc_ops.experiments.scenes import generate_scene

WIDTHS = (1, 31, 32, 33, 63, 64, 65)


def expected_components(image: Array, connectivity: int, ignored: int | None) -> tuple[Array, int]:
    """scikit-image's numbering of one image, of which no label is the background."""
    steps = {4: 1, 8: 2, 6: 1, 26: 3}[connectivity]
    labels = image.astype(np.int64)
    background = -1 - (1 << 40) if ignored is None else ignored
    ids, count = skimage.measure.label(
        labels, background=background, return_num=True, connectivity=steps
    )
    if image.ndim == 3:  # where an axis is of size 1, it numbers along another than the last
        values, first = np.unique(ids, return_index=True)
        order = values[np.argsort(first)]
        number = np.zeros(count + 1, np.int64)
        number[order[order > 0]] = np.arange(count) + 1
        ids = number[ids]
    return ids, count


def means_over(ids: Array, count: int, values: Array) -> Array:
    """Means in float64, 0 for id 0."""
    total = np.bincount(ids.ravel(), values.ravel(), count + 1)
    size = np.bincount(ids.ravel(), minlength=count + 1)
    mean = total / np.maximum(size, 1)
    mean[0] = 0
    return mean[ids]


def check(labels: Array, connectivity: int, ignored: int | None = None) -> None:
    """The numbering of a batch, and the means of float64 values over it."""
    values = np.random.default_rng(0).standard_normal(labels.shape)
    options = {"connectivity": connectivity, "ignore_index": ignored}
    tensor = torch.from_numpy(np.ascontiguousarray(labels))
    components, counts = sf.connected_components(tensor, **options)
    means = sf.component_mean(torch.from_numpy(values), tensor, **options)
    assert components.dtype == torch.int32
    assert counts.shape == labels.shape[:1]
    for i in range(len(labels)):
        ids, count = expected_components(labels[i], connectivity, ignored)
        assert counts[i] == count
        assert np.array_equal(components[i].numpy(), ids)
        np.testing.assert_allclose(
            means[i].numpy(), means_over(ids, count, values[i]), rtol=1e-12, atol=1e-12
        )


@BACKENDS
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("pattern", label_maps.PATTERNS)
def test_patterns(pattern, connectivity, backend):
    with segunc_ops.backend(backend):
        for height, width in ((70, 131), (97, 64), (33, 500)):
            check(label_maps.PATTERNS[pattern](height, width)[None], connectivity)


@BACKENDS
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("classes", [2, 3, 19])
def test_noise_of_every_density(classes, connectivity, backend):
    with segunc_ops.backend(backend):
        for share in (None, 0.1, 0.4, 0.6, 0.9):
            check(label_maps.noise((2, 75, 140), classes, share), connectivity)
            check(label_maps.noise((1, 40, 65), classes, share), connectivity, ignored=1)


@BACKENDS
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width, connectivity, backend):
    with segunc_ops.backend(backend):
        for height in (1, 2, 31, 32, 33, 65):
            check(label_maps.noise((2, height, width), 2), connectivity)
            check(label_maps.noise((2, height, width), 3), connectivity, ignored=0)


@BACKENDS
@pytest.mark.parametrize("connectivity", [4, 8])
def test_thin_images(connectivity, backend):
    with segunc_ops.backend(backend):
        for shape in ((1, 500, 1), (1, 1, 500), (3, 1, 1), (1, 2, 5000)):
            check(label_maps.noise(shape, 2), connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_large_maps(connectivity):
    """Many slabs: a spiral that crosses them all, and noise."""
    for labels in (
        label_maps.spiral(1024, 2048),
        label_maps.noise((1024, 2048), 19),
        label_maps.noise((1024, 2048), 2),
    ):
        check(labels[None], connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_street_scenes(connectivity):
    cc3d = pytest.importorskip("cc3d")
    labels = np.stack([generate_scene(3, i, (240, 320))[1] for i in range(4)])
    check(labels, connectivity)
    check(labels, connectivity, ignored=255)
    tensor = torch.from_numpy(labels)
    components, counts = sf.connected_components(tensor, connectivity=connectivity)
    for i, image in enumerate(labels):
        # 255 + 1 is 0, which cc3d takes for background.
        theirs = cc3d.connected_components(image.astype(np.uint16) + 1, connectivity=connectivity)
        pairs = np.unique(np.stack([components[i].numpy().ravel(), theirs.ravel()]), axis=1)
        assert pairs.shape[1] == counts[i] == theirs.max()


@BACKENDS
@pytest.mark.parametrize("connectivity", [6, 26])
def test_volumes(connectivity, backend):
    cc3d = pytest.importorskip("cc3d")
    with segunc_ops.backend(backend):
        for shape in ((2, 5, 7, 9), (1, 19, 40, 33), (1, 1, 20, 30), (1, 33, 1, 70), (1, 9, 9, 1)):
            for classes in (2, 4):
                labels = label_maps.noise(shape, classes)
                check(labels, connectivity)
                check(labels, connectivity, ignored=1)
                components, counts = sf.connected_components(
                    torch.from_numpy(labels), connectivity=connectivity
                )
                theirs = cc3d.connected_components(labels[0] + 1, connectivity=connectivity)
                pairs = np.stack([components[0].numpy().ravel(), theirs.ravel()])
                assert np.unique(pairs, axis=1).shape[1] == counts[0] == theirs.max()


def test_volumes_of_one_class_equal_scipy():
    labels = label_maps.noise((1, 20, 45, 50), 2)
    for connectivity, steps in ((6, 1), (26, 3)):
        structure = scipy.ndimage.generate_binary_structure(3, steps)
        theirs, count = scipy.ndimage.label(labels[0], structure)
        components, counts = sf.connected_components(
            torch.from_numpy(labels), connectivity=connectivity, ignore_index=0
        )
        assert counts[0] == count
        assert np.array_equal(components[0].numpy(), theirs)


def test_connectivity_is_full_by_default():
    for shape, full in (((1, 9, 11), 8), ((1, 5, 6, 7), 26)):
        labels = torch.from_numpy(label_maps.noise(shape, 2))
        values = torch.randn(shape)
        for ours, expected in (
            (sf.connected_components(labels), sf.connected_components(labels, connectivity=full)),
            (
                [sf.component_mean(values, labels)],
                [sf.component_mean(values, labels, connectivity=full)],
            ),
        ):
            for a, b in zip(ours, expected, strict=True):
                assert torch.equal(a, b)


@BACKENDS
@pytest.mark.parametrize("dtype", LABEL_DTYPES[:-1])
def test_label_types(dtype, backend):
    """Labels that differ in their highest bits only are different; an ignored label may be any."""
    limits = torch.iinfo(dtype)
    known = [limits.min, limits.max, limits.max - 1, limits.max // 2]
    index = label_maps.noise((2, 40, 70), 4)
    numpy_type = str(dtype).removeprefix("torch.")
    labels = torch.from_numpy(np.array(known, numpy_type)[index])
    with segunc_ops.backend(backend):
        for position, ignored in enumerate(known):
            components, counts = sf.connected_components(labels, ignore_index=ignored)
            for i in range(2):
                ids, count = expected_components(index[i], 8, position)
                assert counts[i] == count
                assert np.array_equal(components[i].numpy(), ids)
        plain, _ = sf.connected_components(labels)
        for absent in (limits.min - 1, limits.max + 1, -(10**30)):
            assert torch.equal(sf.connected_components(labels, ignore_index=absent)[0], plain)


@BACKENDS
def test_masks(backend):
    mask = torch.from_numpy(label_maps.noise((1, 30, 40), 2)).bool()
    with segunc_ops.backend(backend):
        components, _ = sf.connected_components(mask, ignore_index=0)
        ids, _ = expected_components(mask[0].numpy(), 8, 0)
        assert np.array_equal(components[0].numpy(), ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_of_other_types(dtype):
    labels = torch.from_numpy(label_maps.noise((2, 70, 131), 3, 0.7))
    values = torch.randn(labels.shape).to(dtype)
    means = sf.component_mean(values, labels, ignore_index=1)
    assert means.dtype == dtype
    exact = sf.component_mean(values.double(), labels, ignore_index=1)
    # Sums are in float64: what is left is the rounding of the result.
    assert torch.equal(means, exact.to(torch.float32).to(dtype))


@BACKENDS
def test_values_that_are_not_finite_spoil_their_component_alone(backend):
    labels = torch.from_numpy(label_maps.noise((1, 60, 90), 3, 0.5))
    components, _ = sf.connected_components(labels)
    clean = torch.randn(labels.shape)
    with segunc_ops.backend(backend):
        expected = sf.component_mean(clean, labels)
        for bad in (math.nan, math.inf, -math.inf):
            values = clean.clone()
            values[0, 31, 44] = bad
            means = sf.component_mean(values, labels)
            spoiled = components == components[0, 31, 44]
            assert means[spoiled].isnan().all()
            assert torch.equal(means[~spoiled], expected[~spoiled])


@BACKENDS
def test_ignored_pixels_are_not_read(backend):
    labels = torch.from_numpy(label_maps.noise((2, 40, 70), 3))
    values = torch.randn(labels.shape)
    with segunc_ops.backend(backend):
        expected = sf.component_mean(values, labels, ignore_index=2)
        values[labels == 2] = math.nan
        values.requires_grad_()
        means = sf.component_mean(values, labels, ignore_index=2)
        assert torch.equal(means, expected)
        assert (means[labels == 2] == 0).all()
        upstream = torch.randn(means.shape)
        upstream[labels == 2] = math.nan
        means.backward(upstream)
        assert (values.grad[labels == 2] == 0).all()
        assert values.grad.isfinite().all()


def test_everything_ignored():
    labels = torch.full((2, 40, 70), 5, dtype=torch.uint8)
    components, counts = sf.connected_components(labels, ignore_index=5)
    assert not components.any()
    assert counts.tolist() == [0, 0]
    assert not sf.component_mean(torch.randn(labels.shape), labels, ignore_index=5).any()


@BACKENDS
@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 2, 3, 4), (1, 0, 3, 4)])
def test_empty(shape, backend):
    labels = torch.zeros(shape, dtype=torch.int64)
    with segunc_ops.backend(backend):
        components, counts = sf.connected_components(labels)
        assert components.shape == shape
        assert counts.tolist() == [0] * shape[0]
        assert sf.component_mean(torch.zeros(shape), labels).shape == shape


def test_a_batch_is_its_images():
    """Also beyond the pixels that are worked on at once."""
    labels = torch.from_numpy(label_maps.noise((21, 256, 256), 2, 0.8))
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    values = torch.randn(labels.shape)
    components, counts = sf.connected_components(labels)
    means = sf.component_mean(values, labels)
    for i in (0, 9, 15, 16, 20):
        alone, count = sf.connected_components(labels[i : i + 1])
        assert torch.equal(components[i], alone[0])
        assert counts[i] == count[0]
        mean = sf.component_mean(values[i : i + 1], labels[i : i + 1])
        assert_same_bits(means[i], mean[0], name="means")


def test_any_strides():
    labels = torch.from_numpy(label_maps.noise((3, 40, 70), 3))
    values = torch.randn(3, 40, 70)
    expected = sf.component_mean(values.transpose(1, 2), labels.transpose(1, 2), ignore_index=1)
    for arrange in (lambda x: x.transpose(1, 2), lambda x: x.flip(0).transpose(1, 2).flip(0)):
        assert torch.equal(
            sf.component_mean(arrange(values), arrange(labels), ignore_index=1), expected
        )
    crop = sf.connected_components(labels[:, 3:31, 5:66])[0]
    assert torch.equal(crop, sf.connected_components(labels[:, 3:31, 5:66].clone())[0])


def test_the_same_bits_on_every_run():
    labels = torch.from_numpy(label_maps.noise((2, 200, 333), 3))
    values = torch.randn(labels.shape, requires_grad=True)
    upstream = torch.randn(labels.shape)

    def run() -> list[Tensor]:
        means = sf.component_mean(values, labels)
        (grad,) = torch.autograd.grad(means, values, upstream)
        return [means.detach(), grad, *sf.connected_components(labels)]

    assert_same_bits_on_every_run(run, name="components", runs=102)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_compiled():
    labels = torch.from_numpy(label_maps.noise((2, 40, 70), 3)).long()
    values = torch.randn(labels.shape)

    def step(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ids, _ = sf.connected_components(labels, ignore_index=2)
        return sf.component_mean(values.exp(), labels, ignore_index=2).square(), ids

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 1):
        ours, theirs = (values[:n].clone().requires_grad_() for _ in range(2))
        a, b = compiled(ours, labels[:n]), step(theirs, labels[:n])
        assert torch.equal(a[1], b[1])
        torch.testing.assert_close(a[0], b[0])
        a[0].sum().backward()
        b[0].sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_numpy_arrays():
    labels = label_maps.noise((2, 40, 70), 3)
    values = np.random.default_rng(0).standard_normal(labels.shape, np.float32)
    means = sf.component_mean(values, labels)
    components, counts = sf.connected_components(labels)
    for array in (means, components, counts):
        assert isinstance(array, np.ndarray)
    tensors = torch.from_numpy(values), torch.from_numpy(labels)
    assert np.array_equal(means, sf.component_mean(*tensors).numpy())
    assert np.array_equal(components, sf.connected_components(tensors[1])[0].numpy())

    read_only = labels.copy()
    read_only.flags.writeable = False
    assert np.array_equal(sf.connected_components(read_only)[0], components)
    mirrored = sf.connected_components(labels[:, ::-1])[0]
    assert np.array_equal(mirrored, sf.connected_components(labels[:, ::-1].copy())[0])
