"""Evaluation over every labelled pixel, in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import PredictiveStatistics
from ..metrics import MeanIoU, SegmentationMetrics
from ..sampling import ensemble_statistics, sample_statistics
from .datasets import SegmentationDataset, evaluation_batches, normalize
from .models import from_first_dropout

_SCALARS = (
    "mean_iou",
    "pixel_accuracy",
    "dice_error",
    "calibration_error",
    "brier_score",
    "negative_log_likelihood",
    "mean_uncertainty",
    "error_auroc",
    "aurc",
)


@dataclass(frozen=True)
class Evaluation:
    """What a model achieves on a dataset, every labelled pixel counted.

    None where a class does not occur or is the ignored one, or PAvPU has no threshold. See
    :mod:`segunc_ops.metrics` for what each figure is.
    """

    class_names: tuple[str, ...]
    iou: tuple[float | None, ...]
    mean_iou: float
    pixel_accuracy: float
    dice_error: float
    calibration_error: float
    brier_score: float
    negative_log_likelihood: float
    class_uncertainty: tuple[float | None, ...]
    mean_uncertainty: float
    error_auroc: float
    aurc: float
    pavpu: float | None
    uncertainty_threshold: float | None
    num_pixels: int
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


Autocast = Callable[[], AbstractContextManager[Any]]
Predict = Callable[[Tensor], PredictiveStatistics]
"""From normalised images (N, 3, H, W) to statistics of that size with their mean."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws as from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def predict_by_dropout(model: nn.Module, num_samples: int) -> Predict:
    """The mean of Monte-Carlo dropout samples; batch norm uses its running statistics."""
    model.eval()
    return lambda images: sample_statistics(
        *from_first_dropout(model, images),
        num_samples,
        size=images.shape[2:],
        batch_norm="running",
        return_mean=True,
    )


def predict_by_ensemble(models: Sequence[nn.Module]) -> Predict:
    """The mean of an ensemble's members, without dropout."""
    return lambda images: ensemble_statistics(
        models, images, size=images.shape[2:], return_mean=True
    )


def measure(
    predict: Predict,
    dataset: SegmentationDataset,
    metrics: SegmentationMetrics,
    *,
    device: torch.device,
    batch_size: int = 4,
    channels_last: bool = False,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Adds every whole image of a dataset to the metrics.

    Args:
        predict: makes the predictions.
        dataset: images and labels.
        metrics: what is counted, on `device`.
        device: of the model.
        batch_size: images per forward pass.
        channels_last: layout of the images.
        autocast: context of the forward passes.
        progress: called with the number of images after each batch.
    """
    for images, target, *_ in evaluation_batches(dataset, batch_size):
        with autocast():
            statistics = predict(normalize(images, device, channels_last))
        metrics.update(statistics, target.to(device))
        if progress is not None:
            progress(len(images))


def evaluate(
    predict: Predict,
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    num_samples: int,
    reference: SegmentationDataset | None = None,
    threshold: float | None = None,
    seed: int = 0,
    batch_size: int = 4,
    channels_last: bool = False,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], object] | None = None,
) -> tuple[Evaluation, SegmentationMetrics]:
    """Accuracy, calibration and uncertainty of a model over a dataset.

    Args:
        predict: makes the predictions, such as :func:`predict_by_dropout`.
        dataset: whole images are evaluated.
        device: of the model.
        num_samples: samples or members that a prediction is made of, for the record.
        reference: training images, whose mean uncertainty is PAvPU's threshold.
        threshold: PAvPU's, if it is known; without either there is no PAvPU.
        seed: of the dropout masks; the global random state is left as it was.
        batch_size, channels_last, autocast, progress: as for :func:`measure`.

    Returns:
        The figures, and the metrics that they are from, which draw the curves.
    """
    names, ignored = dataset.class_names, dataset.ignore_index

    def measured(images: SegmentationDataset, **options: Any) -> SegmentationMetrics:
        # The rank that evaluates does so alone.
        metrics = SegmentationMetrics(
            len(names), ignore_index=ignored, sync_on_compute=False, **options
        ).to(device)
        with seeded(seed, device):
            measure(
                predict,
                images,
                metrics,
                device=device,
                batch_size=batch_size,
                channels_last=channels_last,
                autocast=autocast,
                progress=progress,
            )
        return metrics

    if threshold is None and reference is not None:
        values = measured(reference, scores=False).compute()
        mean = float(values["mean_uncertainty"])
        threshold = None if math.isnan(mean) else mean
    metrics = measured(dataset, threshold=threshold)
    values = metrics.compute()

    def optional(values: Tensor) -> tuple[float | None, ...]:
        return tuple(None if math.isnan(value) else value for value in values.tolist())

    evaluation = Evaluation(
        class_names=names,
        iou=optional(values["class_iou"]),
        class_uncertainty=optional(values["class_uncertainty"]),
        pavpu=float(values["pavpu"]) if "pavpu" in values else None,
        uncertainty_threshold=threshold,
        num_pixels=int(metrics.confusion.sum()),
        num_samples=num_samples,
        **{name: float(values[name]) for name in _SCALARS},
    )
    return evaluation, metrics


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
    miou = MeanIoU(
        len(dataset.class_names), ignore_index=dataset.ignore_index, sync_on_compute=False
    ).to(device)
    training = model.training
    model.eval()
    try:
        for images, target, *_ in evaluation_batches(dataset, batch_size):
            with autocast():
                logits = model(normalize(images, device, channels_last))
            miou.update(logits, target.to(device), size=target.shape[1:])
    finally:
        model.train(training)
    return float(miou.compute())
