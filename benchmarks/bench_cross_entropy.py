"""Weighted cross-entropy, as U-CE uses it: forward, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable

from .cases import Case
from .measure import Measurement

OP = "cross_entropy"


def test_cross_entropy(
    case: Case, implementation: str, record: Callable[[Case, str], Measurement]
) -> None:
    record(case, implementation)
