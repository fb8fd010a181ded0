"""Writes `docs/benchmarks.md` from the results files: `python -m benchmarks.docs`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import costs, plots, report
from .cases import (
    ALL_TABLES,
    COMPILED,
    EAGER,
    KERNEL,
    MAX_AUTOTUNE,
    OPS,
    OURS,
    STREAMED,
    TORCH,
    TORCH_COMPILED,
    Case,
    in_types_matrix,
)
from .rows import Row, duration, find, grouped, named, ours_of, ratio, size, title

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_LINKS = "../benchmarks/results"
_NOT_MEASURED = "Not measured: no results of a GPU are in `benchmarks/results`."

_COMPILERS = (COMPILED, MAX_AUTOTUNE, TORCH_COMPILED)
_EAGER = (EAGER, TORCH)
# Ops whose peers in the matrix of types are the reference's; a loss has F.cross_entropy's.
_BY_REFERENCE = ("predictive_statistics",)

_HEAD = """\
# Benchmarks

<!-- Written by `python -m benchmarks.docs`: edit benchmarks/docs.py, not this. -->

`make bench` takes these measurements, draws the plots and writes this page."""

_METHOD = f"""\
## How it is measured

- All implementations of a case are checked against float64 first; one that is further off than
  its type explains fails the run. They are then timed in one process, in turn, round by round,
  so that a disturbance meets all of them. Figures are medians over the rounds.
- *ours* is the public function with autograd and allocation, as a trainer calls it; *{KERNEL}*
  the operator under it, writing to memory that has been touched before. Gradients are fresh
  tensors in every step, as after `zero_grad()`.
- Sets of inputs are used in turn, together three times the last-level cache. Inputs so small
  that the call takes the time are measured warm and by the wall clock. Half-precision losses
  run under autocast.
- *Must move* counts every input once and every output once; GB/s is that by the median, *of
  copy* relates it to a copy of a large buffer timed in the same rounds. The roofline's other
  roof is an fp32 matrix product timed in the same process.
- Operations are counted by formula, those of our algorithm (`benchmarks/costs.py`): an
  exponential takes {costs.EXP} additions and multiplications (with AVX-512; others take more), a
  logarithm {costs.LOG}.
- Peak memory is what torch's allocator holds above the inputs: results count, so does the state
  of a `PredictiveAccumulator`; the logits do not. Of peers outside torch, what NumPy holds is
  not seen.

The peers are what a user would put in the place of the op, with the same result:

- `F.cross_entropy` per pixel, times the weights, summed (after `F.interpolate` where ours
  upsamples), eager and by `torch.compile`; the reference of this package, eager and compiled,
  on a GPU with `max-autotune` too (without CUDA graphs, which would copy every set of inputs).
- kornia's and MONAI's focal loss at gamma = 0, which is cross-entropy. That of
  `segmentation_models_pytorch` is left out: it does not import without torchvision and timm.
- torch's and Liger's fused linear cross-entropy, for logits that come from a 1x1 convolution of
  {costs.FEATURES} features: gradients of features and weights, without pixel weights, which
  they do not know. Liger needs a GPU.
- cc3d and scikit-image with NumPy's sums, OpenCV and SciPy class by class, as they label binary
  images; on a GPU CuPy. torchmetrics gets probabilities, ours logits.

A peer that is not installed is left out. `make bench` installs those that need no GPU."""

_TYPES = """\
### Types, layouts and classes

Each cell: our time, then that of the compiled and of the eager peer of the same type, in times
ours. The peers of the losses are `F.cross_entropy` as above, of the statistics the reference.
Losses are forward and backward; the statistics are of 10 samples."""

_COSTS = """\
## What each kernel costs

The paragraphs are about the CPU kernels; what differs on a GPU is at the end. *Kernel moves* is by
formula, if what a tile needs stays in the cache; *system clears* the fresh pages of the results.
The two speeds are bounds: the bytes that must move at that of a copy, the operations at that of a
matrix product."""

_GPU_COSTS = """\
### On a GPU

