"""Broken copies of the scaling kernel: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation("the tail is left out", "if (tail < count) data[tail]", "if (false) data[tail]"),
    Mutation(
        "vectors overlap",
        "if (i + b * threads < vectors) store_vector(data + (i + b * threads) * N, batch[b]);",
        "if (i + b < vectors) store_vector(data + (i + b) * N, batch[b]);",
    ),
    Mutation("a factor of one is applied", "if (factor == A(1)) return;", ""),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS: dict[str, str] = {}
