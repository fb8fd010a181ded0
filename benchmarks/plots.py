"""Plots of results: bars of time, curves of time and memory, and a roofline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .case import CURVES, Case, Study
from .families import OPS, case_of, implementation_of
from .implementations import DARK_GRAY, OURS
from .rows import Row, duration, environment_line, grouped, named, ours_of, ratio, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR_COLUMNS = 2
_BAR_LINES = 6  # a figure's line of panels has room for so many bars
_INK, _MUTED, _GRID = "#22272e", DARK_GRAY, "#e3e6e9"
_AXES: dict[Study, tuple[str, Callable[[Case], int]]] = {
    "pixels": ("pixels", lambda case: case.pixels),
    "classes": ("classes", lambda case: case.num_classes),
    "samples": ("samples", lambda case: case.num_samples),
}


def axis_value(row: Row) -> int:
    """Where on its curve's axis a row lies: its pixels, classes or samples."""
    case = case_of(row)
    return _AXES[case.study][1](case)


def curves(rows: Sequence[Row]) -> dict[tuple[str, Study], list[Row]]:
    """The rows that are drawn as curves, by operation and axis."""
    found = {
        (op, axis): [row for row in rows if row["op"] == op and row.get("study") == axis]
        for op in OPS
        for axis in CURVES
    }
    return {key: part for key, part in found.items() if part}


def _figure(width: float, height: float) -> Figure:
    # Drawn without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, text: str, rows: Sequence[Row], path: Path) -> None:
    figure.suptitle(
        f"{text}\n{environment_line(rows[0])}", fontsize=9.5, color=_MUTED, x=0.01, ha="left"
    )
    figure.savefig(path, dpi=130, facecolor="white")


def _draw_bars(axes: Axes, group: Sequence[Row]) -> None:
    ours = ours_of(group)
    names = [named(row) for row in group]
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
        color=[implementation_of(row).color for row in group],
        xerr=spread,
        error_kw={"ecolor": _INK, "elinewidth": 0.8, "capsize": 2},
    )
    longest = max(row["q3_ms"] for row in group)
    for position, row in zip(positions, group, strict=True):
        times = ratio(row, ours)
        text = duration(row["median_ms"]) + (f"  ({times})" if times else "")
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
        f"{group[0]['op']}  {title(group[0])}", fontsize=9, loc="left", color=_INK, pad=5
    )
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0, colors=_INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_MUTED)


