"""The rows of the table from machine code, and the gates that fail a build."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .control_flow import NoWayError
from .disassembly import Function, Instruction, Place, disassemble
from .hot_path import HotPath, access_bytes, hot_path, is_global
from .markers import Hot, MarkerError, Markers, Value, evaluate, read_markers
from .model import H100, H200, LANES, WARP, Bound, bound, half_of_the_slots
from .resources import SHARED_OF_LAUNCH, Kernel, aligned, block_sizes, demangle, kernels_of

PIPES = tuple(LANES)


@dataclass(frozen=True)
class Row:
    """A kernel as it runs for one kind of input.

    Attributes:
        title: Of the operation and its input.
        kernel: A pattern that one kernel's name with its template arguments matches.
        reads, writes: Bytes an element that must move, as expressions of markers.py.
        values: What such expressions and the source's may contain: C classes, S samples, threads in
            a ``team`` that shares a pixel.
        dynamic: The launch's dynamic shared memory in bytes.
        unit: What an element is.
        case: The benchmarks' case that it is, without its size, if it is one.
        options: What is rare by the sources' markers, but not here, by name.
    """

    title: str
    kernel: str
    reads: str
    writes: str
    values: Mapping[str, Value] = field(default_factory=dict)
    dynamic: str = "0"
    unit: str = "logit"
    case: Mapping[str, object] | None = None
    options: tuple[str, ...] = ()


def _case(op: str, classes: int, dtype: str, layout: str, mode: str) -> dict[str, object]:
    return {"op": op, "classes": classes, "dtype": dtype, "layout": layout, "mode": mode}


# A target is 8 bytes, a pixel's other maps are left out.
_READS_LOSS, _WRITES_LOSS = "sizeof(T) + 8 / C", "sizeof(T)"
_TILE = "threads / team * C * sizeof(T)"
_BOTH = "forward+backward"
_TYPES = {"float": "fp32", "bfloat16": "bf16"}


def _rows() -> Iterator[Row]:
    for cpp, name in _TYPES.items():
        for pixels, classes, registers, least in (
            ("AdjacentPixels<4>", 2, 2, 2),
            ("AdjacentPixels<2>", 11, 11, 11),
            ("AdjacentPixels<2>", 19, 19, 19),
            ("AdjacentPixels<2>", 21, 21, 21),
            ("AdjacentPixels<2>", 17, 20, 17),  # of those without a kernel of their own
            ("AdjacentPixels<2>", 32, 32, 29),
            ("SpacedPixels<2, 128>", 19, 20, 17),
        ):
            odd = ", odd width" if pixels.startswith("Spaced") else ""
            yield Row(
                f"cross_entropy planar C={classes}{odd} {name}",
                f"cross_entropy_planar_registers_kernel<{cpp}, PlanarVariant<{pixels}, "
                f"{registers}, {least}, 0, false*",
                _READS_LOSS,
                _WRITES_LOSS,
                {"C": classes},
                case=None if odd else _case("cross_entropy", classes, name, "nchw", _BOTH),
            )
        # The costliest factor of a pixel's loss, and a term of each logit.
        for loss, option in (("modulated", "modulation"), ("adjusted", "adjustment")):
            yield Row(
                f"{loss} cross_entropy planar C=19 {name}",
                f"cross_entropy_planar_registers_kernel<{cpp}, PlanarVariant<AdjacentPixels<2>, "
                "19, 19, 1, false*",
                _READS_LOSS,
                _WRITES_LOSS,
                {"C": 19},
                options=(option,),
            )
            yield Row(
                f"{loss} cross_entropy planar C=150 {name}",
                f"cross_entropy_staged_kernel<{cpp}, ExactStaged<ExactTile<{cpp}, (Layout)0, 150, "
                "256>, 1*",
                _READS_LOSS,
                _WRITES_LOSS,
                {"C": 150, "team": 8},
                _TILE,
                options=(option,),
            )
        for layout, classes, variant, team in (
            ("planar", 150, f"ExactStaged<ExactTile<{cpp}, (Layout)0, 150, 256>, 0*", 8),
            ("channels_last", 150, f"ExactStaged<ExactTile<{cpp}, (Layout)1, 150, 256>, 0*", 8),
            ("channels_last", 19, f"ExactStaged<ExactTile<{cpp}, (Layout)1, 19, 256>, 0*", 1),
            ("any layout", 20, "GeneralStaged<20, 16, 0*", 1),
        ):
            yield Row(
                f"cross_entropy {layout} C={classes} {name}",
                f"cross_entropy_staged_kernel<{cpp}, {variant}",
                _READS_LOSS,
                _WRITES_LOSS,
                {"C": classes, "team": team},
                _TILE,
                case=_case("cross_entropy", classes, name, layout.replace("planar", "nchw"), _BOTH),
            )
        for classes, team, strands in ((19, 1, 2), (150, 8, 16)):
            yield Row(
                f"upsampled cross_entropy x4 C={classes} {name}",
                "cross_entropy_interpolated_tiles_kernel<TileVariant<19, 17, 0*",
                "1.3 / 16 * sizeof(T) + 8 / C",
                "1.3 / 16 * 4",
                {
                    "T": cpp,
                    "C": classes,
                    "team": team,
                    "strands": strands,
                    "rows": 64,
                    "scale": 4,
                },
                "4 * (threads / team * 6 / 4 + 2) * C",
            )
        yield Row(
            f"statistics S=10 C=19 {name}",
            f"statistics_planar_registers_kernel<{cpp}, *, 19, 19*",
            "sizeof(T)",
            "28 / C / S",
            {"C": 19, "S": 10},
            case=_case("predictive_statistics", 19, name, "nchw", "forward"),
        )
        for pixels, classes, registers, least in (
            ("AdjacentPixels<2>", 19, 19, 19),
            ("AdjacentPixels<2>", 17, 20, 17),  # of those without a kernel of their own
            ("SpacedPixels<2, 128>", 19, 20, 9),
        ):
            odd = ", odd width" if pixels.startswith("Spaced") else ""
            yield Row(
                f"counts C={classes}{odd} {name}",
                f"counts_planar_registers_kernel<{cpp}, PlanarVariant<{pixels}, {registers}, "
                f"{least}*",
                "sizeof(T) + 8 / C",
                "0",
                {"C": classes},
                "4 * (C * C + 16 * 4)",  # confusion, and 15 bins of calibration
                case=None if odd else _case("accumulate_counts", classes, name, "nchw", "forward"),
            )
        for pixels, classes, registers, least in (
            ("AdjacentPixels<2>", 2, 2, 2),
            ("AdjacentPixels<2>", 19, 19, 19),
            ("AdjacentPixels<2>", 21, 24, 17),  # of those without a kernel of their own
            ("SpacedPixels<2, 128>", 19, 24, 9),
        ):
            odd = ", odd width" if pixels.startswith("Spaced") else ""
            variant = f"<{cpp}, PlanarVariant<{pixels}, {registers}, {least}*"
            yield Row(
                f"dice sums planar C={classes}{odd} {name}",
                f"dice_sums_planar_registers_kernel{variant}",
                _READS_LOSS,
                "0",
                {"C": classes},
            )
            yield Row(
                f"dice gradient planar C={classes}{odd} {name}",
                f"dice_gradient_planar_registers_kernel{variant}",
                _READS_LOSS,
                _WRITES_LOSS,
                {"C": classes},
            )
        for source, layout, columns, batch in (
            (f"StoredRows<{cpp}, 4>", "planar", 4, 4),
            (f"StagedRows<{cpp}>", "channels_last", 1, 4),
            (f"StoredRows<{cpp}, 1>", "any layout", 1, 8),
            (f"InterpolatedRows<{cpp}>", "upsampled x4", 1, 4),
        ):
            yield Row(
                f"blocks {layout} C=19 {name}",
                f"blocks_sums_kernel<{source}*",
                "sizeof(T)" if layout != "upsampled x4" else "1.3 / 16 * sizeof(T)",
                "0",
                {"C": 19, "V": columns, "K": batch},
                _TILE if layout == "channels_last" else "0",
                case=_case("block_uncertainty", 19, name, "nchw", "forward")
                if layout == "planar"
                else None,
            )
        yield Row(
            f"dice sums any layout C=19 {name}",
            f"dice_sums_kernel<{cpp}, StoredPixels>",
            _READS_LOSS,
            "0",
            {"C": 19},
            "8 * 8 * (3 * C + 1)",
        )
        yield Row(
            f"dice gradient any layout C=19 {name}",
            f"dice_gradient_stored_kernel<{cpp}>",
            _READS_LOSS,
            _WRITES_LOSS,
            {"C": 19},
        )
        yield Row(
            f"dice_bce sums planar {name}",
            f"dice_bce_sums_planes_kernel<{cpp}>",
            "sizeof(T) + 1",
            "0",
        )
        yield Row(
            f"dice_bce gradient planar {name}",
            f"dice_bce_gradient_planes_kernel<{cpp}>",
            "sizeof(T) + 1",
            "sizeof(T)",
        )
        yield Row(
            f"dice_bce sums any layout C=19 {name}",
            f"dice_bce_sums_kernel<{cpp}>",
            "sizeof(T) + 1",
            "0",
            {"C": 19},
            "8 * 8 * (3 * C + 1)",
        )
        yield Row(
            f"dice_bce gradient any layout C=19 {name}",
            f"dice_bce_gradient_kernel<{cpp}>",
            "sizeof(T) + 1",
            "sizeof(T)",
            {"C": 19},
        )
        for width, layout in ((4, "planar"),):
            yield Row(
                f"label_uncertainty {layout} {name}",
                f"label_uncertainty_kernel<{cpp}, {width}>",
                "2 * sizeof(T) + 8",
                "2 * sizeof(T)",
                unit="pixel",
            )
        yield Row(
            f"scale {name}",
            f"scale_vectors_kernel<{cpp}, {4 if cpp == 'float' else 8}>",
            "sizeof(T)",
            "sizeof(T)",
            unit="element",
        )
    # `rows` are the elements of all rows of a factor, `draws` those of a thread.
    for factor, classes, rows, draws, antithetic in (
        ("diagonal", 19, 19, 4, False),
        ("diagonal", 19, 19, 8, True),
        ("triangle", 19, 190, 4, False),
        ("triangle", 19, 190, 8, True),
        ("diagonal", 150, 150, 16, False),
        ("diagonal", 150, 150, 16, True),
    ):
        types, kept = ("void, float", 1) if draws == 16 else ("float, float", 0)
        numbers = draws // 2 if antithetic else draws
        name = " antithetic" if antithetic else ""
        yield Row(
            f"expected_cross_entropy {factor} S=16 C={classes}{name} fp32",
            f"expected_cross_entropy_kernel<{types}, {numbers}, {str(antithetic).lower()}, "
            f"(Numbers){kept}>",
            "(4 * (C + rows) + 8) / C / 16",
            "4 * (C + rows) / C / 16",
            {"C": classes, "rows": rows, "team": 16 // draws, "draws": draws},
            "0" if kept else "C * 4 * 4 * threads",
            unit="logit and draw",
        )
    for step, reads, writes, kernel in (
        # Of runs 10 bytes for 64 pixels and 2 each, at 86 runs in 2048 pixels.
        ("tiles", "1 + 4", "1 / 4", "component_mean_tiles_kernel<unsigned char, float>"),
        ("means", "1 / 4", "4", "component_mean_means_kernel<float>"),
        ("seams", "2", "0", "components_seams_kernel<int>"),
    ):
        yield Row(f"component_mean {step} uint8 fp32", kernel, reads, writes, unit="pixel")


ROWS = tuple(_rows())


@dataclass(frozen=True)
class Line:
    """A row with what the machine code says of it."""

    row: Row
    kernel: Kernel
    path: HotPath
    warps: int
    dynamic: float
    bounds: Sequence[Bound]  # on an H100 and an H200
    half: float  # the instructions that take half of an H200's issue slots
    budget: float | None

    @property
    def in_flight(self) -> int:
        """Bytes of loads that are on their way to a multiprocessor."""
        return self.path.in_flight * self.warps * WARP

    @property
    def widths(self) -> str:
        """The widths of global accesses in bytes."""
        found = {access_bytes(i) for i in self.path.instructions if is_global(i)}
        return ", ".join(map(str, sorted(found)))


@dataclass(frozen=True)
class Code:
    """A kernel's machine code for the target that is judged."""

    kernel: Kernel
    function: Function


