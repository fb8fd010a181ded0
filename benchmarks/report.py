"""From measurements to a results file, Markdown tables and plots.

`benchmarks/results/<device>.json` holds one flat row per measurement: figures, device, versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import plots
from .case import CURVES
from .environment import slug
from .families import case_of
from .implementations import COMPILED, EAGER, KERNEL, OURS
from .rows import (
    Row,
    duration,
    environment_line,
    grouped,
    named,
    ours_of,
    ratio,
    size,
    title,
)

RESULTS = Path(__file__).parent / "results"

_COLUMNS = (
    "case",
    "implementation",
    "median",
    "quartiles",
    "times ours",
    "GB/s",
    "of copy",
    "peak memory",
    "of logits",
)
_NOTES = (
    "Medians of interleaved rounds. GB/s counts what any implementation must move (inputs read "
    "once, outputs written once); *of copy* relates it to a copy timed in the same rounds. Peak "
    "memory is what torch's allocator holds above the inputs, of component_mean's peers without "
    "what NumPy holds; it is related to the logits or values."
)


def rows_of(pytest_json: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that the benchmarks left in pytest-benchmark's JSON.

    Raises:
        ValueError: it holds none.
    """
    rows = [dict(entry["extra_info"]) for entry in pytest_json.get("benchmarks", ())]
    rows = [row for row in rows if "median_ms" in row]
    if not rows:
        raise ValueError("pytest-benchmark's JSON: expected measurements of segunc_ops, got none")
    return rows


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
    for group in grouped(rows):
        ours = ours_of(group)
        for row in group:
            cells = (
                title(row),
                named(row),
                duration(row["median_ms"]),
                f"{duration(row['q1_ms'])} - {duration(row['q3_ms'])}",
                ratio(row, ours),
                f"{row['gb_per_s']:.3g}",
                f"{row['fraction_of_copy']:.0%}",
                size(row["peak_bytes"]),
                f"{row['peak_over_logits']:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def markdown(rows: Sequence[Row]) -> str:
    """A table per operation, then one per curve; all rows are of one device."""
    measured_on = dict.fromkeys(environment_line(row) for row in rows)
    lines = [f"Measured on {'; '.join(measured_on)}.", "", _NOTES, ""]
    ordinary = [row for row in rows if row.get("study", "") not in CURVES]
    for op in dict.fromkeys(row["op"] for row in ordinary):
        lines += [f"## {op}", "", *_table([row for row in ordinary if row["op"] == op])]
    parts = plots.curves(rows)
    if parts:
        lines += ["## Against pixels, classes and samples", ""]
    for (op, axis), part in parts.items():
        lines += [f"### {op} against {axis}", "", *_table(part)]
    return "\n".join(lines)


def compact_json(rows: Sequence[Row]) -> str:
    """A JSON list with one row a line, so that differences between two runs can be read."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n"


def showcase(rows: Sequence[Row]) -> list[Row]:
    """The rows that a reader should see first."""
    return [row for row in rows if case_of(row).is_showcase]


def roofline(rows: Sequence[Row]) -> list[Row]:
    """The rows that the roofline draws: showcases whose operations count."""
    drawn = (OURS, KERNEL, COMPILED, EAGER)
    return [
        row
        for row in showcase(rows)
        if row["implementation"] in drawn and row.get("operations") and row["matmul_gflop_per_s"]
    ]


_PLOTS: dict[str, tuple[Callable[[Sequence[Row], Path], None], Callable[[Sequence[Row]], Any]]] = {
    ".png": (plots.plot_bars, lambda rows: [row for row in rows if not row.get("study")]),
    "-showcase.png": (plots.plot_bars, showcase),
    "-scaling.png": (plots.plot_curves, lambda rows: [r for r in rows if r.get("study") in CURVES]),
    "-roofline.png": (plots.plot_roofline, roofline),
}


def plots_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The plots that can be drawn of the rows, by the end of their names, with what they draw."""
    chosen = {ending: list(choose(rows)) for ending, (_, choose) in _PLOTS.items()}
    return {ending: drawn for ending, drawn in chosen.items() if drawn}


def write(rows: Sequence[Row], folder: Path, *, suffix: str = "") -> list[Path]:
    """Writes `<device><suffix>.json`, `.md` and, where matplotlib is installed, plots.

    `.png` draws all cases as bars, `-showcase.png` the few that a reader should see first,
    `-scaling.png` time and memory against pixels, classes and samples, and `-roofline.png`
    operations against bytes.

    Args:
        rows: measurements of one device.
        folder: created if missing.
        suffix: tells apart the results of different suites.

    Returns:
        The files written.

    Raises:
        ValueError: no rows, or rows of several devices.
    """
    devices = sorted({row["device"] for row in rows})
    if len(devices) != 1:
        raise ValueError(f"rows: expected measurements of one device, got {devices}")
    folder.mkdir(parents=True, exist_ok=True)
    stem = slug(devices[0]) + suffix
    texts = {".json": compact_json(rows), ".md": markdown(rows)}
    paths = []
    for extension, text in texts.items():
        path = folder / f"{stem}{extension}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    try:
        for ending, drawn in plots_of(rows).items():
            _PLOTS[ending][0](drawn, folder / f"{stem}{ending}")
            paths.append(folder / f"{stem}{ending}")
    except ImportError as error:
        print(f"benchmarks: no plot ({error})", file=sys.stderr)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Reports measurements that exist already; `python -m benchmarks` takes new ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=main.__doc__)
    parser.add_argument("json", type=Path, help="pytest-benchmark's JSON, or a results file")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the report")
    options = parser.parse_args(arguments)
    content = json.loads(options.json.read_text(encoding="utf-8"))
    rows = content if isinstance(content, list) else rows_of(content)
    for path in write(rows, options.output):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
