"""Would the tests notice? Copies of the kernels with one thing broken must fail them.

Each copy is compiled for the race build, linked with that build's other objects, and tested in a
process of its own. A mutation names its snippet exactly: where the kernels have changed so that it
no longer occurs once, the mutation fails and has to be written anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from python_tests.native.flavors import start_pytest
from python_tests.native.harness import FLAVOR, native_directory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FLAVOR != "plain", reason="runs the race build by itself"),
]

TESTS_FAILED = 1  # pytest's exit status: not that of an error in a test's collection
TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Mutation:
    """A broken copy.

    Attributes:
        name: what is broken.
        kernel: the folder of csrc whose cuda.cu is compiled.
        source: the file to change, relative to csrc.
        snippet: what to replace; occurs there once.
        replacement: what by.
        tests: pytest's -k for the tests that concern it, where not all of the kernel's have to run
            until one fails.
    """

    name: str
    kernel: str
    source: str
    snippet: str
    replacement: str
    tests: str = ""

    def __str__(self) -> str:
        return f"{self.kernel}-{self.name.replace(' ', '_')}"


def of(kernel: str, name: str, snippet: str, replacement: str, tests: str = "") -> Mutation:
    """A change of the kernel's own file."""
    return Mutation(name, kernel, f"{kernel}/cuda.cu", snippet, replacement, tests)


# Which tests concern a kernel: files and pytest's -k. test_flavors.py runs all of them unchanged.
STORED_AND_INTERPOLATED = ("test_cuda_kernels.py", "test_interpolated_kernels.py")
TESTS_OF = {
    "components": (("test_component_kernels.py",), ""),
    "counts": (STORED_AND_INTERPOLATED, "counts or counted"),
    "cross_entropy": (
        ("test_cuda_kernels.py",),
        "cross_entropy or bad_targets or extreme or normalizer or finish or gradient",
    ),
    "scale": (("test_cuda_kernels.py",), "scale"),
    "statistics": (STORED_AND_INTERPOLATED, "statistics or accumulator or ties"),
    "upsampled_cross_entropy": (("test_upsampling_kernels.py",), ""),
}
# pytest's -k for those of logits that are interpolated.
INTERPOLATED = "interpolated_kernels and "

CROSS_ENTROPY_MUTATIONS = (
    of(
        "cross_entropy",
        "no barrier before a tile is loaded again",
        "    barrier();  // the tile before may still be in use\n",
        "",
        "more_tiles",
    ),
    of(
        "cross_entropy",
        "no barrier after a tile is loaded",
        "upstream_map(p), index)[0] : A(1);\n    barrier();\n",
        "upstream_map(p), index)[0] : A(1);\n",
    ),
    of(
        "cross_entropy",
        "gradients overwrite logits that others read",
        "      warp_sync();  // the team has read the target's logit\n",
        "",
    ),
    of(
        "cross_entropy",
        "no barrier before a tile is stored",
        "      barrier();\n      store_tile(",
        "      store_tile(",
    ),
    of(
        "cross_entropy",
        "every thread of a team counts the loss",
        "if (inside && owner.part == 0) {",
        "if (inside) {",
    ),
    of(
        "cross_entropy",
        "a planar tile goes one too far",
        "at < count; at += Policy::kPlanarThreads * V",
        "at <= count; at += Policy::kPlanarThreads * V",
    ),
    of(
        "cross_entropy",
        "strided pixels go one too far",
        "if (index >= pixels) continue;",
        "if (index > pixels) continue;",
    ),
    Mutation(
        "the number of classes is a class",
        "cross_entropy",
        "common/device/labels.h",
        "target >= 0 && target < classes",
        "target >= 0 && target <= classes",
        "bad_targets",
    ),
    Mutation(
        "negative targets are classes",
        "cross_entropy",
        "common/device/labels.h",
        "target >= 0 && target < classes",
        "target < classes",
        "bad_targets",
    ),
    of(
        "cross_entropy",
        "vectors across the end of a row",
        "return p.map.pixels % V == 0 && map_fits(p.input, p.map)",
        "return map_fits(p.input, p.map)",
    ),
    Mutation(
        "every warp writes the block's sum",
        "cross_entropy",
        "common/device/cross_entropy.h",
        "if (thread() == 0) p.partial[block_index()] = sum;",
        "if (lane() == 0) p.partial[block_index()] = sum;",
    ),
    of(
        "cross_entropy",
        "the normalizer skips a target",
        "for (int64_t i = vectors * kVector + first;",
        "for (int64_t i = vectors * kVector + first + 1;",
        "normalizer",
    ),
    Mutation(
        "no barrier within a block's sum",
        "cross_entropy",
        "common/device/block.h",
        "  if (lane() == 0) part[warp()] = value;\n  barrier();\n",
        "  if (lane() == 0) part[warp()] = value;\n",
    ),
)