@dataclass(frozen=True)
class Build:
    """What was compiled, and what its sources say of it.

    Attributes:
        kernels: Of every target.
        codes: Of the target that is judged.
        markers: Of the sources.
        threads: Of a block, by kernel stem.
    """

    kernels: Sequence[Kernel]
    codes: Sequence[Code]
    markers: Markers
    threads: Mapping[str, int]


def read_build(library: Path, lines: Path, sources: Iterable[Path], target: str) -> Build:
    """Reads what was compiled.

    Args:
        library: With code for every target.
        lines: The same, compiled with -lineinfo, for one target at least.
        sources: What they were compiled from, headers included.
        target: Whose main loops are judged, such as ``sm_90``.

    Raises:
        FileNotFoundError: a program is not installed, or there is no code for the target.
        MarkerError: a marker cannot be read.
    """
    files = list(sources)
    kernels = kernels_of(library)
    functions = list(disassemble(lines, target))
    names = demangle(function.name for function in functions)
    by_name = {names[function.name]: function for function in functions}
    codes = [
        Code(kernel, by_name[kernel.name])
        for kernel in kernels
        if kernel.target == target and kernel.name in by_name
    ]
    threads = block_sizes(file for file in files if file.suffix == ".cu")
    return Build(kernels, codes, read_markers(files), threads)