The CUDA kernels, by derivation (the heads of `csrc/*/cuda/*.cu` have it in full):

- `cross_entropy`, `predictive_statistics` and `accumulate_counts` read the logits once and write
  their results once, as on a CPU: a pixel's classes are in registers up to 32, beyond that and in
  `channels_last` in shared memory; the statistics keep running moments there. Only what neither
  takes is read twice. An element costs about as many instructions as a multiprocessor issues while
  fp32 logits arrive; of half-precision ones they are the limit.
- `upsampled_cross_entropy` reads source rows of a tile once, with the tile's rim about a third more
  than there are, and writes as much fp32 scratch, which a second kernel adds up to the gradient.
  Its limit is instructions.
- `component_mean` moves 14 bytes of a pixel where 9 must: a 16-bit number of its component within
  the tile goes out and comes back, and the value is read before and the mean written after."""
_UNTUNED = "Launch numbers come from occupancy and bytes in flight and are not yet measured."

_SCALING = """\
### Against pixels, classes and samples

In fp32; the statistics against pixels and classes have 4 samples, those against samples one
image of 256 x 256 with 19 classes, the losses against classes one of 256 x 256. *Streamed*
gives samples to a `PredictiveAccumulator` one at a time, as `sample_logits` does; they exist
beforehand, so that making them is not timed. Memory counts the accumulator's state and the
maps, not the samples (dashed): in one call all of them must exist, streamed only the last."""

# What each kernel does with its bytes, and what bounds it; the figures are in the tables.
_KERNELS = {
    "cross_entropy": """\
Forward reads logits, target and weights once and keeps nothing. With a gradient the same pass
writes it: a tile of pixels has its exponentials in the L1 cache between the sum over the
classes and the gradient, so the logits are read once, and a gradient larger than the caches is
stored past them. fp16 is the exception: divided by the number of pixels its gradient would
underflow before the loss scale arrives, so backward recomputes it and reads everything a second
time. `channels_last` tiles are transposed on their way in and out.

What bounds it is memory, in half precision arithmetic as much: the operations are the same on
half the bytes. Between *ours* and *kernel alone* lie the call and the gradient's being a fresh
tensor, whose pages the system clears before the kernel can write them: as many bytes once more,
at the speed of page faults. With few classes the fixed work of a pixel weighs most: its target,
its weight and a logarithm. Tiny inputs are bound by the call, that is by Python, the dispatcher
and autograd.""",
    "upsampled_cross_entropy": """\
Only the small logits are read, and only their gradient is written. A thread takes a band of
source rows and one more, enlarges each to the target's width once, and blends two of them for
every target row; the enlarged rows, their gradients and the exponentials stay in the cache.
Gradients gather at the enlarged width and shrink to the source's once a row. Rows that two
bands share wait in scratch memory and are added in a fixed order; half precision and
`channels_last` gather all rows there in fp32, being rounded or transposed once at the end. fp16
recomputes its gradient and does it all twice.

What bounds it is arithmetic: bytes shrink with the square of the enlargement, but every target
pixel still has an exponential for each class, and a blend before it and after it. It is the one
op here whose operations take longer than its bytes by far; its fraction of the copy bandwidth
says nothing.""",
    "linear_cross_entropy": """\
Not a kernel of its own: the convolution is torch's, the loss ours. The logits exist, but
nothing else of their size does beside their gradient. The fused ones of torch and Liger hold
neither; they are made for vocabularies, where the classes outnumber the features, while here
features outweigh logits and the matrix products have most of the time.""",
    "predictive_statistics": """\
In one call the logits of all samples are read once and six maps are written. A tile's
exponentials of all samples stay in the L2 cache, so that the deviation is the exact two-pass
one, of the predicted class alone. Streamed, every sample also reads and writes the state: the
mean and the squared deviations of every class in fp32.

