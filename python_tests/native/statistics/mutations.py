"""Broken copies of the statistics kernels: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "the state is read before it exists",
        "const A before = state.first ? A(0) : state.entropy_sum[index];",
        "const A before = state.entropy_sum[index];",
        tests="accumulator",
        kernels="stream.cu",
    ),
    Mutation(
        "moments start as garbage",
        "moments.mean[i][j] = moments.squared_deviations[i][j] = 0;",
        "moments.mean[i][j] = 0;",
        kernels="samples.cu",
    ),
    Mutation(
        "ties go to the highest class",
        "(other_mean == mean && other_label < label)",
        "(other_mean == mean && other_label > label)",
        tests="ties",
        kernels="samples.cu",
    ),
    Mutation(
        "ties go to the highest class of a thread",
        "if (other_mean > mean) {",
        "if (other_mean >= mean) {",
        tests="ties",
        kernels="samples.cu",
    ),
    Mutation(
        "planar pixels go one too far",
        "if (first >= map.pixels) continue;",
        "if (first > map.pixels) continue;",
    ),
    Mutation(
        "one class too many is always there",
        "largest_bucket_below(K, PlanarBuckets()) + 1;",
        "largest_bucket_below(K, PlanarBuckets()) + 2;",
        tests="any_number",
        kernels="samples.cu",
    ),
    Mutation(
        "a class without mass has no entropy",
        "value[i][j] * larger(d, kNoMass);",
        "value[i][j] * d;",
        tests="nan",
        kernels="samples.cu",
    ),
    Mutation(
        "large logits are not moved",
        "if (!large) return;",
        "return;",
        tests="nan",
        kernels="samples.cu",
    ),
    Mutation(
        "the entropy of NaN is zero",
        "if (entropy_sum != entropy_sum) entropy = entropy_sum;",
        "",
        tests="nan",
        kernels="samples.cu",
        all_dtypes=True,
    ),
    Mutation(
        "a tile without its tail",
        "const unsigned i = vectors.count * N + thread(); tile[i] = data[i];",
        "",
        kernels="samples.cu",
    ),
    Mutation(
        "a share of zero spreads NaN",
        "return weight > A(0) ? math::interpolate(lower, upper, weight) : lower;",
        "return math::interpolate(lower, upper, weight);",
        tests="interpolated_kernels and infinity",
        kernels="samples.cu",
        all_dtypes=True,
    ),
    Mutation(
        "volumes are interpolated within their slices alone",
        "if (pixel.slice_weight > A(0)) {",
        "if (false) {",
        tests="interpolated_kernels and statistics",
        kernels="samples.cu",
        all_dtypes=True,
    ),
    Mutation(
        "equal means go to the last warp",
        "if (mean > best.mean) {",
        "if (mean >= best.mean) {",
        tests="interpolated_kernels and equal",
        kernels="samples.cu",
    ),
    Mutation(
        "every warp of a team writes the entropy",
        "if (owner.leads()) state.entropy_sum[index] = moments",
        "state.entropy_sum[index] = moments",
        tests="interpolated_kernels and accumulator",
    ),
    Mutation(
        "interpolated pixels go one too far",
        "const bool inside = pixel < pixels.count; const auto blended",
        "const bool inside = pixel <= pixels.count; const auto blended",
        tests="interpolated_kernels and statistics",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS: dict[str, str] = {}
