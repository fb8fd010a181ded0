"""Every operation once more in plain PyTorch, the specification that kernels are tested against.

The functions here take arguments that :mod:`segunc_ops.functional` has validated, compute in
float32 (float64 for float64 input) and are differentiable by autograd as often as one likes.
They also run where no kernel exists: ``with segunc_ops.backend("reference")``.
"""

from .._constants import UNCERTAINTY_BINS
from .blocks import block_uncertainty
from .common import interpolate
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
    "UNCERTAINTY_BINS",
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
    "interpolate",
    "label_uncertainty",
    "predictive_statistics",
]