def plot_bars(rows: Sequence[Row], path: Path) -> None:
    """Draws every case as bars of time, each on its own scale, with ratios to ours.

    Raises:
        ImportError: matplotlib is not installed.
    """
    groups = sorted(grouped(rows), key=lambda group: list(OPS).index(group[0]["op"]))
    lines = [groups[i : i + _BAR_COLUMNS] for i in range(0, len(groups), _BAR_COLUMNS)]
    # A line of panels is as high as its longest list of bars.
    heights = [max(len(group) / _BAR_LINES for group in line) for line in lines]
    figure = _figure(7.2 * _BAR_COLUMNS, 0.8 + 0.45 * len(lines) + 1.4 * sum(heights))
    grid = figure.subplots(
        len(lines), _BAR_COLUMNS, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, group in zip(grid.flat, groups, strict=False):
        _draw_bars(axes, group)
    text = "Time per call, medians and quartiles; in brackets: times ours"
    _save(figure, text, rows, path)


def _loglog(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x, fontsize=8.5, color=_INK)
    axes.set_ylabel(y, fontsize=8.5, color=_INK)
    axes.grid(which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, colors=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_MUTED)


def _draw_curves(axes: Axes, part: Sequence[Row], figure: str, unit: float) -> None:
    for name in dict.fromkeys(row["implementation"] for row in part):
        line = sorted((r for r in part if r["implementation"] == name), key=axis_value)
        implementation = implementation_of(line[0])
        line = [row for row in line if row[figure] > 0]
        axes.plot(
            [axis_value(row) for row in line],
            [row[figure] * unit for row in line],
            marker="o",
            markersize=4,
            linewidth=2 if name == OURS else 1.4,
            color=implementation.color,
            label=implementation.label,
        )


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Draws time (left) and peak memory (right) against pixels, classes and samples.

    Raises:
        ImportError: matplotlib is not installed.
    """
    parts = curves(rows)
    figure = _figure(11, 0.8 + 3.1 * len(parts))
    grid = figure.subplots(len(parts), 2, squeeze=False)
    for (left, right), ((op, axis), part) in zip(grid, parts.items(), strict=True):
        _draw_curves(left, part, "median_ms", 1)
        _draw_curves(right, part, "peak_bytes", 1e-6)
        inputs = {axis_value(row): case_of(row).logits_bytes for row in part}
        right.plot(
            *zip(*sorted((x, count * 1e-6) for x, count in inputs.items()), strict=True),
            linestyle="--",
            linewidth=1,
            color=_MUTED,
            label="the logits themselves, not counted",
        )
        _loglog(left, _AXES[axis][0], "time per call, ms")
        _loglog(right, _AXES[axis][0], "peak memory above the logits, MB")
        for axes in (left, right):
            axes.set_xticks(sorted(inputs), [f"{x:,}" for x in sorted(inputs)])
            axes.minorticks_off()
        left.set_title(f"{op} against {axis}", fontsize=9, loc="left", color=_INK)
        right.legend(fontsize=7.5, frameon=False)
    text = "Time and memory against the size of the input; medians"
    _save(figure, text, rows, path)


def plot_roofline(rows: Sequence[Row], path: Path) -> None:
    """Draws operations a second against operations a byte that must be moved.

    The roofs were measured along with the rows: a copy, and an fp32 matrix product.

    Raises:
        ImportError: matplotlib is not installed.
    """
    copy = statistics.median(row["copy_gb_per_s"] for row in rows)
    product = statistics.median(row["matmul_gflop_per_s"] for row in rows)
    figure = _figure(11, 6)
    axes = figure.subplots()
    points = [(row, row["operations"] / row["bytes_moved"]) for row in rows]
    ridge = product / copy
    low = 0.5 * min(ridge, *(x for _, x in points))
    high = 2 * max(ridge, *(x for _, x in points))
    axes.plot([low, ridge, high], [low * copy, product, product], color=_INK, linewidth=1.4)
    axes.text(
        low,
        low * copy * 0.85,
        f"copy, {copy:.3g} GB/s",
        ha="left",
        va="top",
        fontsize=8.5,
        color=_INK,
    )
    axes.text(
        high,
        product * 1.08,
        f"fp32 matrix product, {product:.3g} GFLOP/s",
        ha="right",
        fontsize=8.5,
        color=_INK,
    )
    seen: set[str] = set()
    for row, intensity in points:
        name = row["implementation"]
        axes.scatter(
            intensity,
            row["gflop_per_s"],
            s=130 if name == OURS else 26,
            color=implementation_of(row).color,
            label=None if name in seen else named(row),
            zorder=3,
        )
        seen.add(name)
    # Numbers in the points, names beside the plot: neighbours are often close.
    ours = [(x, row) for row, x in points if row["implementation"] == OURS]
    names = []
    for number, (x, row) in enumerate(sorted(ours, key=lambda point: point[0]), start=1):
        axes.annotate(
            str(number),
            (x, row["gflop_per_s"]),
            ha="center",
            va="center",
            fontsize=7,
            color="white",
            zorder=4,
        )
        names.append(f"{number:>2}  {row['op']} {row['dtype']}")
    _loglog(axes, "operations / bytes that must be moved", "GFLOP/s")
    ticks = [2**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.text(1.02, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=8, color=_INK)
    text = "Roofline: operations of our algorithm, at the speed that each implementation has"
    _save(figure, text, rows, path)