def fill(row: Row, build: Build) -> Line:
    """A row with what the machine code says of it.

    Raises:
        LookupError: not one kernel matches, its source marks no main loop or has no block size.
        MarkerError: an expression has no value.
        NoWayError: its main loop has no way that is not rare.
    """
    markers, threads = build.markers, build.threads
    found = [code for code in build.codes if fnmatch.fnmatchcase(code.kernel.name, row.kernel)]
    if len(found) != 1:
        raise LookupError(f"{row.kernel} is the name of {len(found)} kernels")
    kernel, function = found[0].kernel, found[0].function
    hot = markers.hot_of(function.instructions)
    if hot is None:
        raise LookupError(f"{kernel.stem} has no marker 'hot' in its source")
    if kernel.stem not in threads:
        raise LookupError(f"{kernel.stem} has no __launch_bounds__ that can be read")
    size = threads[kernel.stem]
    names = {**markers.arguments_of(kernel.name), "team": 1.0, "threads": size, **row.values}
    path = hot_path(function, markers.without_rare(row.options), hot, names)
    dynamic = evaluate(row.dynamic, names)
    warps = kernel.warps(size, dynamic)
    reads, writes = evaluate(row.reads, names), evaluate(row.writes, names)
    per_element = {pipe: path.per_element(pipe) for pipe in PIPES}
    in_flight = path.in_flight * warps * WARP
    bounds = [bound(gpu, per_element, reads + writes, reads, in_flight) for gpu in (H100, H200)]
    half = half_of_the_slots(H200, reads + writes)
    budget = markers.budget_of(kernel.name)
    return Line(row, kernel, path, warps, dynamic, bounds, half, budget)


