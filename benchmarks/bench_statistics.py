"""Predictive statistics of ten samples: all maps in one call, or streamed sample by sample."""

from __future__ import annotations

from collections.abc import Callable

from .cases import Case
from .measure import Measurement

OP = "predictive_statistics"


def test_predictive_statistics(
    case: Case, implementation: str, record: Callable[[Case, str], Measurement]
) -> None:
    record(case, implementation)
