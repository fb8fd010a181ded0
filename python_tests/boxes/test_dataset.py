"""Datasets whose labels are boxes, but for a share of the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import segunc_ops.functional as sf
from python_tests import label_maps
from segunc_ops import BoxLabels

LABELS = torch.from_numpy(label_maps.noise((25, 9, 11), 3, share=0.7)).long()
IMAGES = torch.arange(25.0).view(25, 1, 1, 1).expand(25, 3, 9, 11)
DATASET = TensorDataset(IMAGES, LABELS)
BOXES = sf.boxes_from_masks(LABELS)


def test_a_seeded_share_keeps_its_labels():
    boxes = BoxLabels(DATASET, 0.2, seed=3)
    assert len(boxes) == 25
    assert boxes.bootstrap.dtype == torch.bool
    assert int((~boxes.bootstrap).sum()) == 5
    for index in range(len(boxes)):
        image, label, bootstrap = boxes[index]
        assert bootstrap is bool(boxes.bootstrap[index])
        assert torch.equal(image, IMAGES[index])
        assert torch.equal(label, BOXES[index] if bootstrap else LABELS[index])
    assert torch.equal(BoxLabels(DATASET, 0.2, seed=3).bootstrap, boxes.bootstrap)
    assert not torch.equal(BoxLabels(DATASET, 0.2, seed=4).bootstrap, boxes.bootstrap)
    more = BoxLabels(DATASET, 0.6, seed=3)
    assert int((~more.bootstrap).sum()) == 15
    assert not (more.bootstrap & ~boxes.bootstrap).any()  # exact ones stay exact
    assert torch.equal(boxes[-1][1], boxes[24][1])


@pytest.mark.parametrize(("share", "exact"), [(0, 0), (0.0, 0), (1, 25), (1.0, 25), (0.5, 12)])
def test_any_share(share, exact):
    assert int((~BoxLabels(DATASET, share).bootstrap).sum()) == exact


def test_loaders_batch_which_images_have_boxes():
    boxes = BoxLabels(DATASET, 0.4)
    loader = DataLoader(boxes, batch_size=25)
    images, labels, bootstrap = next(iter(loader))
    assert torch.equal(bootstrap, boxes.bootstrap)
    assert torch.equal(labels[bootstrap], BOXES[bootstrap])
    assert torch.equal(labels[~bootstrap], LABELS[~bootstrap])
    assert images.shape == (25, 3, 9, 11)


class Items:
    """A map-style dataset of given items."""

    def __init__(self, *items: tuple[Any, ...]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.items[index]


def test_labels_of_any_shape_and_what_else_an_item_has():
    label = LABELS[0]
    volume = LABELS[:3].int()
    items = Items(
        ("image", label.numpy().astype(np.uint16), "name"),
        ("image", label[None], "name"),
        ("image", volume, "name"),
        ("image", volume[None], "name"),
    )
    dataset = BoxLabels(items, 0.0)
    *_, name, bootstrap = dataset[0]
    assert (name, bootstrap) == ("name", True)
    found = dataset[0][1]
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint16
    assert found.tolist() == BOXES[0].tolist()
    assert torch.equal(dataset[1][1], BOXES[:1])
    of_volume = sf.boxes_from_masks(volume[None])
    assert torch.equal(dataset[2][1], of_volume[0])
    assert torch.equal(dataset[3][1], of_volume)


def test_settings_are_those_of_the_boxes():
    settings = {"background": [1], "ignore_index": 2, "connectivity": 4}
    dataset = BoxLabels(DATASET, 0.0, **settings)
    assert torch.equal(dataset[7][1], sf.boxes_from_masks(LABELS[7:8], **settings)[0])


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1(share):
    with pytest.raises(ValueError, match=r"exact_share: expected a number in \[0, 1\], got"):
        BoxLabels(DATASET, share)


def test_what_is_no_share_or_label():
    with pytest.raises(TypeError, match="exact_share: expected a number in"):
        BoxLabels(DATASET, "0.2")
    with pytest.raises(TypeError, match=r"label: expected a tensor or an array .* got str"):
        BoxLabels(Items(("image", "label")), 0.0)[0]
    with pytest.raises(TypeError, match="labels: expected class indices of an integer type"):
        BoxLabels(Items(("image", torch.zeros(4, 5))), 0.0)[0]