What bounds one call is memory and arithmetic about equally. A logit has an exponential, its
part in two sums and in the mean; an entropy takes a logarithm of every class's mean, once for
all samples, and one of every sample's sum. Half precision halves the bytes but not the
operations, which is why it gains little. Streaming is bound by its state, which moves more
bytes than the samples do.""",
    "upsampled_predictive_statistics": """\
As `upsampled_cross_entropy` does on its way forward: of every sample the two enlarged rows that a
row of the results blends stay in the cache, and their blend takes the place of the tile that would
be read from memory. The large logits of no sample ever exist.

What bounds it is arithmetic: next to no bytes are left.""",
    "component_mean": """\
Labels and values are read once and means are written once. Between these, a pixel is one bit,
"a run starts here", and a run one integer: rows are compared 64 pixels at a time, only runs are
united, and sums are of runs. Runs' integers are not in the formula, as their number depends on
the picture.

What bounds it is the picture. Where runs are long, as in street scenes, memory does; of noise
nearly every pixel is a run, and the unions, each of which waits for the one before, take the
time. Beside additions of values there are no floating-point operations, hence it is not in the
roofline.""",
    "upsampled_accumulate_counts": """\
The same of logits that are interpolated on the way, as those of the statistics are.""",
    "accumulate_counts": """\
Logits and targets are read once; the tables stay in the cache of the thread that counts. Of the
classes the maximum, its index and the sums of the exponentials and of their squares are kept in
registers.