def table(lines: Iterable[Line]) -> str:
    """The table from machine code: Markdown."""
    header = ["case", "kernel", "registers", "warps", "shared", "access", *PIPES, "in flight"]
    header += ["H100", "H200", "half", "budget"]
    rows = [header]
    for line in lines:
        shared = f"{line.kernel.shared} + {line.dynamic:.0f}"
        cells = [line.row.title, f"`{line.kernel.name}`", str(line.kernel.registers)]
        cells += [str(line.warps), shared, line.widths]
        cells += [f"{line.path.per_element(pipe):.1f}" for pipe in PIPES]
        cells.append(f"{line.in_flight / 1024:.0f} KB")
        cells += [f"{bound.share:.0%} {bound.name}" for bound in line.bounds]
        cells += [f"{line.half:.1f}", "-" if line.budget is None else f"{line.budget:g}"]
        rows.append(cells)
    return aligned(rows, texts=2)


def predictions(lines: Iterable[Line]) -> list[dict[str, object]]:
    """What the table says of the benchmarks' cases, for JSON."""
    return [
        {
            "case": dict(line.row.case),
            "instructions": round(line.path.per_element("issue"), 2),
            "share": {
                gpu.name: {"of_copy": round(bound.share, 3), "bound": bound.name}
                for gpu, bound in zip((H100, H200), line.bounds, strict=True)
            },
        }
        for line in lines
        if line.row.case is not None
    ]


# What an input would say, for kernels that are in no row.
_SOME_INPUT: dict[str, Value] = {name: 2.0 for row in ROWS for name in ("threads", *row.values)}

# ---- Gates: each yields a sentence for every kernel that breaks it ----


