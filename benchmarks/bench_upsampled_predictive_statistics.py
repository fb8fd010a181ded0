"""Predictive statistics of ten samples whose logits are interpolated on the way."""

from __future__ import annotations

from collections.abc import Callable

from .cases import Case
from .measure import Measurement

OP = "upsampled_predictive_statistics"


def test_upsampled_predictive_statistics(
    case: Case, implementation: str, record: Callable[[Case, str], Measurement]
) -> None:
    record(case, implementation)
