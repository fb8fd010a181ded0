"""The calibration error of a batch: the counts behind it, alone and with all other metrics'."""

from __future__ import annotations

from collections.abc import Callable

from .cases import Case
from .measure import Measurement

OP = "accumulate_counts"


def test_accumulate_counts(
    case: Case, implementation: str, record: Callable[[Case, str], Measurement]
) -> None:
    record(case, implementation)
