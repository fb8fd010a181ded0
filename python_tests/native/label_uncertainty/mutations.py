"""Broken copies of the kernels of uncertain binary labels: what the host execution cannot break by
itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation("a tile goes one too far", "if (at < tile_pixels(", "if (at <= tile_pixels("),
    Mutation(
        "a tile's further steps are left out",
        "if (at >= LabelUncertaintyPolicy::kTile)",
        "if (true)",
    ),
    Mutation(
        "single pixels are those of a vector",
        "constexpr int kStep = LabelUncertaintyPolicy::kThreads * V;",
        "constexpr int kStep = LabelUncertaintyPolicy::kTile;",
    ),
    Mutation(
        "vectors across the end of an image",
        "map.pixels % V == 0 && map.image_stride % V == 0",
        "map.image_stride % V == 0",
    ),
    Mutation(
        "vectors of images that start beside one",
        "map.pixels % V == 0 && map.image_stride % V == 0",
        "map.pixels % V == 0",
    ),
    Mutation(
        "vectors where pixels are apart",
        "(map.layout == Layout::planar && is_vector_aligned",
        "(is_vector_aligned",
    ),
    *(
        Mutation(f"{name} is taken to be aligned", snippet, replacement, tests="no_vectors")
        for name, snippet, replacement in (
            ("mean", "fits(p.mean, p.mean_map) &&", ""),
            ("log_variance", "fits(p.log_variance, p.variance_map) &&", ""),
            ("grad_mean", "fits(p.grad_mean, p.grad_mean_map) &&", ""),
            (
                "grad_log_variance",
                "fits(p.grad_log_variance, p.grad_variance_map) &&",
                "",
            ),
            ("target", "fits_vectors<V>(p.target, p.target_type) &&", ""),
            ("pixel_weight", "factors_fit(p.pixel_weight) &&", ""),
            ("upstream", "(p.upstream_is_scalar || factors_fit(p.upstream)) &&", ""),
            ("loss", "factors_fit(p.loss) &&", ""),
            ("grad_pixel_weight", "&& factors_fit(p.grad_pixel_weight)", ""),
        )
    ),
    Mutation(
        "the first image's flag is that of all",
        "p.bootstrap[walk.image]",
        "p.bootstrap[0]",
    ),
    Mutation(
        "ignored pixels have a loss",
        "const bool valid = label >= 0;",
        "const bool valid = true;",
    ),
    Mutation(
        "a bad target's loss is 0",
        "label == kOutOfRange ? kNaN<A> : A(0)",
        "A(0)",
        tests="bad_targets",
    ),
    Mutation(
        "a third label",
        "label_of(target[j], 2, p.ignore_index, bad)",
        "label_of(target[j], 3, p.ignore_index, bad)",
        tests="bad_targets",
    ),
    Mutation(
        "a large variance overflows",
        "e < smallest ? smallest : e",
        "e",
        tests="extreme",
    ),
    Mutation(
        "a large variance's scale is that of a small one",
        "is_large ? h : one",
        "one",
    ),
    Mutation(
        "a detached weight is differentiated",
        "may_flip && !of.detached",
        "may_flip",
    ),
    Mutation(
        "the weight of exact labels is differentiated",
        "may_flip && !of.detached",
        "!of.detached",
    ),
    Mutation(
        "exact labels lose weight",
        "may_flip ? weights.of(margin) : P{} + A(1)",
        "weights.of(margin)",
    ),
    Mutation(
        "exact labels are flipped",
        "may_flip ? weights.of(-margin) : nothing",
        "weights.of(-margin)",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS = {
    "common/device/block.h: block_sum, barrier 1": "it lets a kernel sum again, but each sums once "
    "(test_host_execution.py sums thrice)",
}
