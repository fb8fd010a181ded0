"""Broken copies of the counting kernels: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "ignored pixels have a size",
        "if (y == p.ignore_index || uint64_t(y) >= uint64_t(p.classes)) continue;",
        "if (uint64_t(y) >= uint64_t(p.classes)) continue;",
        tests="class_sizes",
        kernels="sizes.cu",
    ),
    Mutation(
        "sizes of a tile stay for the next",
        "words[c] = 0;",
        "",
        tests="class_sizes",
        kernels="sizes.cu",
    ),
    Mutation(
        "a patch beyond the last",
        "if (index >= patches) continue;",
        "if (index > patches) continue;",
        tests="patch",
        kernels="patches.cu",
    ),
    Mutation(
        "carries are lost",
        "if (carries[j]) atomic_add(words + (sum[j] + 1), 1);",
        "",
        tests="more_tiles",
        kernels="logits.cu",
    ),
    Mutation(
        "every thread counts for its whole warp",
        "key >= 0 && int(lane()) == find_first_set(peers) - 1",
        "key >= 0",
        kernels="logits.cu",
    ),
    Mutation(
        "every thread of a team counts the pixel",
        "owner.part == 0 ? label[0] : kOutside",
        "label[0]",
    ),
    Mutation(
        "NaN hides larger values",
        "larger(value[i][j], maximum[j])",
        "larger(maximum[j], value[i][j])",
        tests="nan",
    ),
    Mutation(
        "a pixel of nothing but NaN has no class",
        "best[j] < int(p.map.classes) ? best[j] : 0",
        "best[j]",
        tests="nan",
        kernels="logits.cu",
    ),
    Mutation(
        "threads without pixels count the tile's first",
        "if (!inside || !pixels.has(j)) label[j] = kOutside;",
        "",
        kernels="logits.cu",
    ),
    Mutation(
        "absent classes have probabilities",
        "value[i][j] = i < owner.owned ? value[i][j] : 0;",
        "continue;",
        tests="number_of_classes",
        kernels="logits.cu",
        all_dtypes=True,
    ),
    Mutation(
        "the rounding of large logits counts",
        "classes[j].moved = moved[j];",
        "classes[j].moved = 0;",
        tests="any_size",
        kernels="logits.cu",
    ),
    Mutation(
        "the number of classes is a class",
        "uint64_t(target) < uint64_t(classes)",
        "uint64_t(target) <= uint64_t(classes)",
        tests="bad_targets",
        kernels="logits.cu",
    ),
    Mutation(
        "every thread reports its bad target",
        "int(lane()) == find_first_set(found) - 1",
        "value != 0",
        tests="bad_targets",
        kernels="logits.cu",
    ),
    Mutation(
        "every warp of a team counts the pixel",
        "owner.leads() ? label[0] : kOutside",
        "label[0]",
        tests="interpolated_kernels and counts",
    ),
    Mutation(
        "the target's logit is of one slice",
        "blended.logit(data + label[0] * class_stride)",
        "blended.in_slice(data + label[0] * class_stride)",
        tests="interpolated_kernels and counts",
    ),
    Mutation(
        "images of interpolated pixels are merged",
        "if (!p.interpolation.used && is_one_image(p.map))",
        "if (is_one_image(p.map))",
        tests="interpolated_kernels and counts",
    ),
    Mutation(
        "warps overwrite what others have yet to read",
        "turn_ ^= 1;",
        "",
        tests="interpolated_kernels and counts",
        kernels="logits.cu",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS = {
    "counts/cuda/tables.h: count_together, exchange 1": "each lane then counts for itself, which "
    "takes more additions and comes to the same integers",
}