STATISTICS_MUTATIONS = (
    of(
        "statistics",
        "no barrier before the next sample",
        "      barrier();  // the sample before may still be in use\n",
        "",
    ),
    of(
        "statistics",
        "a sample is used while it is loaded",
        "samples.template operator()<T>(s) + offset, tile_data);\n      barrier();\n",
        "samples.template operator()<T>(s) + offset, tile_data);\n",
    ),
    of(
        "statistics",
        "moments start as garbage",
        "moments.mean[i][j] = moments.squared_deviations[i][j] = A(0);",
        "moments.mean[i][j] = A(0);",
    ),
    of(
        "statistics",
        "ties go to the highest class",
        "(other_mean == mean && other_label < label)",
        "(other_mean == mean && other_label > label)",
        "ties",
    ),
    of(
        "statistics",
        "planar pixels go one too far",
        "if (start >= map.pixels) continue;",
        "if (start > map.pixels) continue;",
    ),
    of(
        "statistics",
        "the entropy of NaN is zero",
        "  if (entropy_sum != entropy_sum) entropy = entropy_sum;\n",
        "",
        "nan",
    ),
    of(
        "statistics",
        "the state is read before it exists",
        "const A before = state.first ? A(0) : state.entropy_sum[index];",
        "const A before = state.entropy_sum[index];",
        "accumulator",
    ),
    Mutation(
        "a tile without its tail",
        "statistics",
        "common/device/class_tile.h",
        "    tile[i] = data[i];\n",
        "",
    ),
    Mutation(
        "warps read what is not told yet",
        "statistics",
        "common/device/warp_team.h",
        "bit_cast<uint32_t>(value);\n    barrier();\n",
        "bit_cast<uint32_t>(value);\n",
        INTERPOLATED + "statistics",
    ),
    Mutation(
        "a share of zero spreads NaN",
        "statistics",
        "common/device/interpolation.h",
        "return weight > A(0) ? math::interpolate(lower, upper, weight) : lower;",
        "return math::interpolate(lower, upper, weight);",
        INTERPOLATED + "infinity",
    ),
    Mutation(
        "volumes are interpolated within their slices alone",
        "statistics",
        "common/device/interpolation.h",
        "  if (pixel.slice_weight > A(0)) {\n",
        "  if (false) {\n",
        INTERPOLATED + "statistics",
    ),
    of(
        "statistics",
        "equal means go to the last warp",
        "if (mean > best.mean) {",
        "if (mean >= best.mean) {",
        INTERPOLATED + "equal",
    ),
    of(
        "statistics",
        "every warp of a team writes the entropy",
        "if (owner.leads()) state.entropy_sum[index] = moments",
        "state.entropy_sum[index] = moments",
        INTERPOLATED + "accumulator",
    ),
    of(
        "statistics",
        "interpolated pixels go one too far",
        "const bool inside = pixel < pixels.count;\n    const auto blended",
        "const bool inside = pixel <= pixels.count;\n    const auto blended",
        INTERPOLATED + "statistics",
    ),
)

