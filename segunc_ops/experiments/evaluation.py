"""Monte-Carlo dropout evaluation over every labelled pixel, in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import PredictiveStatistics
from ..sampling import sample_statistics
from .datasets import SegmentationDataset, evaluation_batches, normalize

NUM_BINS = 15
"""Equal-width confidence bins (a, b] of the calibration error."""

# Sums are integers in units of 2^-24, a float32 significand: any order gives the same bits, and
# 2^39 pixels fit.
_UNITS = 2.0**24


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore: int) -> Tensor:
    """Pixel counts, int64 (C, C): row = target, column = prediction.

    Args:
        prediction: class indices (N, *), any integer type.
        target: class indices (N, *), any integer type.
        num_classes: C.
        ignore: target of the pixels that are left out.
    """
    target = target.long()
    valid = target != ignore
    pair = target[valid] * num_classes + prediction.long()[valid]
    return torch.bincount(pair, minlength=num_classes * num_classes).view(num_classes, num_classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union per class, float64 (C,); NaN for a class absent from both maps."""
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


@dataclass(frozen=True)
class Evaluation:
    """What a model achieves on a dataset; None where a class does not occur."""

    class_names: tuple[str, ...]
    iou: tuple[float | None, ...]
    mean_iou: float
    pixel_accuracy: float
    calibration_error: float
    class_uncertainty: tuple[float | None, ...]
    mean_uncertainty: float
    num_pixels: int
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class EvaluationTotals:
    """Running totals over batches of predictions; their order does not change a bit of the result.

    Args:
        num_classes: C.
        ignore_index: target of the pixels that are left out.
        device: where the totals live.
    """

    def __init__(self, num_classes: int, ignore_index: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.confusion = zeros(num_classes, num_classes)
        self.uncertainty = zeros(num_classes)
        self.bin_count = zeros(NUM_BINS)
        self.bin_hits = zeros(NUM_BINS)
        self.bin_confidence = zeros(NUM_BINS)
        self._edges = torch.linspace(0, 1, NUM_BINS + 1, device=device)[1:-1]

    def update(self, statistics: PredictiveStatistics, target: Tensor) -> None:
        """Adds a batch: `statistics` of shape (N, H, W), `target` integers (N, H, W)."""
        valid = target != self.ignore_index
        prediction, truth = statistics.prediction[valid], target[valid].long()
        confidence = statistics.confidence[valid]
        self.confusion += confusion_matrix(prediction, truth, self.num_classes, self.ignore_index)
        spread = (statistics.std[valid].double() * _UNITS).round().long()
        self.uncertainty.index_add_(0, truth, spread)
        # right=False puts a confidence equal to an edge below it: bins (a, b].
        bins = torch.bucketize(confidence, self._edges, right=False)
        self.bin_count += torch.bincount(bins, minlength=NUM_BINS)
        self.bin_hits += torch.bincount(bins[prediction == truth], minlength=NUM_BINS)
        self.bin_confidence.index_add_(0, bins, (confidence.double() * _UNITS).round().long())

    def compute(self, class_names: tuple[str, ...], num_samples: int) -> Evaluation:
        """The totals as an :class:`Evaluation`; NaN where there was no labelled pixel."""
        iou = class_iou(self.confusion)
        per_class = self.confusion.sum(1)
        pixels = int(per_class.sum())
        spread = self.uncertainty.double() / _UNITS
        gap = (self.bin_hits.double() - self.bin_confidence.double() / _UNITS).abs().sum()

        def optional(values: Tensor) -> tuple[float | None, ...]:
            return tuple(None if math.isnan(value) else value for value in values.tolist())

        return Evaluation(
            class_names=class_names,
            iou=optional(iou),
            mean_iou=float(iou.nanmean()),
            pixel_accuracy=int(self.confusion.diagonal().sum()) / pixels if pixels else math.nan,
            calibration_error=float(gap) / pixels if pixels else math.nan,
            class_uncertainty=optional(spread / per_class.double()),
            mean_uncertainty=float(spread.sum()) / pixels if pixels else math.nan,
            num_pixels=pixels,
            num_samples=num_samples,
        )


Autocast = Callable[[], AbstractContextManager[Any]]


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    num_samples: int = 10,
    batch_size: int = 4,
    seed: int = 0,
    channels_last: bool = False,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Accuracy, calibration and uncertainty of the mean of Monte-Carlo dropout samples.

    Batch norm uses its running statistics; the model is left in evaluation mode and the global
    random state as it was.

    Args:
        model: maps images (N, 3, H, W) to logits (N, C, H, W).
        dataset: whole images are evaluated.
        device: of the model.
        num_samples: forward passes per image, at least 2.
        batch_size: images per forward pass.
        seed: of the dropout masks.
        channels_last: layout of the images.
        autocast: context of the forward passes.
        progress: called with the number of images after each batch.
    """
    names = dataset.class_names
    totals = EvaluationTotals(len(names), dataset.ignore_index, device)
    model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for images, target, _ in evaluation_batches(dataset, batch_size):
            with autocast():
                inputs = normalize(images, device, channels_last)
                statistics = sample_statistics(model, inputs, num_samples, batch_norm="running")
            totals.update(statistics, target.to(device))
            if progress is not None:
                progress(len(images))
    return totals.compute(names, num_samples)


@torch.no_grad()
def deterministic_miou(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    batch_size: int = 4,
    channels_last: bool = False,
    autocast: Autocast = nullcontext,
) -> float:
    """mIoU of one forward pass without dropout; the model's training flag is restored."""
    num_classes = len(dataset.class_names)
    confusion = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    try:
        for images, target, _ in evaluation_batches(dataset, batch_size):
            with autocast():
                prediction = model(normalize(images, device, channels_last)).argmax(1)
            confusion += confusion_matrix(
                prediction, target.to(device), num_classes, dataset.ignore_index
            )
    finally:
        model.train(training)
    return float(class_iou(confusion).nanmean())
