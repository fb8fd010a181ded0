"""Stateless functions: what the arguments mean and which are valid.

Shapes: N images, C classes, ``*`` any number of spatial axes, S samples. Computation is in
float32 (float64 for float64 logits), whatever type the logits are stored in.
"""

from .._types import PredictiveStatistics, Reduction, Upsample
from .adjusted import (
    balanced_softmax_cross_entropy,
    ldam_cross_entropy,
    logit_variation_cross_entropy,
)
from .blocks import BlockGrid, block_grid, block_uncertainty
from .boxes import boxes_from_masks
from .class_weights import class_balanced_weights, inverse_frequency_weights
from .components import component_mean, connected_components
from .counts import (
    SegmentationCounts,
    accumulate_counts,
    accumulate_patch_counts,
    class_sizes,
    empty_counts,
)
from .cross_entropy import cross_entropy
from .dice import dice_bce, dice_cross_entropy
from .expected_cross_entropy import expected_cross_entropy
from .label_uncertainty import bootstrap_targets, bootstrapped_bce, label_uncertainty_bce
from .modulated import focal_cross_entropy, pixel_adaptive_cross_entropy
from .statistics import accumulate_statistics, finalize_statistics, predictive_statistics
from .targets import as_targets

__all__ = [
    "BlockGrid",
    "PredictiveStatistics",
    "Reduction",
    "SegmentationCounts",
    "Upsample",
    "accumulate_counts",
    "accumulate_patch_counts",
    "accumulate_statistics",
    "as_targets",
    "balanced_softmax_cross_entropy",
    "block_grid",
    "block_uncertainty",
    "bootstrap_targets",
    "bootstrapped_bce",
    "boxes_from_masks",
    "class_balanced_weights",
    "class_sizes",
    "component_mean",
    "connected_components",
    "cross_entropy",
    "dice_bce",
    "dice_cross_entropy",
    "empty_counts",
    "expected_cross_entropy",
    "finalize_statistics",
    "focal_cross_entropy",
    "inverse_frequency_weights",
    "label_uncertainty_bce",
    "ldam_cross_entropy",
    "logit_variation_cross_entropy",
    "pixel_adaptive_cross_entropy",
    "predictive_statistics",
]
