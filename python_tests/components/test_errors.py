"""Bad arguments of components raise a message that names them."""

from __future__ import annotations

import pytest
import torch

import segunc_ops.functional as sf

LABELS = torch.zeros(2, 4, 5, dtype=torch.int64)
VALUES = torch.zeros(2, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sf.connected_components(VALUES), TypeError, "labels: .*integer.*float32"),
        (lambda: sf.connected_components([[1]]), TypeError, "labels: .*tensor, got list"),
        (lambda: sf.connected_components(LABELS[0]), ValueError, r"labels: .*got \(4, 5\)"),
        (
            lambda: sf.connected_components(LABELS, connectivity=6),
            ValueError,
            "connectivity: expected 4 or 8 .*, got 6",
        ),
        (
            lambda: sf.connected_components(LABELS[None], connectivity=8),
            ValueError,
            "connectivity: expected 6 or 26 .*, got 8",
        ),
        (
            lambda: sf.connected_components(LABELS, connectivity="full"),
            TypeError,
            "connectivity: expected an integer, got str",
        ),
        (
            lambda: sf.connected_components(LABELS, ignore_index=0.5),
            TypeError,
            "ignore_index: expected an integer, got float",
        ),
        (
            lambda: sf.connected_components(
                torch.zeros((), dtype=torch.int8).expand(1, 2**16, 2**15)
            ),
            ValueError,
            "labels: expected images of at most 2147483647 pixels, got 2147483648",
        ),
        (lambda: sf.component_mean(LABELS, LABELS), TypeError, "values: .*got torch.int64"),
        (
            lambda: sf.component_mean(VALUES[:1], LABELS),
            ValueError,
            r"values: expected the shape \(2, 4, 5\) of labels, got \(1, 4, 5\)",
        ),
        (
            lambda: sf.component_mean(VALUES.to("meta"), LABELS),
            ValueError,
            "values: expected device cpu like labels, got meta",
        ),
        (
            lambda: sf.component_mean(VALUES, LABELS, bound=0.0),
            ValueError,
            "bound: expected a finite number above 0, got 0.0",
        ),
        (
            lambda: sf.component_mean(VALUES, LABELS, bound="1"),
            TypeError,
            "bound: expected a number, got str",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
