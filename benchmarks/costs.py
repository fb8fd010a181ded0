"""What the formulas of several families count alike: bytes of a pixel, and operations.

Operations are additions, multiplications, comparisons and divisions of our algorithm, one each, a
fused multiply-add being two. An exponential and a logarithm are the polynomials of
`csrc/math/exp_log.h`; what they do with integers is not counted.
"""

from __future__ import annotations

from .case import Case

TARGET, WEIGHT = 8, 4  # bytes of an int64 target and of an fp32 pixel weight
ACCUMULATED = 4  # of what is gathered in fp32

# With sixteen lanes, which takes the fewest: rounding of x / ln 2: 3, the remainder: 4, a cubic and
# a square: 5, times a power of two that is looked up: 2.
EXP = 14
# The mantissa less one and its square: 2, eight more terms: 16, what follows: 9.
LOG = 27
# Maximum, difference, exponential and sum over the classes.
SOFTMAX_SUM = 1 + 1 + EXP + 1


def blending(case: Case) -> int:
    """Operations that interpolate the logits; 0 where they have the target's size."""
    if case.enlargement == 1:
        return 0
    # Two enlarged rows are blended (3); rows are enlarged (3) once for every source row.
    values = case.pixels * case.num_classes
    return case.num_samples * (values * 3 + values * 3 // case.enlargement)