COUNTS_MUTATIONS = (
    of(
        "counts",
        "tables are read while others count",
        "const uint32_t* words) {\n  barrier();\n",
        "const uint32_t* words) {\n",
    ),
    of(
        "counts",
        "carries are lost",
        "  if (before + value < before) atomic_add(sum + 1, 1);\n",
        "",
        "more_tiles",
    ),
    of(
        "counts",
        "every thread counts for its whole warp",
        "key >= 0 && int(lane()) == find_first_set(peers) - 1",
        "key >= 0",
    ),
    of(
        "counts",
        "every thread of a team counts the pixel",
        "owner.part == 0 ? label[0] : kOutside",
        "label[0]",
    ),
    of(
        "counts",
        "NaN hides larger values",
        "larger(value[i][j], maximum[j])",
        "larger(maximum[j], value[i][j])",
        "nan",
    ),
    of(
        "counts",
        "no barrier before a tile is loaded again",
        "    barrier();  // the tile before may still be in use\n",
        "",
        "more_tiles",
    ),
    Mutation(
        "the number of classes is a class",
        "counts",
        "common/device/labels.h",
        "target >= 0 && target < classes",
        "target >= 0 && target <= classes",
        "bad_targets",
    ),
    of(
        "counts",
        "a patch beyond the last",
        "if (index >= patches) continue;",
        "if (index > patches) continue;",
        "patch",
    ),
    of(
        "counts",
        "every warp of a team counts the pixel",
        "owner.leads() ? label[0] : kOutside",
        "label[0]",
        INTERPOLATED + "counts",
    ),
    of(
        "counts",
        "the target's logit is of one slice",
        "blended.logit(data + label[0] * class_stride)",
        "blended.in_slice(data + label[0] * class_stride)",
        INTERPOLATED + "counts",
    ),
    of(
        "counts",
        "images of interpolated pixels are merged",
        "if (!p.interpolation.used && is_one_image(p.map))",
        "if (is_one_image(p.map))",
        INTERPOLATED + "counts",
    ),
    Mutation(
        "warps overwrite what others have yet to read",
        "counts",
        "common/device/warp_team.h",
        "    turn_ ^= 1;\n",
        "",
        INTERPOLATED + "counts",
    ),
)

SCALE_MUTATIONS = (
    of("scale", "the tail is left out", "if (tail < count) data[tail]", "if (false) data[tail]"),
    of(
        "scale",
        "vectors overlap",
        "if (i + b * threads < vectors) store_vector(data + (i + b * threads) * N, batch[b]);",
        "if (i + b < vectors) store_vector(data + (i + b) * N, batch[b]);",
    ),
    of("scale", "a factor of one is applied", "  if (factor == A(1)) return;\n", ""),
)

COMPONENTS_MUTATIONS = (
    of(
        "components",
        "no barrier before runs are united",
        "  barrier();\n\n  if (has_above) {",
        "  if (has_above) {",
        "patterns",
    ),
    of(
        "components",
        "a union is not retried",
        "if (displaced == high) return;",
        "if (displaced <= high) return;",
        "noise or patterns",
    ),
    of(
        "components",
        "parents are read as if nobody wrote them",
        "(above = load_relaxed(forest + node_of(root))) != root",
        "(above = forest[node_of(root)]) != root",
        "patterns",
    ),
    of(
        "components",
        "runs meet only where both start",
        "(changes | over.changes())",
        "(changes & over.changes())",
        "patterns",
    ),
    of(
        "components",
        "two edges at a corner of tiles imply each other",
        "x % kTileWidth != 0 && a == b && c == d",
        "has_left && a == b && c == d",
        "patterns",
    ),
    of(
        "components",
        "no diagonals across corners of tiles",
        "(is_row || y % kTileHeight != 0)",
        "(is_row == (x % kTileWidth != 0) && y % kTileHeight != 0)",
        "patterns or noise",
    ),
    of(
        "components",
        "an edge between slices is implied by the band above",
        "(r > 0 && above[h] == label",
        "(above[h] == label",
        "volumes",
    ),
    of(
        "components",
        "sums overwrite a forest in use",
        "  barrier();  // nobody reads the forest any more\n",
        "",
        "patterns",
    ),
    of(
        "components",
        "lanes of other parts are added",
        "if (lane() + delta < end) {",
        "if (lane() + delta < kWarpSize) {",
        "patterns",
    ),
    of(
        "components",
        "NaN is left out",
        "count[i] >> 16 ? kNotFinite : count[i]",
        "count[i] & 0xffff",
        "nan_and_infinity",
    ),
    of(
        "components",
        "the bitmap is not cleared",
        "    bitmap.bits[i] = 0;\n",
        "",
        "patterns",
    ),
    of(
        "components",
        "a sum is used again at once",
        "    barrier();  // the sum may still be in use\n",
        "",
        "segments",
    ),
)

