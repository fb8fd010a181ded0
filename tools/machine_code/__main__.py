"""Writes what the kernels of a library use and cost, and fails where a gate is broken.

    python -m tools.machine_code build/cuda/segunc_ops_cuda.so --resources build/cuda/resources.md

The binaries have to be compiled with -lineinfo. Exit status: 0, or 1 if a gate is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import report, resources
from .control_flow import NoWayError
from .disassembly import disassemble
from .markers import MarkerError, read_markers

_SOURCES = Path(__file__).parents[2] / "csrc"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and what breaks a gate; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools.machine_code", description=__doc__)
    parser.add_argument("binaries", nargs="+", type=Path, help="the library, or its object files")
    parser.add_argument("--target", default="sm_90", help="whose main loops are judged")
    parser.add_argument("--sources", type=Path, default=_SOURCES, help="folder of the kernels")
    parser.add_argument("--resources", type=Path, help="file for the table of all kernels")
    parser.add_argument("--table", type=Path, help="file for the table of main loops")
    options = parser.parse_args(arguments)

    sources = sorted(p for p in options.sources.rglob("*") if p.suffix in (".cu", ".h"))
    markers = read_markers(sources)
    threads = resources.block_sizes(p for p in sources if p.suffix == ".cu")
    kernels = [kernel for binary in options.binaries for kernel in resources.kernels_of(binary)]
    if options.resources:
        options.resources.write_text(resources.table(kernels, threads) + "\n", encoding="utf-8")

    functions = {
        function.name: function
        for binary in options.binaries
        for function in disassemble(binary, options.target)
    }
    names = resources.demangle(functions)
    by_name = {names[mangled]: function for mangled, function in functions.items()}
    codes = [
        report.Code(kernel, by_name[kernel.name])
        for kernel in kernels
        if kernel.target == options.target and kernel.name in by_name
    ]
    lines, broken = [], []
    for row in report.ROWS:
        try:
            lines.append(report.fill(row, codes, markers, threads))
        except (LookupError, MarkerError, NoWayError) as error:
            broken.append(f"{row.title}: {error}")
    text = report.table(lines)
    print(text)
    if options.table:
        options.table.write_text(text + "\n", encoding="utf-8")

    broken += report.local_memory(kernels)
    broken += report.refused_launches(kernels, markers)
    broken += report.narrow_accesses(codes, markers)
    broken += report.forbidden_in_main_loops(codes, markers)
    broken += report.over_budget(lines)
    for sentence in broken:
        print(sentence, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
