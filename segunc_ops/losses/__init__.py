"""Losses as modules, in place of :class:`torch.nn.CrossEntropyLoss`; a file for each paper."""

from .class_adjusted import (
    BalancedSoftmaxCrossEntropyLoss,
    LDAMCrossEntropyLoss,
    LogitVariationCrossEntropyLoss,
)
from .cross_entropy import CrossEntropyLoss
from .dice import DeepSupervision, DiceBCELoss, DiceCrossEntropyLoss
from .expected_cross_entropy import ExpectedCrossEntropyLoss
from .focal import FocalCrossEntropyLoss
from .instance_uncertainty import InstanceUncertaintyCrossEntropyLoss
from .label_uncertainty import LabelUncertaintyLoss
from .pixel_adaptive import PixelAdaptiveCrossEntropyLoss
from .uncertainty_aware import UncertaintyAwareCrossEntropyLoss

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
    "UncertaintyAwareCrossEntropyLoss",
]
