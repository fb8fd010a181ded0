"""From measurements to a results file, a Markdown table and a plot.

`benchmarks/results/<device>.json` holds one flat row per measurement: figures, device, versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cases import (
    ALL_TABLES,
    CC3D,
    CC3D_LABELS,
    COMPILED,
    CUPY,
    EAGER,
    KERNEL,
    LABELS,
    OPS,
    OURS,
    SCIPY,
    STREAMED,
    TORCH,
    TORCH_COMPILED,
    TORCHMETRICS,
)
from .environment import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

RESULTS = Path(__file__).parent / "results"

_CASE = ("op", "shape", "dtype", "layout", "mode")
_LABELS = {
    COMPILED: "reference, torch.compile",
    EAGER: "reference, eager",
    TORCH: f"{TORCH}, eager",
}
_COLORS = {
    OURS: "#d1495b",
    KERNEL: "#e8a0a8",
    STREAMED: "#e8a0a8",
    LABELS: "#e8a0a8",
    CC3D: "#30638e",
    CC3D_LABELS: "#7fa8c9",
    SCIPY: "#5b8a72",
    CUPY: "#5b8a72",
    ALL_TABLES: "#e8a0a8",
    COMPILED: "#30638e",
    TORCH_COMPILED: "#7fa8c9",
    EAGER: "#8d99a6",
    TORCH: "#c3cad1",
    TORCHMETRICS: "#30638e",
}
_PLOT_COLUMNS = 2
_INK, _MUTED = "#22272e", "#5c6670"


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


def grouped(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows case by case, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _CASE), []).append(row)
    return list(groups.values())


def _named(row: Row) -> str:
    name: str = row["implementation"]
    return _LABELS.get(name, name)


def _title(row: Row) -> str:
    layout = "" if row["layout"] == "nchw" else f", {row['layout']}"
    mode = f", {row['mode']}" if row["op"].endswith("cross_entropy") else ""
    return f"[{row['shape'].replace('x', ', ')}] {row['dtype']}{layout}{mode}"


def _is_showcase(row: Row) -> bool:
    if row["op"] == "component_mean":
        return row["shape"] == "1x1024x2048" and row["layout"] == "street scene"
    if row["op"] == "upsampled_cross_entropy":
        return row["shape"] == "1x19x192x192" and row["layout"] == "nchw"
    training = row["op"] == "predictive_statistics" or row["mode"] == "forward+backward"
    return training and row["shape"].endswith("1x19x768x768") and row["layout"] == "nchw"


def _ours(group: Sequence[Row]) -> Row | None:
    return next((row for row in group if row["implementation"] == OURS), None)


def _duration(milliseconds: float) -> str:
    """Three digits and a unit that fits: call overheads are microseconds, eager runs seconds."""
    if milliseconds < 1:
        return f"{milliseconds * 1e3:.3g} µs"
    if milliseconds < 1000:
        return f"{milliseconds:.3g} ms"
    return f"{milliseconds / 1e3:.3g} s"


def _size(size: int) -> str:
    if size < 1e6:
        return f"{size / 1e3:.3g} kB"
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e9:.3g} GB"


def _ratio(row: Row, ours: Row | None) -> str:
    if ours is None or row is ours:
        return ""
    ratio = row["median_ms"] / ours["median_ms"]
    return f"{ratio:.2g}x" if ratio < 100 else f"{ratio:.0f}x"


def _environment_line(row: Row) -> str:
    cuda = f", CUDA {row['cuda']}" if row["cuda"] else ""
    return (
        f"{row['device']} ({row['isa']}), segunc_ops {row['segunc_ops']}, torch {row['torch']}"
        f"{cuda}, Python {row['python']}, {row['date']}"
    )


def markdown(rows: Sequence[Row]) -> str:
    """A table per operation; every row names its device and versions."""
    columns = (
        "case",
        "implementation",
        "median",
        "quartiles",
        "times ours",
        "GB/s",
        "of copy",
        "peak memory",
        "of logits",
        "measured on",
    )
    lines: list[str] = []
    for op in dict.fromkeys(row["op"] for row in rows):
        lines += [f"## {op}", "", " | ".join(("", *columns, "")).strip()]
        lines += ["|" + " --- |" * len(columns)]
        for group in grouped(row for row in rows if row["op"] == op):
            ours = _ours(group)
            for row in group:
                cells = (
                    _title(row),
                    _named(row),
                    _duration(row["median_ms"]),
                    f"{_duration(row['q1_ms'])} - {_duration(row['q3_ms'])}",
                    _ratio(row, ours),
                    f"{row['gb_per_s']:.3g}",
                    f"{row['fraction_of_copy']:.0%}",
                    _size(row["peak_bytes"]),
                    f"{row['peak_over_logits']:.2f}",
                    _environment_line(row),
                )
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    notes = (
        "Medians of interleaved rounds. GB/s counts what any implementation must move (inputs "
        "read once, outputs written once); *of copy* relates it to a copy timed in the same "
        "rounds. Peak memory is what torch's allocator holds above the inputs, of component_mean's "
        "peers without what NumPy holds; it is related to the logits or values."
    )
    return "\n".join((*lines, notes, ""))


def _plot_case(axes: Axes, group: Sequence[Row]) -> None:
    ours = _ours(group)
    names = [_named(row) for row in group]
    medians = [row["median_ms"] for row in group]
    spread = [
        [row["median_ms"] - row["q1_ms"] for row in group],
        [row["q3_ms"] - row["median_ms"] for row in group],
    ]
    positions = range(len(group))
    axes.barh(
        positions,
        medians,
        height=0.72,
        color=[_COLORS.get(row["implementation"], _MUTED) for row in group],
        xerr=spread,
        error_kw={"ecolor": _INK, "elinewidth": 0.8, "capsize": 2},
    )
    longest = max(row["q3_ms"] for row in group)
    for position, row in zip(positions, group, strict=True):
        ratio = _ratio(row, ours)
        text = _duration(row["median_ms"]) + (f"  ({ratio})" if ratio else "")
        axes.text(
            max(row["q3_ms"], row["median_ms"]) + 0.015 * longest,
            position,
            text,
            va="center",
            fontsize=8.5,
            color=_INK,
            fontweight="bold" if row is ours else "normal",
        )
    axes.set_yticks(positions, names, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.28 * longest)
    axes.set_title(
        f"{group[0]['op']}  {_title(group[0])}", fontsize=9, loc="left", color=_INK, pad=5
    )
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0, colors=_INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_MUTED)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws every case as bars of time, each on its own scale, with ratios to ours.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Drawn without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = sorted(grouped(rows), key=lambda group: OPS.index(group[0]["op"]))
    lines = -(-len(groups) // _PLOT_COLUMNS)
    figure = Figure(figsize=(6.6 * _PLOT_COLUMNS, 0.8 + 1.75 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, _PLOT_COLUMNS, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, group in zip(grid.flat, groups, strict=False):
        _plot_case(axes, group)
    figure.suptitle(
        f"Time per call, medians and quartiles; in brackets: times ours\n"
        f"{_environment_line(rows[0])}",
        fontsize=9.5,
        color=_MUTED,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=130, facecolor="white")


def compact_json(rows: Sequence[Row]) -> str:
    """A JSON list with one row a line, so that differences between two runs can be read."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n"


def write(rows: Sequence[Row], folder: Path, *, suffix: str = "") -> list[Path]:
    """Writes `<device><suffix>.json`, `.md` and, where matplotlib is installed, two plots.

    `.png` draws all cases, `-showcase.png` the few that a reader should see first.

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
    images = {".png": rows, "-showcase.png": [row for row in rows if _is_showcase(row)]}
    try:
        for ending, drawn in images.items():
            if drawn:
                plot(drawn, folder / f"{stem}{ending}")
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
