"""Metrics of segmentation and of its uncertainty, as ``torchmetrics.Metric``: every pixel counts.

Their states are integer counts from :func:`segunc_ops.functional.accumulate_counts`, of a size that
does not grow with the data. So a result depends neither on batches nor on threads, and metrics that
are synchronised across ranks equal those of one process exactly. Pixels of `ignore_index` are in no
metric. Where a valid pixel's logits, probabilities or uncertainty are NaN, a metric that needs them
is NaN; the prediction there is the largest of the other logits.

Needs torchmetrics, and matplotlib for ``plot()``: ``pip install 'segunc_ops[metrics]'``.
"""

from .metrics import (
    BrierScore,
    ClassUncertainty,
    DiceError,
    ErrorDetectionAUROC,
    ExpectedCalibrationError,
    MeanIoU,
    NegativeLogLikelihood,
    PAvPU,
    PixelAccuracy,
    ReliabilityDiagram,
    RiskCoverage,
    SegmentationMetrics,
)
from .values import Reliability, RiskCoverageCurve

__all__ = [
    "BrierScore",
    "ClassUncertainty",
    "DiceError",
    "ErrorDetectionAUROC",
    "ExpectedCalibrationError",
    "MeanIoU",
    "NegativeLogLikelihood",
    "PAvPU",
    "PixelAccuracy",
    "Reliability",
    "ReliabilityDiagram",
    "RiskCoverage",
    "RiskCoverageCurve",
    "SegmentationMetrics",
]