def local_memory(build: Build) -> Iterator[str]:
    """Kernels of any target that keep registers or arrays in local memory."""
    for kernel in build.kernels:
        if kernel.local:
            yield f"{kernel.name} on {kernel.target}: {kernel.local} bytes of local memory"


def refused_launches(build: Build) -> Iterator[str]:
    """Kernels of any target whose launch may ask for more shared memory than is granted."""
    for kernel in build.kernels:
        dynamic = build.markers.dynamic_of(kernel.name)
        if kernel.shared + dynamic > SHARED_OF_LAUNCH:
            yield (
                f"{kernel.name} on {kernel.target}: its launch admits {dynamic:.0f} bytes of "
                f"dynamic shared memory beside {kernel.shared} static ones, "
                f"more than {SHARED_OF_LAUNCH}"
            )


def narrow_accesses(build: Build) -> Iterator[str]:
    """Global accesses narrower than the vector that their source line declares."""
    markers = build.markers
    for code in build.codes:
        names = markers.arguments_of(code.kernel.name)
        narrow: Counter[str] = Counter()
        for instruction in code.function.instructions:
            if not is_global(instruction):
                continue
            declared = markers.find("vector", instruction)
            if declared is None:
                continue
            try:
                least = int(evaluate(declared, names))
            except MarkerError as error:
                narrow[str(error)] += 1
                continue
            if access_bytes(instruction) < least:
                place = next(p for p in instruction.places if p in markers.lines["vector"])
                text = f"{_short(place)}: {instruction.opcode} where a vector has {least} bytes"
                narrow[text] += 1
        for text, times in narrow.items():
            yield f"{code.kernel.name}, {text}, {times} times"


_FORBIDDEN = {
    "LDL": "local memory",
    "STL": "local memory",
    "CALL": "a call",
    "LD": "a generic load",
    "ST": "a generic store",
}


def _fault(instruction: Instruction, markers: Markers) -> str:
    if instruction.base in ("LD", "ST") and markers.find("generic", instruction) is not None:
        return ""
    return _FORBIDDEN.get(instruction.base, "")


def _way_through(
    function: Function, markers: Markers, hot: Hot, names: Mapping[str, Value]
) -> HotPath:
    """The hot path; where the compiler has joined what is rare and what is not, over rare lines."""
    try:
        return hot_path(function, markers, hot, names)
    except NoWayError:
        return hot_path(function, markers.without_rare(), hot, names)


def forbidden_in_main_loops(build: Build) -> Iterator[str]:
    """Local memory, calls and generic accesses on the way through a main loop."""
    markers = build.markers
    for code in build.codes:
        hot = markers.hot_of(code.function.instructions)
        if hot is None:
            continue
        names = {**_SOME_INPUT, **markers.arguments_of(code.kernel.name)}
        try:
            path = _way_through(code.function, markers, hot, names)
        except (NoWayError, MarkerError) as error:
            yield f"{code.kernel.name}: {error}"
            continue
        for what in sorted({_fault(i, markers) for i in path.instructions} - {""}):
            yield f"{code.kernel.name}: {what} in the main loop"


def idle_markers(build: Build) -> Iterator[str]:
    """Markers of vectors and main loops that stand where no instruction comes from."""
    every = (i for code in build.codes for i in code.function.instructions)
    accesses, others = set[Place](), set[Place]()
    for instruction in every:
        (accesses if is_global(instruction) else others).update(instruction.places)
    places = accesses | others
    files = {place.file for place in places}
    for place in sorted(build.markers.lines["vector"]):
        if place.file in files and place not in accesses:
            yield f"{_short(place)}: no access to global memory where a vector is declared"
    for hot in build.markers.hot:
        if hot.file in files and not any(map(hot.holds, places)):
            yield f"{_short(Place(hot.file, hot.first))}: no code where a main loop is marked"


def _short(place: Place) -> str:
    return f"{place.file.rpartition('/')[2]}:{place.line}"


GATES = (local_memory, refused_launches, narrow_accesses, forbidden_in_main_loops, idle_markers)


def over_budget(lines: Iterable[Line]) -> Iterator[str]:
    """Kernels that issue more instructions an element than is written beside their policy."""
    for line in lines:
        issued = line.path.per_element("issue")
        if line.budget is not None and issued > line.budget:
            yield (
                f"{line.row.title}: {line.kernel.name} issues {issued:.2f} instructions a "
                f"{line.row.unit}, its budget is {line.budget:g}"
            )
