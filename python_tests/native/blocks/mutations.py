"""Broken copies of the kernels of block means: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "a number between cells is garbage",
        "if (sums.leaves_one_out && thread() == 0) of_band[sums.first - 1] = 0;",
        "",
        tests="grid",
    ),
    Mutation(
        "bands span blocks",
        "if (rows.count > 1) cuts = std::gcd(std::gcd(cuts, rows.size - rows.block), rows.stride);",
        "",
        tests="grid",
    ),
    Mutation(
        "a band keeps the one before",
        "for (int j = 0; j < V; j++) sum[j] = {};",
        "",
        tests="grid",
    ),
    Mutation(
        "rounding is left behind",
        "rest += (sum - (next - taken)) + (value - taken);",
        "",
        tests="overlap",
    ),
    Mutation(
        "the last classes are left out",
        "if (c < classes) {",
        "if (false) {",
    ),
    Mutation(
        "the last classes are always a whole batch",
        "load(c, classes - c, logit);",
        "load(c, K, logit);",
    ),
    Mutation(
        "a growing maximum leaves the sum",
        "sum *= factor;",
        "",
    ),
    Mutation(
        "a growing maximum moves no exponents",
        "dot = (dot + distance * sum) * factor;",
        "dot *= factor;",
    ),
    Mutation(
        "a class without mass has no entropy",
        "dot += e * Of::bounded(d);",
        "dot += e * d;",
        tests="nan",
    ),
    Mutation(
        "the first distance is infinite",
        "const A distance = Of::bounded(Of::exponent(maximum, largest)), factor",
        "const A distance = Of::exponent(maximum, largest), factor",
    ),
    Mutation(
        "ends that are starts cut twice",
        "if (axis.block % axis.stride == 0)",
        "if (false)",
        tests="grid or axes",
    ),
    Mutation(
        "a shifted start that is an end cuts twice",
        "if (rest < 0 || rest % axis.stride != 0) shifted",
        "shifted",
        tests="grid or axes",
    ),
    Mutation(
        "vectors are taken for aligned",
        "is_vector_aligned(p.logits, kVector * sizeof(T)) &&",
        "",
        tests="grid",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS: dict[str, str] = {}
