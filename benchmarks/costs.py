"""What a computation costs by its formula: bytes to move, and floating-point operations.

Of a case, C is the number of classes, P that of the pixels (of the target), S that of the samples,
L the bytes of the logits of all samples.

Operations are additions, multiplications, comparisons and divisions of our algorithm, one each, a
fused multiply-add being two. An exponential and a logarithm are the polynomials of
`csrc/math/exp_log.h`; what they do with integers is not counted.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cases import Case

# Input channels of the 1x1 convolution before `linear_cross_entropy`.
FEATURES = 256
TARGET, WEIGHT = 8, 4  # bytes of an int64 target and of an fp32 pixel weight
MAPS = 8 + 5 * 4  # of an int64 prediction and five fp32 maps
_ACCUMULATED = 4  # of what is gathered in fp32

# With sixteen lanes, which takes the fewest: rounding of x / ln 2: 3, the remainder: 4, a cubic and
# a square: 5, times a power of two that is looked up: 2.
EXP = 14
# The mantissa less one and its square: 2, eight more terms: 16, what follows: 9.
LOG = 27
# Maximum, difference, exponential and sum over the classes.
_SOFTMAX_SUM = 1 + 1 + EXP + 1


def must_move(case: Case) -> int:
    """Bytes that any implementation reads and writes: each input once, each output once."""
    pixels, logits = case.pixels, case.logits_bytes
    if case.op == "component_mean":
        return pixels + 2 * logits  # the uint8 label and the value in, the mean out
    if case.op.endswith("predictive_statistics"):
        return logits + pixels * MAPS
    if case.op.endswith("accumulate_counts"):
        return logits + pixels * TARGET  # tables stay in the cache
    passes = 2 if case.is_training else 1  # the gradient is written
    if case.op == "linear_cross_entropy":
        features = pixels * FEATURES * case.itemsize
        matrix = FEATURES * case.num_classes * case.itemsize
        return passes * (features + matrix) + pixels * TARGET
    return passes * logits + pixels * (TARGET + WEIGHT)


def kernel_moves(case: Case) -> int:
    """Bytes between memory and our CPU kernels, if what a tile needs stays in the cache.

    fp16 losses recompute their gradient and read everything twice. Interpolated logits are read a
    band of rows at a time and one row more; gradients of a row that two bands share, and of all
    rows unless they are fp32 and contiguous, wait in fp32 scratch memory.
    """
    pixels, logits = case.pixels, case.logits_bytes
    if case.op == "component_mean":
        return must_move(case) + 2 * pixels // 8  # a bit a pixel, where a run starts, out and in
    if case.op not in ("cross_entropy", "upsampled_cross_entropy"):
        return must_move(case)
    reads = 2 if case.is_training and case.dtype == "fp16" else 1
    gradient = logits if case.is_training else 0
    around = reads * pixels * (TARGET + WEIGHT) + gradient
    if case.op == "cross_entropy":
        return reads * logits + around
    rows = min(max(case.shape[-4] * case.shape[-2] // 32, 1), 8)
    scratch = 0
    if case.is_training:
        gathered = 2 * prod(case.shape) * _ACCUMULATED  # out and in again
        buffered = case.dtype != "fp32" or case.layout != "nchw"
        scratch = gathered // rows + (gathered if buffered else 0)
    return reads * (logits + logits // rows) + around + scratch


def _state(case: Case) -> int:
    """Bytes of an accumulator's state: mean, squared deviations and entropy."""
    return case.pixels * (2 * case.num_classes + 1) * _ACCUMULATED


def streamed_moves(case: Case) -> int:
    """Bytes that `PredictiveAccumulator` moves: its state once in and out for every sample."""
    samples, pixels = case.num_samples, case.pixels
    state = _state(case)
    updates = (2 * samples - 1) * state  # the first does not read it
    final = pixels * (case.num_classes + 2) * _ACCUMULATED  # one squared deviation of a pixel
    return case.logits_bytes + updates + final + pixels * MAPS


def cleared(case: Case) -> int:
    """Bytes of fresh pages that the system clears for large results before they are written."""
    if case.op == "component_mean":
        return case.logits_bytes
    if case.op.endswith("predictive_statistics"):
        return case.pixels * MAPS
    return case.logits_bytes if case.is_training else 0


def streamed_cleared(case: Case) -> int:
    """The same of a `PredictiveAccumulator`, whose state is fresh as well."""
    return cleared(case) + _state(case)


def operations(case: Case) -> int:
    """Floating-point operations of our algorithm.

    0 for component means, which compare and count, and for `linear_cross_entropy`, whose
    convolution is torch's.
    """
    pixels, values = case.pixels, case.pixels * case.num_classes
    if case.op in ("component_mean", "linear_cross_entropy"):
        return 0
    # Two enlarged rows are blended (3); rows are enlarged (3) once for every source row.
    enlarged = case.enlargement > 1
    blended = case.num_samples * (values * 3 + values * 3 // case.enlargement) if enlarged else 0
    if case.op.endswith("accumulate_counts"):
        # The sum's squares beside it; of a pixel an exponential, its division and its bin.
        return blended + values * (_SOFTMAX_SUM + 2) + pixels * (EXP + 4)
    if case.op.endswith("predictive_statistics"):
        # Of every sample also sum d e^d, the probability and its mean; then entropy and argmax of
        # the mean. A pixel of a sample: its entropy and its squared deviation.
        of_samples = case.num_samples * (values * (_SOFTMAX_SUM + 4) + pixels * (LOG + 8))
        return blended + of_samples + values * (LOG + 4) + pixels * 6
    # A pixel: the logarithm of its sum, loss, weight and total; with a gradient its factors.
    total = blended + values * _SOFTMAX_SUM + pixels * (LOG + 5)
    if case.is_training:
        total += values + pixels * 6
    if case.is_training and enlarged:
        # Both rows get their gradients (4), which shrink (4) once for every source row.
        total += values * 4 + values * 4 // case.enlargement
    return total
