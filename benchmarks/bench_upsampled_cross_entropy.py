"""Weighted cross-entropy of logits at a quarter of the target's height and width."""

from __future__ import annotations

from collections.abc import Callable

from .cases import Case
from .measure import Measurement

OP = "upsampled_cross_entropy"


def test_upsampled_cross_entropy(
    case: Case, implementation: str, record: Callable[[Case, str], Measurement]
) -> None:
    record(case, implementation)
