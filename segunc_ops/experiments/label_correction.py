"""What a network makes of labels that it took for uncertain, against exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..metrics.values import class_iou
from .boxed import BoxedDataset
from .datasets import SegmentationDataset, collate
from .models import class_logits
from .plots import LabelPanel
from .training import Trainer
from .uncertain_labels import UncertainLabelsLoss

MAX_IMAGES = 64
"""Labels of at most so many are compared."""


@dataclass(frozen=True)
class LabelCorrection:
    """How right labels are, and what has been made of them; shares of the labelled pixels.

    None where there are no such pixels.
    """

    num_images: int
    """How many images with boxes were looked at."""
    wrong: float | None
    """Share of the pixels whose label is wrong."""
    corrected: float | None
    """Of the wrong ones, the share that is replaced by the right label."""
    made_wrong: float | None
    """Of the right ones, the share that is replaced."""
    label_miou: float | None
    """Of the labels that are trained on."""
    replaced_miou: float | None
    """Of what they are replaced by."""


class Replaced(NamedTuple):
    """Maps (H, W) of one image."""

    labels: NDArray[np.integer]
    deviation: NDArray[np.floating]
    prediction: NDArray[np.integer]


@torch.no_grad()
def replace_labels(trainer: Trainer, index: int, dataset: SegmentationDataset) -> Replaced:
    """What a trained network takes the labels of an image for, without dropout."""
    criterion = trainer.criterion
    assert isinstance(criterion, UncertainLabelsLoss)
    images, target, _, bootstrap = trainer.inputs(collate([dataset[index]]))
    trainer.model.eval()
    with trainer.config.autocast():
        logits = trainer.model.distribution(images)

    def enlarge(values: Tensor) -> Tensor:
        return F.interpolate(values.float(), size=target.shape[1:], mode="bilinear")

    deviation = enlarge(logits.variance.amax(1, keepdim=True)).sqrt()
    prediction = enlarge(class_logits(logits.mean)).argmax(1)
    replaced = criterion.replaced_labels(logits, target, bootstrap)
    return Replaced(*(each.cpu().numpy() for each in (replaced[0], deviation[0, 0], prediction[0])))


def _evenly(numbers: Sequence[int], length: int) -> list[int]:
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), length)).astype(int)
    return [int(numbers[place]) for place in places]


def _boxed_images(dataset: BoxedDataset) -> list[int]:
    return [int(index) for index in np.flatnonzero(dataset.bootstrap)]


def measure_correction(trainer: Trainer, dataset: BoxedDataset) -> LabelCorrection:
    """Compares the labels of images with boxes, and what they are replaced by, with exact ones."""
    num_classes = trainer.num_classes
    indices = _evenly(_boxed_images(dataset), MAX_IMAGES)
    of_labels, of_replaced = np.zeros((2, num_classes, num_classes), np.int64)
    wrong = corrected = right = made_wrong = 0
    for index in indices:
        exact, label = dataset.exact.label(index), dataset.label(index)
        replaced = replace_labels(trainer, index, dataset).labels
        counts = exact != dataset.ignore_index
        exact, label, replaced = (each[counts].astype(int) for each in (exact, label, replaced))
        for confusion, each in ((of_labels, label), (of_replaced, replaced)):
            pairs = np.bincount(exact * num_classes + each, minlength=num_classes**2)
            confusion += pairs.reshape(num_classes, num_classes)
        is_wrong = label != exact
        wrong += int(is_wrong.sum())
        right += int((~is_wrong).sum())
        corrected += int((is_wrong & (replaced == exact)).sum())
        made_wrong += int((~is_wrong & (replaced != exact)).sum())

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    def miou(confusion: NDArray[np.int64]) -> float | None:
        return float(class_iou(torch.from_numpy(confusion)).nanmean()) if confusion.any() else None

    return LabelCorrection(
        num_images=len(indices),
        wrong=share(wrong, wrong + right),
        corrected=share(corrected, wrong),
        made_wrong=share(made_wrong, right),
        label_miou=miou(of_labels),
        replaced_miou=miou(of_replaced),
    )


def label_panels(trainer: Trainer, indices: Sequence[int]) -> list[LabelPanel]:
    """Pictures of images that a network was trained on."""
    dataset = trainer.batches.dataset
    panels = []
    for index in indices:
        sample, maps = dataset[index], replace_labels(trainer, index, dataset)
        panels.append(
            LabelPanel(
                image=sample.image,
                label=sample.label,
                exact=dataset.exact.label(index) if isinstance(dataset, BoxedDataset) else None,
                replaced=maps.labels,
                deviation=maps.deviation,
                prediction=maps.prediction,
            )
        )
    return panels


def most_wrong_images(dataset: BoxedDataset, number: int) -> list[int]:
    """The image with the most wrong labels in each part of those with boxes."""

    def num_wrong(index: int) -> int:
        exact = dataset.exact.label(index)
        return int(np.count_nonzero(dataset.label(index) != exact))

    indices = _evenly(_boxed_images(dataset), MAX_IMAGES)
    parts = np.array_split(indices, max(1, min(number, len(indices))))
    return [max(part.tolist(), key=num_wrong) for part in parts if len(part)]
