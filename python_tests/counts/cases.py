"""Batches to count, and how tables are compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_same_bits
from python_tests.support import IGNORED, LAYOUTS
from segunc_ops.functional import SegmentationCounts

TABLES = SegmentationCounts._fields
UNITS = 2.0**24

# Ragged against tiles of 32 and 128 pixels and units of 2048, with one class, one pixel, images of
# one pixel, more classes than a wide tile takes, one to three spatial axes.
SHAPES = ((2, 19, 65, 67), (1, 3, 2111), (300, 4), (1, 1, 3, 3), (2, 150, 9), (1, 5, 3, 4, 5))


def away_from_edges(confidence: Tensor, num_bins: int = 15) -> Tensor:
    """Where rounding does not decide the bin; the edge at 1 is none, as there is no bin beyond."""
    position = confidence.double() * num_bins
    return ((position - position.round()).abs() > 1e-3) | (confidence >= 1)


def random_batch(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str = "contiguous",
    probabilities: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits or probabilities, targets and uncertainties; NaN wherever nothing may be read."""
    values = 3 * torch.randn(shape, dtype=torch.float64)
    if probabilities:
        values = values.softmax(1)
    values = LAYOUTS[layout].make(values.to(dtype))
    pixels = (shape[0], *shape[2:])
    exact = values.double() if probabilities else values.double().softmax(1)
    # Half of the targets are right, or there would be no accuracy to speak of.
    target = torch.where(
        torch.rand(pixels) < 0.5, values.argmax(1), torch.randint(0, shape[1], pixels)
    )
    target[~away_from_edges(exact.amax(1)) | (torch.rand(pixels) < 0.2)] = IGNORED
    uncertainty = torch.exp(torch.empty(pixels).uniform_(-18, 5))
    uncertainty[torch.rand(pixels) < 0.1] = 0
    uncertainty[target == IGNORED] = math.nan
    if not layout.startswith("expanded"):
        values.copy_(values.masked_fill((target == IGNORED).unsqueeze(1), math.nan))
    return values, target, uncertainty


def count(
    values: Any, target: Tensor, uncertainty: Tensor | None = None, **options: Any
) -> tuple[SegmentationCounts, Tensor]:
    """Tables of one call, and the outcome."""
    tables = options.pop("tables", TABLES)
    num_classes = options.get("num_classes") or values.shape[1]
    counts = sf.empty_counts(
        num_classes,
        num_bins=options.pop("num_bins", 15),
        tables=tables,
        device=options.pop("device", None),
    )
    outcome = sf.accumulate_counts(
        counts, values, target, uncertainty, ignore_index=IGNORED, return_outcome=True, **options
    )
    assert outcome is not None
    return counts, outcome


def assert_counts_agree(
    found: tuple[SegmentationCounts, Tensor],
    wanted: tuple[SegmentationCounts, Tensor],
    compute: torch.dtype,
    name: str,
) -> None:
    """Equal integers; sums of what is rounded differ by what rounding explains."""
    assert_same_bits(found[1], wanted[1], name=f"{name}: outcome")
    for table, a, b in zip(TABLES, found[0], wanted[0], strict=True):
        if a is None or b is None:
            assert a is b, f"{name}: {table}"
            continue
        if table not in ("calibration", "scores"):
            assert_same_bits(a, b, name=f"{name}: {table}")
            continue
        rounded = [2] if table == "calibration" else [1, 2]
        exact = [i for i in range(a.shape[-1]) if i not in rounded]
        assert_same_bits(a[..., exact], b[..., exact], name=f"{name}: {table}")
        size = b[..., rounded].abs() + UNITS
        pixels = b[..., :1]
        allowed = 16 * torch.finfo(compute).eps * size * (1 + pixels.sqrt()) + pixels
        error = (a - b)[..., rounded].abs()
        assert (error <= allowed).all(), f"{name}: {table}: {error.tolist()} > {allowed.tolist()}"


def reference(*arguments: Any, **options: Any) -> tuple[SegmentationCounts, Tensor]:
    with segunc_ops.backend("reference"):
        return count(*arguments, **options)


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator of counts."""
    counts = sf.empty_counts(3)
    outcome = torch.zeros(2, 4, 4, dtype=torch.uint8)
    u, target = torch.rand(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    tables = (counts.confusion, None, counts.calibration, counts.histogram, None)
    states = torch.zeros(2, 5).long()
    return {
        "accumulate_counts_": [
            (torch.randn(2, 3, *size), target, u, -100, False, False, *counts, outcome)
            for size in ((4, 4), (3, 7))
        ],
        "accumulate_map_counts_": [(target, u, target, u, 3, -100, *tables)],
        "accumulate_class_sizes_": [(target, -100, torch.zeros(2, 3).long())],
        "accumulate_patch_counts_": [(outcome, u, torch.rand(2).double(), 4, 0.5, states)],
    }
