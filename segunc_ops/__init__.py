"""Fused CUDA and C++ losses for uncertainty-aware semantic segmentation."""

from . import functional, losses, sampling
from ._native.backend import backend, build_info
from ._native.library import check
from ._version import __version__
from .box_labels import BoxLabels
from .cascade import (
    AGREEMENT_COLOURS,
    AGREEMENT_NAMES,
    Cascade,
    CascadeResult,
    OracleResult,
    agreement_map,
    block_oracle,
    model_map,
    pixel_oracle,
    select_pixels,
)
from .functional import PredictiveStatistics, as_targets
from .heads import GaussianHead, GaussianLogits
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
    Observer,
    PredictiveAccumulator,
    ensemble_statistics,
    insert_dropout,
    mc_dropout,
    record_forward,
    sample_logits,
    sample_statistics,
)

__all__ = [
    "AGREEMENT_COLOURS",
    "AGREEMENT_NAMES",
    "BalancedSoftmaxCrossEntropyLoss",
    "BoxLabels",
    "Cascade",
    "CascadeResult",
    "CrossEntropyLoss",
    "DeepSupervision",
    "DiceBCELoss",
    "DiceCrossEntropyLoss",
    "ExpectedCrossEntropyLoss",
    "FocalCrossEntropyLoss",
    "GaussianHead",
    "GaussianLogits",
    "InstanceUncertaintyCrossEntropyLoss",
    "LDAMCrossEntropyLoss",
    "LabelUncertaintyLoss",
    "LogitVariationCrossEntropyLoss",
    "Observer",
    "OracleResult",
    "PixelAdaptiveCrossEntropyLoss",
    "PredictiveAccumulator",
    "PredictiveStatistics",
    "UncertaintyAwareCrossEntropyLoss",
    "__version__",
    "agreement_map",
    "as_targets",
    "backend",
    "block_oracle",
    "build_info",
    "check",
    "ensemble_statistics",
    "functional",
    "insert_dropout",
    "losses",
    "mc_dropout",
    "model_map",
    "pixel_oracle",
    "record_forward",
    "sample_logits",
    "sample_statistics",
    "sampling",
    "select_pixels",
]
