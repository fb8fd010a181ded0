"""Fused CUDA and C++ losses for uncertainty-aware semantic segmentation."""

from . import functional, losses, sampling
from ._library import backend, build_info, check
from ._version import __version__
from .functional import PredictiveStatistics
from .losses import CrossEntropyLoss, UncertaintyAwareCrossEntropyLoss
from .sampling import PredictiveAccumulator, mc_dropout, sample_logits, sample_statistics

__all__ = [
    "CrossEntropyLoss",
    "PredictiveAccumulator",
    "PredictiveStatistics",
    "UncertaintyAwareCrossEntropyLoss",
    "__version__",
    "backend",
    "build_info",
    "check",
    "functional",
    "losses",
    "mc_dropout",
    "sample_logits",
    "sample_statistics",
    "sampling",
]
