"""Broken copies of the kernels of sums: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "the normalizer skips a target",
        "for (int64_t i = vectors * kVector + first;",
        "for (int64_t i = vectors * kVector + first + 1;",
        tests="normalizer",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS = {
    "common/device/block.h: block_sum, barrier 1": "it lets a kernel sum again, but each sums once "
    "(test_host_execution.py sums thrice)",
}
