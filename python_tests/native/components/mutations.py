"""Broken copies of the component kernels: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "a union is not retried",
        "if (displaced == high) return;",
        "if (displaced <= high) return;",
        tests="noise or patterns",
        kernels="seams.cu",
    ),
    Mutation(
        "runs meet only where both start",
        "(changes | over.changes())",
        "(changes & over.changes())",
        tests="patterns",
        kernels="ids.cu",
    ),
    Mutation(
        "two edges at a corner of tiles imply each other",
        "x % kTileWidth != 0 && a == b && c == d",
        "has_left && a == b && c == d",
        tests="patterns",
    ),
    Mutation(
        "no diagonals across corners of tiles",
        "(is_row || y % kTileHeight != 0)",
        "(is_row == (x % kTileWidth != 0) && y % kTileHeight != 0)",
        tests="patterns or noise",
    ),
    Mutation(
        "an edge between slices is implied by the band above",
        "(r > 0 && above[h] == label",
        "(above[h] == label",
        tests="volumes",
    ),
    Mutation(
        "lanes of other parts are added",
        "if (lane() + delta < end) {",
        "if (lane() + delta < kWarpSize) {",
        tests="patterns",
    ),
    Mutation(
        "NaN is left out",
        "count[i] >> 16 ? kNotFinite : count[i]",
        "count[i] & 0xffff",
        tests="nan_and_infinity",
    ),
    Mutation("the bitmap is not cleared", "bitmap.bits[i] = 0;", "", tests="patterns"),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS: dict[str, str] = {}