What bounds it is arithmetic, and the one pixel at a time in which tables are added to: that
part does not vectorise. All metrics together cost little more than one, since they share the
pass over the classes.""",
}


class _Results(NamedTuple):
    """A results file: its name without an ending, and its rows, which are of one device."""

    stem: str
    rows: list[Row]

    @property
    def device(self) -> str:
        return str(self.rows[0]["device"])

    @property
    def is_cuda(self) -> bool:
        return bool(self.rows[0]["device_type"] == "cuda")

    def link(self, ending: str) -> str:
        return f"{_LINKS}/{self.stem}{ending}"

    def image(self, ending: str, text: str) -> str:
        """A link to a plot, empty if there is nothing to draw."""
        return f"![{text}]({self.link(ending)})" if ending in report.plots_of(self.rows) else ""


def load(folder: Path) -> list[_Results]:
    """The results of every device in a folder, CPUs first, of each device its fullest file.

    Raises:
        FileNotFoundError: it has no results.
    """
    devices: dict[str, _Results] = {}
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list) or path.stem.endswith("-selection"):
            continue  # the report of `make gpu-check`, or a part of the cases
        found = _Results(path.stem, rows)
        known = devices.get(found.device)
        if known is None or len(rows) > len(known.rows):
            devices[found.device] = found
    if not devices:
        raise FileNotFoundError(f"folder: expected results of `python -m benchmarks`, got {folder}")
    return sorted(devices.values(), key=lambda results: results.is_cuda)


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]], texts: int = 1) -> str:
    """The first `texts` columns are aligned as text, the others as figures."""
    rule = "|" + " --- |" * texts + " --: |" * (len(columns) - texts)
    return "\n".join([f"| {' | '.join(columns)} |", rule, *(f"| {' | '.join(x)} |" for x in lines)])


def _fastest(group: Sequence[Row], names: Sequence[str]) -> Row | None:
    rows = [row for row in group if row["implementation"] in names]
    return min(rows, key=lambda row: row["median_ms"], default=None)


def _time_and_ratio(row: Row | None, ours: Row) -> str:
    return "" if row is None else f"{duration(row['median_ms'])} ({ratio(row, ours)})"


def _devices(devices: Sequence[_Results]) -> str:
    lines = []
    for results in devices:
        rows, row = results.rows, results.rows[0]
        versions = f"segunc_ops {row['segunc_ops']}, torch {row['torch']}, Python {row['python']}"
        versions += f", CUDA {row['cuda']}" if row["cuda"] else ""
        versions += f", {row['peers']}" if row.get("peers") else ""
        copy = statistics.median(row["copy_gb_per_s"] for row in rows)
        products = [row["matmul_gflop_per_s"] for row in rows if "matmul_gflop_per_s" in row]
        product = f"{statistics.median(products):.0f} GFLOP/s" if products else ""
        link = f"[{results.device}]({results.link('.md')})"
        lines.append((link, row["isa"], versions, row["date"], f"{copy:.3g} GB/s", product))
    columns = ("device", "code", "versions", "date", "copy", "fp32 matrix product")
    return f"## Devices\n\n{_table(columns, lines, texts=4)}"


def _showcase(rows: Sequence[Row]) -> str:
    lines = []
    for group in sorted(grouped(report.showcase(rows)), key=lambda g: OPS.index(g[0]["op"])):
        ours = ours_of(group)
        if ours is None:
            continue
        compiled, eager = _fastest(group, _COMPILERS), _fastest(group, _EAGER)
        others = [
            f"{named(row)}: {_time_and_ratio(row, ours)}"
            for row in group
            if row["implementation"] not in (*_COMPILERS, *_EAGER)
            and not row["implementation"].startswith(OURS)
        ]
        memory = size(ours["peak_bytes"])
        memory += f" ({size(eager['peak_bytes'])})" if eager else ""
        lines.append(
            (
                f"{ours['op']} {title(ours)}",
                duration(ours["median_ms"]),
                _time_and_ratio(compiled, ours),
                _time_and_ratio(eager, ours),
                "<br>".join(others),
                f"{ours['fraction_of_copy']:.0%}",
                memory,
            )
        )
    columns = (
        *("case", "ours", "`torch.compile`", "eager", "other peers", "of copy"),
        "peak memory (eager's)",
    )
    text = (
        "In brackets: times ours. `torch.compile` and eager are the faster of the two peers each."
    )
    return f"{_table(columns, lines)}\n\n{text}"


def _matrix(rows: Sequence[Row], op: str) -> str:
    """Types and layouts down, classes across; empty if there is nothing to compare."""
    cells: dict[str, dict[int, str]] = {}
    shapes: dict[int, str] = {}
    compiled, eager = (COMPILED, EAGER) if op in _BY_REFERENCE else (TORCH_COMPILED, TORCH)
    for group in grouped(
        row for row in rows if row["op"] == op and in_types_matrix(Case.of_row(row))
    ):
        ours = ours_of(group)
        if ours is None:
            continue
        case = Case.of_row(ours)
        peers = [ratio(p, ours) for p in (find(group, compiled), find(group, eager)) if p]
        layout = "" if case.layout == "nchw" else f" {case.layout}"
        line = cells.setdefault(f"{case.dtype}{layout}", {})
        line[case.num_classes] = ", ".join([duration(ours["median_ms"]), *peers])
        shapes[case.num_classes] = f"[{', '.join(map(str, case.shape))}]"
    if not cells:
        return ""
    classes = sorted(shapes)
    columns = (f"`{op}`", *(f"C = {c}<br>{shapes[c]}" for c in classes))
    lines = [(name, *(line.get(c, "") for c in classes)) for name, line in sorted(cells.items())]
    return _table(columns, lines)


def _types(rows: Sequence[Row]) -> str:
    tables = [table for op in OPS if (table := _matrix(rows, op))]
    if not tables:
        return ""
    return "\n\n".join((_TYPES, *tables))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent of a power law through points (x, y), by least squares of the logarithms."""
    x, y = ([math.log(value) for value in part] for part in zip(*points, strict=True))
    return statistics.linear_regression(x, y).slope


