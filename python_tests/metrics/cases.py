"""Batches for the metrics, and their values as tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.comparison import assert_same_bits
from python_tests.counts.cases import away_from_edges
from python_tests.support import IGNORED

pytest.importorskip("torchmetrics")
sm = pytest.importorskip("segunc_ops.metrics")

C = 7
# What rounding each pixel's value to a multiple of 2^-24 does to a mean.
RESOLUTION = 2.0**-25
# torchmetrics computes some of its values in float32.
SINGLE = 1e-6


def batch(shape: tuple[int, ...] = (3, 40, 41), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 logits, targets with a tenth ignored, uncertainties; class 6 occurs nowhere."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], C, *shape[1:], generator=generator, dtype=torch.float64)
    logits[:, 6] = -40.0
    target = torch.randint(0, 6, shape, generator=generator)
    right = torch.rand(shape, generator=generator) < 0.6
    target = torch.where(right, logits.argmax(1), target)
    confidence = logits.softmax(1).amax(1)
    ignored = torch.rand(shape, generator=generator) < 0.1
    target[ignored | ~away_from_edges(confidence)] = IGNORED
    uncertainty = (1 - confidence) * torch.rand(shape, generator=generator)
    return logits, target, uncertainty.double()


def value_of(metric: Any, *arguments: Any) -> Any:
    metric.update(*arguments)
    return metric.compute()


def everything(**options: Any) -> sm.SegmentationMetrics:
    options = {"threshold": [0.1, 0.2], "ignore_index": IGNORED} | options
    return sm.SegmentationMetrics(C, **options)


def tensors_of(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    members = values.values() if isinstance(values, dict) else values
    return [tensor for member in members for tensor in tensors_of(member)]


def assert_same_values(found: Any, wanted: Any) -> None:
    for number, (a, b) in enumerate(zip(tensors_of(found), tensors_of(wanted), strict=True)):
        assert_same_bits(a, b, name=f"value {number}")


SINGLE_METRICS = {
    "mean_iou": sm.MeanIoU,
    "pixel_accuracy": sm.PixelAccuracy,
    "dice_error": sm.DiceError,
    "calibration_error": sm.ExpectedCalibrationError,
    "reliability": sm.ReliabilityDiagram,
    "brier_score": sm.BrierScore,
    "negative_log_likelihood": sm.NegativeLogLikelihood,
    "class_uncertainty": sm.ClassUncertainty,
    "risk_coverage": sm.RiskCoverage,
    "error_auroc": sm.ErrorDetectionAUROC,
}
