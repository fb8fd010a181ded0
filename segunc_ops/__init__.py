"""Fused CUDA and C++ losses for uncertainty-aware semantic segmentation."""

from . import functional, losses, sampling
from ._native.backend import backend, build_info
from ._native.library import check
from ._version import __version__
from .functional import PredictiveStatistics, as_targets
from .losses import (
    BalancedSoftmaxCrossEntropyLoss,
    CrossEntropyLoss,
    DeepSupervision,
    DiceBCELoss,
    DiceCrossEntropyLoss,
    ExpectedCrossEntropyLoss,
    FocalCrossEntropyLoss,
    InstanceUncertaintyCrossEntropyLoss,
    LabelUncertaintyLoss,
    LDAMCrossEntropyLoss,
    LogitVariationCrossEntropyLoss,
    PixelAdaptiveCrossEntropyLoss,
    UncertaintyAwareCrossEntropyLoss,
)
from .sampling import (
    PredictiveAccumulator,
    ensemble_statistics,
    mc_dropout,
    sample_logits,
    sample_statistics,
)

__all__ = [
    "BalancedSoftmaxCrossEntropyLoss",
    "CrossEntropyLoss",
    "DeepSupervision",
    "DiceBCELoss",
    "DiceCrossEntropyLoss",
    "ExpectedCrossEntropyLoss",
    "FocalCrossEntropyLoss",
    "InstanceUncertaintyCrossEntropyLoss",
    "LDAMCrossEntropyLoss",
    "LabelUncertaintyLoss",
    "LogitVariationCrossEntropyLoss",
    "PixelAdaptiveCrossEntropyLoss",
    "PredictiveAccumulator",
    "PredictiveStatistics",
    "UncertaintyAwareCrossEntropyLoss",
    "__version__",
    "as_targets",
    "backend",
    "build_info",
    "check",
    "ensemble_statistics",
    "functional",
    "losses",
    "mc_dropout",
    "sample_logits",
    "sample_statistics",
    "sampling",
]
