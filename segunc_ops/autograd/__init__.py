"""The native operators: what they give to tracing, what is saved for backward, what flows back.

The functions here take the arguments of their namesakes in :mod:`segunc_ops.reference`, validated
by :mod:`segunc_ops.functional`. A family's file says all that torch is told about its operators.
"""

from .blocks import block_uncertainty
from .components import component_mean, connected_components
from .counts import (
    accumulate_counts,
    accumulate_map_counts,
    accumulate_patch_counts,
    class_sizes,
)
from .cross_entropy import cross_entropy
from .dice import dice_bce, dice_cross_entropy
from .expected_cross_entropy import expected_cross_entropy
from .label_uncertainty import label_uncertainty
from .statistics import accumulate_statistics, finalize_statistics, predictive_statistics

__all__ = [
    "accumulate_counts",
    "accumulate_map_counts",
    "accumulate_patch_counts",
    "accumulate_statistics",
    "block_uncertainty",
    "class_sizes",
    "component_mean",
    "connected_components",
    "cross_entropy",
    "dice_bce",
    "dice_cross_entropy",
    "expected_cross_entropy",
    "finalize_statistics",
    "label_uncertainty",
    "predictive_statistics",
]
