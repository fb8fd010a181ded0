"""Boxes around components, by scikit-image and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import measure
from torch import Tensor

import segunc_ops.functional as sf
from python_tests import label_maps
from python_tests.support import IGNORED

INTEGERS = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


def of_text(text: str) -> Tensor:
    """A map a line a row: a digit is a class, "." class 0, "x" ignored."""
    values = {".": 0, "x": IGNORED}
    rows = [[values.get(each, each) for each in line.strip()] for line in text.split()]
    return torch.tensor([[int(each) for each in row] for row in rows])[None]


def expected_boxes(
    labels: np.ndarray, background: int | None, ignored: int, connectivity: int
) -> np.ndarray:
    """By scikit-image, with the components of each class in the order of their first pixel."""
    boxes = labels.copy()
    for label, box in zip(labels, boxes, strict=True):
        marked = np.where(label == ignored, -1, label)
        ids = measure.label(marked, background=-1, connectivity=connectivity)
        regions = measure.regionprops(ids)
        for region in sorted(regions, key=lambda each: (each.area_bbox, each.label), reverse=True):
            value = label[tuple(region.coords[0])]
            if value != background:
                box[region.slice] = value
        box[label == ignored] = ignored
    return boxes


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("background", [0, None])
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("pattern", ["noise", "blobs", "spiral", "diagonals", "comb"])
def test_boxes_are_those_of_scikit_image(pattern, connectivity, background):
    if pattern == "noise":
        labels = label_maps.noise((3, 17, 23), 4, share=0.8)
    else:
        labels = np.stack([label_maps.PATTERNS[pattern](40, 53) for _ in range(2)])
    labels[:, 5:7, 8:12] = IGNORED
    found = sf.boxes_from_masks(
        torch.from_numpy(labels),
        background=background,
        ignore_index=IGNORED,
        connectivity=connectivity,
    )
    expected = expected_boxes(labels, background, IGNORED, 1 if connectivity == 4 else 2)
    assert found.tolist() == expected.tolist()


def test_the_smaller_box_is_on_top_and_ignored_pixels_stay():
    labels = of_text("""
        11...
        .1x1.
        2.1.x
        2...3
    """)
    expected = of_text("""
        1111.
        11x1.
        2111x
        2...3
    """)
    assert sf.boxes_from_masks(labels, ignore_index=IGNORED).tolist() == expected.tolist()


def test_of_boxes_of_one_size_the_first_in_raster_order_is_on_top():
    crossing = of_text("""
        111.
        1..2
        1..2
        .222
    """)
    # Both are 3 x 3 and share 2 x 2.
    expected = of_text("""
        111.
        1112
        1112
        .222
    """)
    assert sf.boxes_from_masks(crossing).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_type(dtype):
    highest = torch.iinfo(dtype).max
    array = np.zeros((1, 4, 4), str(dtype).removeprefix("torch."))
    array[0, [0, 1], [0, 1]] = 3
    array[0, [0, 1], [3, 2]] = highest - 1
    array[0, 2, 2] = highest
    typed = torch.from_numpy(array)
    found = sf.boxes_from_masks(typed, ignore_index=highest, background=[0, highest - 1])
    assert found.dtype == dtype
    assert found.numpy().flatten().tolist() == [
        3,
        3,
        0,
        highest - 1,
        3,
        3,
        highest - 1,
        0,
        0,
        0,
        highest,
        0,
        0,
        0,
        0,
        0,
    ]


def test_bool_masks_and_volumes():
    mask = torch.eye(4, dtype=torch.bool)[None]
    assert sf.boxes_from_masks(mask).tolist() == [[[True] * 4] * 4]
    volume = torch.zeros(1, 3, 4, 5, dtype=torch.int32)
    volume[0, 0, 1, 1] = volume[0, 1, 2, 2] = volume[0, 1, 1, 1] = 2
    boxes = sf.boxes_from_masks(volume)
    expected = torch.zeros_like(volume)
    expected[0, :2, 1:3, 1:3] = 2
    assert torch.equal(boxes, expected)
    assert torch.equal(sf.boxes_from_masks(volume, connectivity=6)[0, 0], volume[0, 0])


def test_exact_images_keep_their_labels():
    labels = torch.from_numpy(label_maps.noise((4, 9, 11), 3, share=0.7))
    every = sf.boxes_from_masks(labels)
    some = sf.boxes_from_masks(labels, exact=torch.tensor([True, False, False, True]))
    assert torch.equal(some[[0, 3]], labels[[0, 3]])
    assert torch.equal(some[[1, 2]], every[[1, 2]])
    all_exact = sf.boxes_from_masks(labels, exact=torch.ones(4, dtype=torch.bool))
    assert torch.equal(all_exact, labels)
    assert all_exact.data_ptr() != labels.data_ptr()


def test_strides_empty_inputs_and_arrays():
    labels = torch.from_numpy(label_maps.noise((2, 9, 11), 3, share=0.7))
    boxes = sf.boxes_from_masks(labels)
    assert torch.equal(sf.boxes_from_masks(labels.mT).mT, boxes)
    assert torch.equal(sf.boxes_from_masks(labels[:1].expand(3, -1, -1))[2], boxes[0])
    for shape in ((0, 4, 5), (2, 0, 5), (2, 4, 0)):
        assert sf.boxes_from_masks(torch.zeros(shape, dtype=torch.uint8)).shape == shape
    array = labels.numpy()
    found = sf.boxes_from_masks(array, exact=np.array([False, True]))
    assert isinstance(found, np.ndarray)
    assert found[0].tolist() == boxes[0].tolist()
    assert found[1].tolist() == labels[1].tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"labels": torch.zeros(4, 5)}, TypeError, "labels: expected class indices"),
        ({"labels": torch.zeros(4, 5).long()}, ValueError, r"labels: expected shape \(N, H, W\)"),
        ({"connectivity": 6}, ValueError, "connectivity: expected 4 or 8"),
        ({"background": 0.5}, TypeError, "background: expected an integer, got float"),
        ({"background": [0, "sky"]}, TypeError, "background: expected an integer, got str"),
        ({"exact": torch.zeros(2)}, TypeError, "exact: expected a bool tensor, got torch.float32"),
        ({"exact": [True, False]}, TypeError, "exact: expected a bool tensor, got list"),
        (
            {"exact": torch.zeros(3, dtype=torch.bool)},
            ValueError,
            r"exact: expected shape \(2,\), one per image, got \(3,\)",
        ),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        sf.boxes_from_masks(**{"labels": torch.zeros(2, 4, 5).long(), **arguments})
