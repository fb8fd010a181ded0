"""Broken copies of the cross-entropy kernels: what the host execution cannot break by itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation


def stored(
    name: str, snippet: str, replacement: str, tests: str = "", all_dtypes: bool = False
) -> Mutation:
    """Of the kernels of stored logits."""
    tests = f"not interpolated_kernels and ({tests})" if tests else "not interpolated_kernels"
    return Mutation(name, snippet, replacement, tests, "stored.cu", all_dtypes)


def interpolated(
    name: str, snippet: str, replacement: str, tests: str = "", all_dtypes: bool = False
) -> Mutation:
    """Of the kernels of interpolated logits."""
    tests = f"interpolated_kernels and ({tests})" if tests else "interpolated_kernels"
    return Mutation(name, snippet, replacement, tests, "interpolated.cu", all_dtypes)


MUTATIONS = (
    stored(
        "every thread of a team counts the loss",
        "if (inside && owner.part == 0) {",
        "if (inside) {",
    ),
    stored(
        "a planar tile goes one too far",
        "if (at >= count) continue;",
        "if (at > count) continue;",
    ),
    stored(
        "one class too many in registers",
        "c < Variant::kLeast || c < owner.owned",
        "c < Variant::kLeast || c <= owner.owned",
        tests="number_of_classes",
        all_dtypes=True,
    ),
    stored(
        "one class of a tile too many in registers",
        "i < Variant::kLeast || i < owner.owned",
        "i < Variant::kLeast || i <= owner.owned",
    ),
    stored(
        "pixels beyond the last are stored",
        "if (has(j)) p[j * Distance] = values[j];",
        "p[j * Distance] = values[j];",
    ),
    stored(
        "a tile's vectors go on beyond its last row",
        "row + b * Tile::kRowStep < rows;",
        "row + b * Tile::kRowStep <= rows;",
        tests="tiles_of_their_own",
    ),
    stored(
        "a tile's vectors go on beyond its last pixel",
        "if (Tile::kPlanar && column >= pixels) rows = 0;",
        "",
        tests="tiles_of_their_own",
    ),
    stored(
        "the elements beyond a tile's last vector stay",
        "if (int(thread()) < tail) data[i] = tile[i];",
        "",
        tests="tiles_of_their_own",
    ),
    stored(
        "tiles are counted beyond an image",
        "if (tile >= int(work.tiles_per_image.value)) {",
        "if (tile > int(work.tiles_per_image.value)) {",
        tests="more_images",
    ),
    stored(
        "NaN logits of ignored pixels have gradients",
        "if (!any) return;",
        "return;",
    ),
    stored(
        "the labelled class is one as the others",
        "if (label[j] < 0) continue;",
        "continue;",
        tests="number_of_classes",
        all_dtypes=True,
    ),
    stored(
        "large logits are not moved",
        "if (!large) return;",
        "return;",
        tests="any_size",
    ),
    stored(
        "the rounding of large logits counts",
        "moved[j] = fmaf(maximum[j], kLog2E, -scaled) * kLn2;",
        "moved[j] = 0;",
        tests="any_size",
    ),
    stored(
        "strided pixels go one too far",
        "if (index >= pixels) continue;",
        "if (index > pixels) continue;",
    ),
    stored(
        "the number of classes is a class",
        "uint64_t(target) < uint64_t(classes)",
        "uint64_t(target) <= uint64_t(classes)",
        tests="bad_targets",
    ),
    stored(
        "negative targets are classes",
        "uint64_t(target) < uint64_t(classes)",
        "target < classes",
        tests="bad_targets",
    ),
    stored(
        "every thread reports its bad target",
        "int(lane()) == find_first_set(found) - 1",
        "value != 0",
        tests="bad_targets",
    ),
    stored(
        "a warp reports a thread that has no bad target",
        "int(lane()) == find_first_set(found) - 1",
        "found != 0 && lane() == 0",
        tests="bad_targets",
    ),
    interpolated(
        "every thread of a block reports its bad target",
        "if (flag && thread() == 0 && *value != 0)",
        "if (flag && *value != 0)",
        tests="bad_targets",
    ),
    stored(
        "vectors across the end of a row",
        "map.pixels % V == 0 &&",
        "",
    ),
    stored(
        "every warp writes the block's sum",
        "sum = block_sum(sum); if (thread() == 0) p.partial",
        "sum = block_sum(sum); if (lane() == 0) p.partial",
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
        "while (at < middle && !(memory.column_weight[at] > 0)) at++;",
        "",
        tests="nan",
    ),
    interpolated(
        "ignored pixels spread NaN",
        "if (!p.grad_input || label[0] == kIgnored) continue;",
        "if (!p.grad_input) continue;",
        tests="nan",
    ),
    interpolated(
        "every thread of a column counts the loss",
        "if (inside && owner.part == 0) {",
        "if (inside) {",
    ),
    interpolated(
        "absent classes have mass",
        "for (int c = work.classes; c < work.pitch; c++) {",
        "for (int c = work.classes + 1; c < work.pitch; c++) {",
    ),
    interpolated(
        "a class of the next thread in registers",
        "i < Variant::kLeast || i < work.run",
        "i < Variant::kLeast || i <= work.run",
        tests="many_classes",
        all_dtypes=True,
    ),
    interpolated(
        "a pass beyond the last is staged",
        "smaller(pass + b, passes - 1)",
        "smaller(pass + b, passes)",
    ),
    interpolated(
        "threads beside the walk stage what others do",
        "if (outer < step && left > 0)",
        "if (left > 0)",
    ),
    interpolated(
        "the labelled class is one as the others",
        "if (i == labelled) value[i][0] -= taken;",
        "",
    ),
    interpolated(
        "pixels go one too far",
        "if (index >= work.pixels) continue;",
        "if (index > work.pixels) continue;",
    ),
    stored(
        "a factor is a constant for the gradient",
        "on_target = spread * on_target - pull;",
        "on_target = spread * on_target;",
        tests="variations",
    ),
    stored(
        "a detached factor is none",
        "detached ? A(0) : rises",
        "rises",
        tests="variations",
    ),
    stored(
        "factors by image are those of the first",
        "of_image + row + (valid",
        "of_image + (valid",
        tests="variations",
    ),
    stored(
        "images with factors of their own are merged",
        "if (p.modulation.image_factor) return p;",
        "",
        tests="variations",
    ),
    stored(
        "margins go to every class",
        "owner.class_of(i) == label[j] ? of_label[j] : A(0);",
        "of_label[j];",
        tests="variations",
    ),
    stored(
        "the labelled logit is not adjusted",
        "logit = constants.logit_scale * logit +",
        "return logit; logit = constants.logit_scale * logit +",
        tests="variations",
    ),
    stored(
        "gradients lack the logits' scale",
        "weighted.factor : weighted.factor * constants.logit_scale;",
        "weighted.factor : weighted.factor;",
        tests="variations",
    ),
    interpolated(
        "factors by image are those of the first, in tiles",
        "tile.image = image;",
        "tile.image = 0;",
        tests="variations",
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