UPSAMPLED_CROSS_ENTROPY_MUTATIONS = (
    of(
        "upsampled_cross_entropy",
        "no barrier before the next tile",
        "    barrier();  // the tile before may still be in use\n",
        "",
        "larger",
    ),
    of(
        "upsampled_cross_entropy",
        "a tile is used before it is known",
        "axes, index);\n    barrier();\n",
        "axes, index);\n",
    ),
    of(
        "upsampled_cross_entropy",
        "no barrier before the next source row",
        "      barrier();  // the step before may still be in use\n",
        "",
    ),
    of(
        "upsampled_cross_entropy",
        "a source row is used while it is loaded",
        "step, memory.logits);\n      barrier();\n",
        "step, memory.logits);\n",
    ),
    of(
        "upsampled_cross_entropy",
        "the last source row's gradient is left out",
        "(p.grad_input ? 2 : 1)",
        "1",
    ),
    of(
        "upsampled_cross_entropy",
        "shared memory for one source column less",
        "axis, first + count - 1).upper - lowest + 1};",
        "axis, first + count - 1).lower - lowest + 1};",
    ),
    of(
        "upsampled_cross_entropy",
        "sums of a tile that has none of the row",
        "          if (in_columns < 0 || in_columns >= source_columns.count) continue;\n",
        "",
        "larger",
    ),
    of(
        "upsampled_cross_entropy",
        "a share of zero spreads NaN",
        "if (share > A(0)) sum += share * *gradient;",
        "sum += share * *gradient;",
        "nan",
    ),
    of(
        "upsampled_cross_entropy",
        "ignored pixels spread NaN",
        "if (p.grad_input && label[0] != kIgnored) {",
        "if (p.grad_input) {",
        "nan",
    ),
    of(
        "upsampled_cross_entropy",
        "every thread of a team counts the loss",
        "if (inside && owner.part == 0) {",
        "if (inside) {",
    ),
    of(
        "upsampled_cross_entropy",
        "absent classes have mass",
        "if (i >= owner.owned) value[i][0] = -kInfinity<A>;",
        "if (i > owner.owned) value[i][0] = -kInfinity<A>;",
    ),
    of(
        "upsampled_cross_entropy",
        "pixels go one too far",
        "if (index >= work.pixels) continue;",
        "if (index > work.pixels) continue;",
    ),
    Mutation(
        "coordinates are rounded to the nearest",
        "upsampled_cross_entropy",
        "math/interpolate.h",
        "lower = int(inside) < last ? int(inside) : last;",
        "lower = int(inside + A(0.5)) < last ? int(inside + A(0.5)) : last;",
    ),
)

MUTATIONS = (
    COMPONENTS_MUTATIONS
    + COUNTS_MUTATIONS
    + CROSS_ENTROPY_MUTATIONS
    + STATISTICS_MUTATIONS
    + SCALE_MUTATIONS
    + UPSAMPLED_CROSS_ENTROPY_MUTATIONS
)


