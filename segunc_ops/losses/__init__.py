"""Losses as modules, in place of :class:`torch.nn.CrossEntropyLoss`; a file for each paper."""

from .cross_entropy import CrossEntropyLoss
from .instance_uncertainty import InstanceUncertaintyCrossEntropyLoss
from .uncertainty_aware import UncertaintyAwareCrossEntropyLoss

__all__ = [
    "CrossEntropyLoss",
    "InstanceUncertaintyCrossEntropyLoss",
    "UncertaintyAwareCrossEntropyLoss",
]
