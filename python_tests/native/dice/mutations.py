"""Broken copies of the kernels of Dice and cross-entropy: what the host execution cannot break by
itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "sums of the last warp are left out",
        "for (int w = 0; w < kWarps; w++) sum",
        "for (int w = 0; w + 1 < kWarps; w++) sum",
        "",
        "sums.cu",
    ),
    Mutation(
        "a table begins at the wrong row",
        "p.partial + table * rows * row + i",
        "p.partial + table * row + i",
        "",
        "sums.cu",
    ),
    Mutation(
        "all images have the first one's coefficients",
        "(p.by_image ? image : 0) * kDiceSlopes + kByPredicted",
        "0 * image + kByPredicted",
    ),
    Mutation(
        "a source pixel beside the last one gathers nothing",
        "column < in_columns.last; column++",
        "column + 1 < in_columns.last; column++",
        "interpolated",
        "interpolated_gradient.cu",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS: dict[str, str] = {
    "common/device/block.h: block_sum, barrier 1": "it lets a kernel sum again, but each sums once "
    "(test_host_execution.py sums thrice)",
}
