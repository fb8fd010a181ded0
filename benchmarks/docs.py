"""Writes `docs/benchmarks.md` from the results files: `python -m benchmarks.docs`."""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from . import costs, plots, report
from .families import OPS, case_of, implementation_of
from .families.dice import NNUNET, NNUNET_COMPILED
from .families.label_uncertainty import FORMULA, FORMULA_COMPILED
from .families.linear_cross_entropy import FEATURES
from .families.variations import CROSS_ENTROPY, TORCH_NOISE, TORCH_NOISE_COMPILED
from .implementations import COMPILED, EAGER, MAX_AUTOTUNE, TORCH, TORCH_COMPILED
from .rows import Row, duration, find, grouped, named, ours_of, ratio, size, title
from .training_steps import ENDING as TRAINING_STEPS

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_LINKS = "../benchmarks/results"
# Written by `make cuda`.
_MACHINE_CODE = report.RESULTS / "machine-code.md"
_TEMPLATE = Path(__file__).with_suffix(".md.jinja")

_COMPILERS = (
    *(COMPILED, MAX_AUTOTUNE, TORCH_COMPILED),
    *(NNUNET_COMPILED, FORMULA_COMPILED, TORCH_NOISE_COMPILED),
)
_EAGER = (EAGER, TORCH, NNUNET, FORMULA, TORCH_NOISE)


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

    def has(self, ending: str) -> bool:
        """Whether there is something to draw in the plot of that ending."""
        return ending in report.plots_of(self.rows)

    def image(self, ending: str, text: str) -> str:
        """The plot of that ending; empty if there is nothing to draw."""
        return f"![{text}]({self.link(ending)})" if self.has(ending) else ""


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


def _memory(ours: Row, eager: Row | None) -> str:
    return size(ours["peak_bytes"]) + (f" ({size(eager['peak_bytes'])})" if eager else "")


def _device_table(devices: Sequence[_Results]) -> str:
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
    return _table(columns, lines, texts=4)


def _showcase(rows: Sequence[Row]) -> str:
    order = list(OPS)
    lines = []
    for group in sorted(grouped(report.showcase(rows)), key=lambda g: order.index(g[0]["op"])):
        ours = ours_of(group)
        if ours is None:
            continue
        compiled, eager = _fastest(group, _COMPILERS), _fastest(group, _EAGER)
        others = [
            f"{named(row)}: {_time_and_ratio(row, ours)}"
            for row in group
            if row["implementation"] not in (*_COMPILERS, *_EAGER)
            and not implementation_of(row).is_ours
        ]
        lines.append(
            (
                f"{ours['op']} {title(ours)}",
                duration(ours["median_ms"]),
                _time_and_ratio(compiled, ours),
                _time_and_ratio(eager, ours),
                "<br>".join(others),
                f"{ours['fraction_of_copy']:.0%}",
                _memory(ours, eager),
            )
        )
    columns = (
        *("case", "ours", "`torch.compile`", "eager", "other peers", "of copy"),
        "peak memory (eager's)",
    )
    return _table(columns, lines)


def _variations(rows: Sequence[Row]) -> str:
    """Variations of cross-entropy in times that of the same inputs; empty if there are none."""
    lines = []
    for group in grouped(rows):
        ours, plain = ours_of(group), find(group, CROSS_ENTROPY)
        if ours is None or plain is None:
            continue
        compiled, eager = _fastest(group, _COMPILERS), _fastest(group, _EAGER)
        lines.append(
            (
                f"{ours['op']} {title(ours)}",
                duration(ours["median_ms"]),
                ratio(ours, plain),
                _time_and_ratio(compiled, ours),
                _time_and_ratio(eager, ours),
                f"{ours['fraction_of_copy']:.0%}",
                _memory(ours, eager),
            )
        )
    columns = (
        *("case", "ours", "in `cross_entropy`", "`torch.compile`", "eager", "of copy"),
        "peak memory (eager's)",
    )
    return _table(columns, lines) if lines else ""


def _matrix(rows: Sequence[Row], op: str) -> str:
    """Types and layouts down, classes across; empty if there is nothing to compare."""
    cells: dict[str, dict[int, str]] = {}
    shapes: dict[int, str] = {}
    for group in grouped(row for row in rows if row["op"] == op and case_of(row).in_matrix):
        ours = ours_of(group)
        if ours is None:
            continue
        case = case_of(ours)
        peers = [ratio(p, ours) for name in case.matrix_peers if (p := find(group, name))]
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
    return "\n\n".join(table for op in OPS if (table := _matrix(rows, op)))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent of a power law through points (x, y), by least squares of the logarithms."""
    x, y = ([math.log(value) for value in part] for part in zip(*points, strict=True))
    return statistics.linear_regression(x, y).slope


def _growth(rows: Sequence[Row]) -> str:
    """How time and memory grow with the samples; empty where that was not measured."""
    rows = plots.curves(rows).get(("predictive_statistics", "samples"), [])
    if not rows:
        return ""
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


def _traffic(row: Row) -> tuple[str, str]:
    """What our CPU kernel moves and what the system clears for it; empty where nothing is known."""
    traffic = case_of(row).traffic(row["implementation"])
    if traffic is None or row["device_type"] == "cuda":
        return "", ""
    return size(traffic.moved), size(traffic.cleared) if traffic.cleared else ""


def _cost_table(rows: Sequence[Row], op: str) -> str:
    """Bytes, operations and times of our implementations of an op in the ordinary cases."""
    lines = []
    for group in grouped(row for row in rows if row["op"] == op and not row.get("study")):
        for row in group:
            name = implementation_of(row)
            if not name.is_ours or name.is_partial:
                continue
            case = case_of(row)
            product = row.get("matmul_gflop_per_s")
            lines.append(
                (
                    f"{title(row)}: {name}",
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


def _training_steps(folder: Path) -> list[tuple[str, str]]:
    """What whole training steps take, by device; empty where that was not measured."""
    tables = []
    for path in sorted(folder.glob(f"*{TRAINING_STEPS}")):
        content = json.loads(path.read_text(encoding="utf-8"))
        environment, rows = content["environment"], content["rows"]
        lines = []
        for case in dict.fromkeys(row["case"] for row in rows):
            steps = [row for row in rows if row["case"] == case]
            first = steps[0]["median_ms"]
            lines += [
                (
                    case,
                    row["loss"],
                    duration(row["median_ms"]),
                    f"{row['median_ms'] / first:.2f}x",
                    size(row["peak_bytes"]),
                )
                for row in steps
            ]
        columns = ("network, images", "loss", "step", "in the first one's", "peak memory")
        title = f"{environment['device']}, {environment['peers']}"
        tables.append((title, _table(columns, lines, texts=2)))
    return tables


def page(folder: Path = report.RESULTS) -> str:
    """The whole page, from the results in a folder.

    Raises:
        FileNotFoundError: it has no results.
    """
    devices = load(folder)

    def cost_tables(op: str) -> list[tuple[str, str]]:
        tables = ((results.device, _cost_table(results.rows, op)) for results in devices)
        return [(device, table) for device, table in tables if table]

    template = jinja2.Template(
        _TEMPLATE.read_text(encoding="utf-8"),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = template.render(
        devices=devices,
        gpu_measured=any(results.is_cuda for results in devices),
        device_table=_device_table,
        showcase=_showcase,
        variations=_variations,
        types=_types,
        growth=_growth,
        cost_tables=cost_tables,
        training_steps=_training_steps(folder),
        costs=costs,
        features=FEATURES,
        machine_code=_MACHINE_CODE.read_text(encoding="utf-8").strip(),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


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
