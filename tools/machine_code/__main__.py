"""Writes what the kernels of a library use and cost, and fails where a gate is broken.

    python -m tools.machine_code build/cuda/segunc_ops_cuda.so build/cuda/segunc_ops_lines.so

Exit status: 0, or 1 if a gate is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import report, resources
from .control_flow import NoWayError
from .markers import MarkerError

_SOURCES = Path(__file__).parents[2] / "csrc"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and what breaks a gate; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools.machine_code", description=__doc__)
    parser.add_argument("library", type=Path, help="with code for every target")
    parser.add_argument("lines", type=Path, help="the same with line information for --target")
    parser.add_argument("--target", default="sm_90", help="whose main loops are judged")
    parser.add_argument("--sources", type=Path, default=_SOURCES, help="folder of the kernels")
    parser.add_argument("--resources", type=Path, help="file for the table of all kernels")
    parser.add_argument("--table", type=Path, help="file for the table of main loops")
    parser.add_argument("--predictions", type=Path, help="file of predictions, JSON")
    options = parser.parse_args(arguments)

    sources = sorted(p for p in options.sources.rglob("*") if p.suffix in (".cu", ".h"))
    build = report.read_build(options.library, options.lines, sources, options.target)
    if options.resources:
        text = resources.table(build.kernels, build.threads)
        options.resources.write_text(text + "\n", encoding="utf-8")
    lines, broken = [], []
    for row in report.ROWS:
        try:
            lines.append(report.fill(row, build))
        except (LookupError, MarkerError, NoWayError) as error:
            broken.append(f"{row.title}: {error}")
    text = report.table(lines)
    print(text)
    if options.table:
        options.table.write_text(text + "\n", encoding="utf-8")
    if options.predictions:
        table = json.dumps(report.predictions(lines), indent=1)
        options.predictions.write_text(table + "\n", encoding="utf-8")

    for gate in report.GATES:
        broken += gate(build)
    broken += report.over_budget(lines)
    for sentence in broken:
        print(sentence, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
