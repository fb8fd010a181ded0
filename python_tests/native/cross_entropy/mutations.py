"""Broken copies of the cross-entropy kernels: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation


def stored(name: str, snippet: str, replacement: str, tests: str = "") -> Mutation:
    """Of the kernels of stored logits."""
    tests = f"not interpolated_kernels and ({tests})" if tests else "not interpolated_kernels"
    return Mutation(name, snippet, replacement, tests, "stored.cu")


def interpolated(name: str, snippet: str, replacement: str, tests: str = "") -> Mutation:
    """Of the kernels of interpolated logits."""
    tests = f"interpolated_kernels and ({tests})" if tests else "interpolated_kernels"
    return Mutation(name, snippet, replacement, tests, "interpolated.cu")


MUTATIONS = (
    stored(
        "every thread of a team counts the loss",
        "if (inside && owner.part == 0) {",
        "if (inside) {",
    ),
    stored(
        "a planar tile goes one too far",
        "at < count; at += Policy::kPlanarThreads * V",
        "at <= count; at += Policy::kPlanarThreads * V",
    ),
    stored(
        "strided pixels go one too far",
        "if (index >= pixels) continue;",
        "if (index > pixels) continue;",
    ),
    stored(
        "the number of classes is a class",
        "target >= 0 && target < classes",
        "target >= 0 && target <= classes",
        tests="bad_targets",
    ),
    stored(
        "negative targets are classes",
        "target >= 0 && target < classes",
        "target < classes",
        tests="bad_targets",
    ),
    stored(
        "vectors across the end of a row",
        "map.pixels % V == 0 &&",
        "",
    ),
    stored(
        "every warp writes the block's sum",
        "if (thread() == 0) p.partial[block_index()] = sum;",
        "if (lane() == 0) p.partial[block_index()] = sum;",
    ),
    interpolated(
        "the last source row's gradient is left out",
        "(p.grad_input ? 2 : 1)",
        "1",
    ),
    interpolated(
        "shared memory for one source column less",
        "axis, first + count - 1).upper - lowest + 1};",
        "axis, first + count - 1).lower - lowest + 1};",
    ),
    interpolated(
        "sums of a tile that has none of the row",
        "if (in_columns < 0 || in_columns >= source_columns.count) continue;",
        "",
        tests="larger",
    ),
    interpolated(
        "a share of zero spreads NaN",
        "if (share > A(0)) sum += share * *gradient;",
        "sum += share * *gradient;",
        tests="nan",
    ),
    interpolated(
        "ignored pixels spread NaN",
        "if (p.grad_input && label[0] != kIgnored) {",
        "if (p.grad_input) {",
        tests="nan",
    ),
    interpolated(
        "every thread of a column counts the loss",
        "if (inside && owner.part == 0) {",
        "if (inside) {",
    ),
    interpolated(
        "absent classes have mass",
        "if (i >= owner.owned) value[i][0] = -kInfinity<A>;",
        "if (i > owner.owned) value[i][0] = -kInfinity<A>;",
    ),
    interpolated(
        "pixels go one too far",
        "if (index >= work.pixels) continue;",
        "if (index > work.pixels) continue;",
    ),
    interpolated(
        "coordinates are rounded to the nearest",
        "lower = int(inside) < last ? int(inside) : last;",
        "lower = int(inside + A(0.5)) < last ? int(inside + A(0.5)) : last;",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS = {
    "common/device/block.h: block_sum, barrier 1": "it lets a kernel sum again, but each sums once "
    "(test_host_execution.py sums thrice)",
}
