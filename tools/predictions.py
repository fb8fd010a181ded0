"""What machine code predicts of the benchmarks on a GPU, beside what they measured there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "benchmarks" / "predictions.json"
"""What `make cuda` writes."""

TOLERANCE = 0.15
"""Shares of the copy bandwidth that a prediction may be off before it asks for a reason."""

_GPUS = ("H100", "H200")
_MEASURED = ("ours, kernel alone", "ours")


@dataclass(frozen=True)
class Comparison:
    """A case's share of the copy bandwidth, as predicted and as measured.

    ``bound`` is what the model says that the kernel waits for.
    """

    case: str
    predicted: float
    bound: str
    measured: float

    @property
    def agrees(self) -> bool:
        """Whether they are within :data:`TOLERANCE` of each other."""
        return abs(self.measured - self.predicted) <= TOLERANCE


def read_table(path: Path = TABLE) -> list[dict[str, Any]]:
    """The predictions, each with the case that it is of; none where the file is not there."""
    if not path.exists():
        return []
    table: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return table


def compare(
    rows: Iterable[Mapping[str, Any]], table: Iterable[Mapping[str, Any]], device: str
) -> Iterator[Comparison]:
    """Every prediction that rows of the benchmarks say something of.

    Args:
        rows: of the benchmarks, on `device`.
        table: as :func:`read_table` gives it.
        device: the GPU's name; of one that has no prediction there is no comparison.
    """
    gpu = next((name for name in _GPUS if name in device), None)
    if gpu is None:
        return
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if not row["study"]:
            shape = tuple(map(int, row["shape"].split("x")))
            of_row = found.setdefault(
                (row["op"], row["dtype"], row["layout"], row["mode"], shape), {}
            )
            of_row[row["implementation"]] = float(row["fraction_of_copy"])
    for predicted in table:
        case = predicted["case"]
        wanted = tuple(case[name] for name in ("op", "dtype", "layout", "mode", "classes"))
        for (op, dtype, layout, mode, shape), shares in found.items():
            classes = shape[2] if op == "predictive_statistics" else shape[1]
            name = next((each for each in _MEASURED if each in shares), None)
            if (op, dtype, layout, mode, classes) == wanted and name is not None:
                share = predicted["share"][gpu]
                yield Comparison(
                    f"{op} {list(shape)} {dtype} {layout}, {name}",
                    share["of_copy"],
                    share["bound"],
                    shares[name],
                )
