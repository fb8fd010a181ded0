"""Rows of results and how they are written out for readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .families import case_of, implementation_of
from .implementations import OURS

Row = Mapping[str, Any]

_CASE = ("op", "shape", "dtype", "layout", "mode")


def grouped(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows case by case, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (*(row[key] for key in _CASE), row.get("study", ""))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def named(row: Row) -> str:
    return implementation_of(row).label


def title(row: Row) -> str:
    layout = "" if row["layout"] == "nchw" else f", {row['layout']}"
    mode = f", {row['mode']}" if case_of(row).is_loss else ""
    return f"[{row['shape'].replace('x', ', ')}] {row['dtype']}{layout}{mode}"


def find(group: Sequence[Row], implementation: str) -> Row | None:
    return next((row for row in group if row["implementation"] == implementation), None)


def ours_of(group: Sequence[Row]) -> Row | None:
    return find(group, OURS)


def duration(milliseconds: float) -> str:
    """Three digits and a unit that fits: call overheads are microseconds, eager runs seconds."""
    if milliseconds < 1:
        return f"{milliseconds * 1e3:.3g} µs"
    if milliseconds < 1000:
        return f"{milliseconds:.3g} ms"
    return f"{milliseconds / 1e3:.3g} s"


def size(count: int) -> str:
    if count < 1e6:
        return f"{count / 1e3:.3g} kB"
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


def ratio(row: Row, ours: Row | None) -> str:
    """A row's time in ours; empty for ours itself."""
    if ours is None or row is ours:
        return ""
    times = row["median_ms"] / ours["median_ms"]
    return f"{times:.2g}x" if times < 100 else f"{times:.0f}x"


def environment_line(row: Row) -> str:
    cuda = f", CUDA {row['cuda']}" if row["cuda"] else ""
    return (
        f"{row['device']} ({row['isa']}), segunc_ops {row['segunc_ops']}, torch {row['torch']}"
        f"{cuda}, Python {row['python']}, {row['date']}"
    )
