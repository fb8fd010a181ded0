"""Broken copies of the kernels of Dice and cross-entropy: what the host execution cannot break by
itself."""

from __future__ import annotations

from python_tests.native.mutation import Mutation

MUTATIONS = (
    Mutation(
        "sums of the last warp are left out",
        "for (int w = 0; w < kSumsWarps; w++) sum",
        "for (int w = 0; w + 1 < kSumsWarps; w++) sum",
        "",
        "*sums.cu",
    ),
    Mutation(
        "a table begins at the wrong row",
        "p.partial + table * rows * row + i",
        "p.partial + table * row + i",
        "",
        "sums_finish.cu",
    ),
    Mutation(
        "all images have the first one's coefficients",
        "(p.by_image ? image : 0) * kDiceSlopes + kByPredicted",
        "0 * image + kByPredicted",
    ),
    Mutation(
        "a source pixel beside the last one gathers nothing",
        "column < in_columns.last; column++",
        "column + 1 < in_columns.last; column++",
        "interpolated",
        "interpolated_gradient.cu",
    ),
    Mutation(
        "only the last tiles of a block have common sums",
        "common_sum += double(columns.part_of_row());",
        "common_sum = double(columns.part_of_row());",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "only the last tiles of a block have predicted sums",
        "predicted_sum += double(columns.part_of_row());",
        "predicted_sum = double(columns.part_of_row());",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "common sums go on from predicted ones",
        "columns.clear();",
        "if (tile == int(block)) columns.clear();",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "a quarter of a block's threads is added up",
        "delta = kThreadsOfRow / 2; delta > 0; delta /= 2",
        "delta = kThreadsOfRow / 2; delta > 4; delta /= 2",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "a quarter of a row is read from its start alone",
        "(i + int(thread()) * kVector) % kQuarter",
        "(int(thread()) * kVector) % kQuarter",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "ignored logits that are no numbers count",
        "clear_ignored(of.label, of.softmax, of.exponential);",
        "",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "squares are no squares",
        "predicted[c] += probability * probability;",
        "predicted[c] += probability;",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "a tile has a thread too many, in the sums",
        "if (at >= count) continue;",
        "if (at > count) continue;",
        "registers",
        "planar_sums.cu",
    ),
    Mutation(
        "a tile has a thread too many, in the gradient",
        "if (at >= count) continue;",
        "if (at > count) continue;",
        "registers",
        "planar_gradient.cu",
    ),
    Mutation(
        "all images of planar logits have the first one's coefficients",
        "p.coefficients + (p.by_image ? image : 0) * kDiceSlopes * classes",
        "p.coefficients",
        "registers",
        "planar_gradient.cu",
    ),
    Mutation(
        "the labelled class has the gradient of any other",
        "labelled[j] + on_label[j]",
        "labelled[j]",
        "registers",
        "planar_gradient.cu",
    ),
    Mutation(
        "ignored logits that are no numbers have such gradients",
        "!(finite && of.softmax[j].sum < kInfinity<float>)",
        "!finite",
        "registers",
        "planar_gradient.cu",
    ),
    Mutation(
        "coefficients that are no numbers reach ignored pixels",
        "!(finite && of.softmax[j].sum < kInfinity<float>)",
        "!(of.softmax[j].sum < kInfinity<float>)",
        "no_numbers",
        "planar_gradient.cu",
    ),
    Mutation(
        "a missing pixel is cleared",
        "of.label[j] != kIgnored || !pixels.has(j)",
        "of.label[j] != kIgnored",
        "registers or no_numbers",
        "planar_gradient.cu",
    ),
    Mutation(
        "targets of an image follow the last one's",
        "first(image * p.target_stride + pixel)",
        "first(image * p.map.classes * p.map.pixels + pixel)",
        "target_types",
        "bce_*.cu",
    ),
    Mutation(
        "masked pixels count",
        "return !p.mask || p.mask[index];",
        "return !p.mask || index >= 0;",
        "target_types",
        "bce_*.cu",
    ),
    Mutation(
        "what is neither 0 nor 1 is 0",
        "y == Y(1) ? 1 : y == Y(0) ? 0 : kOutOfRange",
        "y == Y(1) ? 1 : 0",
        "neither",
        "bce_*.cu",
    ),
    Mutation(
        "positives weigh as negatives",
        "weight && label == 1 ? load_read_only(weight + c)",
        "false ? load_read_only(weight + c)",
        "grid",
        "bce_*.cu",
    ),
    Mutation(
        "a pixel's weight has the gradient of a weighted loss",
        "= loss * shared_factor;",
        "= loss * factor;",
        "grid",
        "bce_gradient.cu",
    ),
)

# Operations that may break, by their names in broken_operations.py, and why nobody notices.
HARMLESS: dict[str, str] = {
    "common/device/block.h: block_sum, barrier 1": "it lets a kernel sum again, but each sums once "
    "(test_host_execution.py sums thrice)",
}