def _growth(rows: Sequence[Row]) -> str:
    """How time and memory grow with the samples."""
    lines = []
    for name in dict.fromkeys(row["implementation"] for row in rows):
        line = sorted((r for r in rows if r["implementation"] == name), key=plots.axis_value)
        if len(line) < 2:
            continue
        first, last = line[0], line[-1]
        exponent = slope([(plots.axis_value(row), row["median_ms"]) for row in line])
        lines.append(
            (
                named(first),
                f"S^{exponent:.2f}",
                *(duration(row["median_ms"]) for row in (first, last)),
                *(size(row["peak_bytes"]) for row in (first, last)),
            )
        )
    few, many = min(map(plots.axis_value, rows)), max(map(plots.axis_value, rows))
    ends = [f"{what}, S = {s}" for what in ("time", "memory") for s in (few, many)]
    return _table(("statistics of S samples", "time grows as", *ends), lines)


def _measured(results: _Results) -> list[str]:
    samples = plots.curves(results.rows).get(("predictive_statistics", "samples"))
    scaling = results.image("-scaling.png", "time and memory against pixels, classes and samples")
    roofline = results.image("-roofline.png", "roofline")
    return [
        f"## {results.device}",
        _showcase(results.rows),
        results.image("-showcase.png", "time per call"),
        _types(results.rows),
        _SCALING if scaling else "",
        scaling,
        _growth(samples) if samples else "",
        "### Roofline" if roofline else "",
        roofline,
    ]


def _traffic(row: Row) -> tuple[str, str]:
    """What our CPU kernel moves and what the system clears for it; empty where nothing is known."""
    case = Case.of_row(row)
    if row["device_type"] == "cuda" or case.op == "linear_cross_entropy":
        return "", ""
    if row["implementation"] == STREAMED:
        return size(costs.streamed_moves(case)), size(costs.streamed_cleared(case))
    # Alone the kernel meets memory that has been touched before.
    cleared = costs.cleared(case) if row["implementation"] == OURS else 0
    return size(costs.kernel_moves(case)), size(cleared) if cleared else ""


def _cost_table(rows: Sequence[Row], op: str) -> str:
    """Bytes, operations and times of our implementations of an op in the ordinary cases."""
    lines = []
    for group in grouped(row for row in rows if row["op"] == op and not row.get("study")):
        for row in group:
            if row["implementation"] not in (OURS, KERNEL, STREAMED, ALL_TABLES):
                continue
            case = Case.of_row(row)
            product = row.get("matmul_gflop_per_s")
            lines.append(
                (
                    f"{title(row)}: {row['implementation']}",
                    duration(row["median_ms"]),
                    size(case.bytes_moved),
                    *_traffic(row),
                    duration(case.bytes_moved / row["copy_gb_per_s"] * 1e-6),
                    duration(case.operations / product * 1e-6)
                    if product and case.operations
                    else "",
                    f"{row['gb_per_s']:.3g}",
                    f"{row['fraction_of_copy']:.0%}",
                )
            )
    columns = (
        *("case", "time", "must move", "kernel moves", "system clears"),
        *("bytes at copy speed", "operations at product speed", "GB/s", "of copy"),
    )
    return _table(columns, lines) if lines else ""


def _costs(devices: Sequence[_Results]) -> list[str]:
    parts = [_COSTS]
    for op in OPS:
        tables = {results.device: _cost_table(results.rows, op) for results in devices}
        if any(tables.values()):
            parts += [f"### {op}", _KERNELS[op]]
        for device, table in tables.items():
            parts += [f"On {device}:", table] if table else []
    measured = any(results.is_cuda for results in devices)
    return [*parts, _GPU_COSTS, "" if measured else _UNTUNED]


def page(folder: Path = report.RESULTS) -> str:
    """The whole page, from the results in a folder.

    Raises:
        FileNotFoundError: it has no results.
    """
    devices = load(folder)
    parts = [_HEAD, _METHOD, _devices(devices)]
    for results in devices:
        parts += _measured(results)
    if not any(results.is_cuda for results in devices):
        parts += ["## GPU", _NOT_MEASURED]
    parts += _costs(devices)
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes docs/benchmarks.md from the results files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs", description=main.__doc__)
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder of results")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    options.output.write_text(page(options.results), encoding="utf-8")
    print(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