def build(mutation: Mutation | None, kernel: str, directory: Path) -> None:
    """Compiles a copy, changed or not, and links the race module into ``directory``."""
    recipe: dict[str, Any] = json.loads((native_directory() / "race_build.json").read_text())
    csrc = directory / "csrc"
    shutil.copytree(recipe["csrc"], csrc, ignore=shutil.ignore_patterns("*.cpp", ".*"))
    if mutation is not None:
        path = csrc / mutation.source
        text = path.read_text()
        count = text.count(mutation.snippet)
        if count != 1:
            raise LookupError(
                f"{mutation}: the snippet occurs {count} times in csrc/{mutation.source}, not "
                f"once:\n{mutation.snippet}"
            )
        path.write_text(text.replace(mutation.snippet, mutation.replacement))
    source = csrc / kernel / "cuda.cu"
    broken = directory / "broken.o"
    includes = [f"-I{csrc}", f"-I{recipe['include_directory']}"]
    # Less optimised, which takes half the time; a mutation may leave things unused.
    options = [*recipe["options"], "-O1", "-w", *includes]
    original = f"/{kernel}/cuda.cu.o"
    others = [path for path in recipe["objects"] if not path.endswith(original)]
    if len(others) != len(recipe["objects"]) - 1:
        raise LookupError(f"no single object of the race build ends in {original}")
    module = directory / "segunc_host_race.so"
    compiler = recipe["compiler"]
    for command in (
        [compiler, *options, "-x", "c++", "-c", str(source), "-o", str(broken)],
        [compiler, "-shared", "-o", str(module), str(broken), *others, "-ldl"],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{mutation} does not build:\n{result.stderr[-4000:]}")


def outcome(mutation: Mutation | None, kernel: str, directory: Path) -> tuple[int, str]:
    """pytest's exit status, negative after a crash, and the end of its output."""
    build(mutation, kernel, directory)
    files, tests = TESTS_OF[kernel]
    if mutation is not None and mutation.tests:
        tests = mutation.tests
    process = start_pytest("race", ["-x", *files, "-k", tests], directory)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output[-3000:]


# Of every kernel so many run in `make test`, the others in `make test-thorough`.
CORE = 1


def parameters() -> list[Any]:
    """The mutations; those beyond a kernel's core are marked."""
    of_kernel: Counter[str] = Counter()
    marked = []
    for mutation in MUTATIONS:
        of_kernel[mutation.kernel] += 1
        thorough = [pytest.mark.thorough] if of_kernel[mutation.kernel] > CORE else []
        marked.append(pytest.param(mutation, marks=thorough, id=str(mutation)))
    return marked


Outcomes = dict[str, Future[tuple[int, str]]]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    """Those of every copy that is tested, computed side by side."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = [call.params["mutation"] for call in calls if call and "mutation" in call.params]
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def submit(mutation: Mutation | None, kernel: str) -> Future[tuple[int, str]]:
            return pool.submit(outcome, mutation, kernel, tmp_path_factory.mktemp(kernel))

        futures = {"unchanged": submit(None, "scale")}
        futures |= {str(mutation): submit(mutation, mutation.kernel) for mutation in wanted}
        yield futures
        pool.shutdown(cancel_futures=True)


def test_an_unchanged_copy_passes(outcomes: Outcomes) -> None:
    """What fails below fails because of the mutation: test_flavors.py runs the other kernels."""
    status, output = outcomes["unchanged"].result()
    assert status == 0, output


@pytest.mark.parametrize("mutation", parameters())
def test_broken_copies_fail(outcomes: Outcomes, mutation: Mutation) -> None:
    status, output = outcomes[str(mutation)].result()
    crashed = status < 0
    assert crashed or status == TESTS_FAILED, (
        f"the tests do not notice that {mutation.kernel} is broken: {mutation.name}\n{output}"
    )
