"""Which workload measures which operation."""

from __future__ import annotations

import torch

from .cases import Case
from .families.components import ComponentMeanWorkload
from .families.counts import CountsWorkload
from .families.cross_entropy import CrossEntropyWorkload
from .families.linear_cross_entropy import LinearCrossEntropyWorkload
from .families.statistics import StatisticsWorkload
from .workload import Workload

_WORKLOADS: dict[str, type[Workload]] = {
    "cross_entropy": CrossEntropyWorkload,
    "upsampled_cross_entropy": CrossEntropyWorkload,
    "linear_cross_entropy": LinearCrossEntropyWorkload,
    "predictive_statistics": StatisticsWorkload,
    "upsampled_predictive_statistics": StatisticsWorkload,
    "component_mean": ComponentMeanWorkload,
    "accumulate_counts": CountsWorkload,
    "upsampled_accumulate_counts": CountsWorkload,
}


def workload(case: Case, device: torch.device) -> Workload:
    """The case's inputs on `device`.

    Raises:
        ValueError: no workload for the case's operation.
        RuntimeError: segunc_ops has no native kernels there.
    """
    if case.op not in _WORKLOADS:
        raise ValueError(f"op: expected one of {tuple(_WORKLOADS)}, got {case.op!r}")
    return _WORKLOADS[case.op](case, device)
