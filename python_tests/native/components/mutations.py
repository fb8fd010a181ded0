"""Broken copies of the component kernels: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "a union is not retried",
        "if (displaced == high) return;  // it was still a root",
        "if (displaced <= high) return;",
        tests="volumes",
        kernels="seams.cu",
    ),
    Mutation(
        "a union in a tile is not retried",
        "if (displaced == high) return;  // it was a root",
        "if (displaced <= high) return;",
        tests="noise or patterns",
        kernels="ids.cu",
    ),
    Mutation(
        "runs meet only where the lower one starts",
        "same_as_above & above.starts & ~here.starts",
        "0u",
        tests="patterns",
        kernels="ids.cu",
    ),
    Mutation(
        "two edges at a corner of tiles imply each other",
        "unsigned rest = span_above | span_below;",
        "unsigned rest = (span_above | span_below) & ~1u;",
        tests="patterns",
    ),
    Mutation(
        "no diagonals across corners of tiles",
        "map.diagonal && x > 0",
        "map.diagonal && in_tile > 0",
        tests="borders_of_tiles",
    ),
    Mutation(
        "an edge at the top of an image is implied",
        "has_above && a == c && b == d",
        "a == c && b == d",
        tests="thin_and_whole",
    ),
    Mutation(
        "an edge between slices is implied by the band above",
        "(r > 0 && above[h] == label",
        "(above[h] == label",
        tests="volumes",
    ),
    Mutation(
        "lanes of other runs are added",
        "if (distance <= reach) up_to_start.add(next);",
        "up_to_start.add(next);",
        tests="patterns",
    ),
    Mutation(
        "the next row of pixels is added",
        "if (lane() % kLanesOfRow != kLanesOfRow - 1) onward.add(after);",
        "onward.add(after);",
        tests="patterns",
    ),
    Mutation(
        "nothing is carried between the halves of a sum",
        "int32_t(before + added < added)",
        "0",
        tests="patterns",
    ),
    Mutation(
        "pixels beside the tile are counted",
        "(next == 0 ? tile.width : next)",
        "(next == 0 ? kTileWidth : next)",
        tests="ragged",
    ),
    Mutation(
        "NaN is left out",
        "count >> 16 ? kNotFinite : count",
        "count & 0xffff",
        tests="nan_and_infinity",
    ),
    Mutation(
        "the sum of a large image may overflow",
        "smaller(23, 61 - log2_pixels - log2_bound - log2_highs)",
        "23",
        tests="large_sums",
    ),
    Mutation(
        "the warp's maximum with its distances doubled instead of halved",
        "distance > 0; distance /= 2",
        "distance < kWarpSize; distance *= 2",
        tests="largest_value",
    ),
    Mutation("the bitmap is not cleared", "bitmap.bits[i] = 0;", "", tests="patterns"),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS: dict[str, str] = {}
