"""Stateless functions: what the arguments mean and which are valid.

Shapes: N images, C classes, ``*`` any number of spatial axes, S samples. Computation is in
float32 (float64 for float64 logits), whatever type the logits are stored in.
"""

from .._types import PredictiveStatistics, Reduction, Upsample
from .components import component_mean, connected_components
from .counts import (
    SegmentationCounts,
    accumulate_counts,
    accumulate_patch_counts,
    empty_counts,
)
from .cross_entropy import cross_entropy
from .statistics import accumulate_statistics, finalize_statistics, predictive_statistics

__all__ = [
    "PredictiveStatistics",
    "Reduction",
    "SegmentationCounts",
    "Upsample",
    "accumulate_counts",
    "accumulate_patch_counts",
    "accumulate_statistics",
    "component_mean",
    "connected_components",
    "cross_entropy",
    "empty_counts",
    "finalize_statistics",
    "predictive_statistics",
]
