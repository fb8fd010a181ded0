"""The families of operations: what is measured, in the order of reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..case import Case, Suite
from ..implementations import SHARED, Implementation
from ..workload import Workload
from . import (
    blocks,
    components,
    counts,
    cross_entropy,
    dice,
    expected_cross_entropy,
    label_uncertainty,
    linear_cross_entropy,
    statistics,
    variations,
)

_FAMILIES = (
    cross_entropy.FAMILY,
    dice.FAMILY,
    label_uncertainty.FAMILY,
    linear_cross_entropy.FAMILY,
    statistics.FAMILY,
    components.FAMILY,
    counts.FAMILY,
    blocks.FAMILY,
    variations.FAMILY,
    expected_cross_entropy.FAMILY,
)
_WORKLOADS = {op: work for family in _FAMILIES for op, work in family.workloads.items()}
OPS = {op.op: op for op in _WORKLOADS}
IMPLEMENTATIONS = {
    str(name): name for name in (*SHARED, *(peer for family in _FAMILIES for peer in family.peers))
}
OPTIONAL = tuple(name for name in IMPLEMENTATIONS.values() if name.is_optional)
PACKAGES = tuple(package for family in _FAMILIES for package in family.packages)


def cases(suite: Suite, device: torch.device) -> list[Case]:
    """The cases of a suite.

    ``"quick"`` is a look at the showcase, ``"default"`` adds types, layouts, class counts and
    small inputs one at a time and the studies, ``"full"`` is the product of the axes. Each begins
    with the smaller one's cases, so that a run that is cut short has the most telling ones.
    """
    half = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    ops = OPS.values()
    chosen = [case for op in ops for case in op.quick()]
    if suite in ("default", "full"):
        chosen += [case for op in ops for case in op.default(half)]
        chosen += [case for op in ops for case in op.studies(chosen)]
    if suite == "full":
        chosen += [case for op in ops for case in op.full(half)]
    return list(dict.fromkeys(chosen))


def operation(name: str) -> type[Case]:
    """The operation of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in OPS:
        raise ValueError(f"op: expected one of {tuple(OPS)}, got {name!r}")
    return OPS[name]


def case_of(row: Mapping[str, Any]) -> Case:
    """The case that a row of results is of.

    Raises:
        ValueError: its operation is not measured any more.
    """
    return operation(row["op"])(
        tuple(map(int, row["shape"].split("x"))),
        row["dtype"],
        row["layout"],
        row["mode"],
        row.get("study", ""),
    )


def implementation_of(row: Mapping[str, Any]) -> Implementation:
    """Who took a row of results; it may be a peer that is not measured any more."""
    name: str = row["implementation"]
    return IMPLEMENTATIONS.get(name, Implementation(name))


def workload(case: Case, device: torch.device) -> Workload[Any, Any]:
    """The case's inputs on `device`.

    Raises:
        RuntimeError: segunc_ops has no native kernels there.
    """
    return _WORKLOADS[type(case)](case, device)
