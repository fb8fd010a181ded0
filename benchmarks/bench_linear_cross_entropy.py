"""Cross-entropy of the logits of a 1x1 convolution, beside fused linear cross-entropies."""

from __future__ import annotations

from collections.abc import Callable

from .cases import Case
from .measure import Measurement

OP = "linear_cross_entropy"


def test_linear_cross_entropy(
    case: Case, implementation: str, record: Callable[[Case, str], Measurement]
) -> None:
    record(case, implementation)
