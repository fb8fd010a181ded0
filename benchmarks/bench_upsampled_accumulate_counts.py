"""The counting pass of the metrics, the logits being interpolated on the way."""

from __future__ import annotations

from collections.abc import Callable

from .cases import Case
from .measure import Measurement

OP = "upsampled_accumulate_counts"


def test_upsampled_accumulate_counts(
    case: Case, implementation: str, record: Callable[[Case, str], Measurement]
) -> None:
    record(case, implementation)
