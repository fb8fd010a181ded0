"""Gradients of whole networks, compared."""

from __future__ import annotations

from torch import Tensor, nn


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    result: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    """To so much of the largest number of all: float32's rounding, or float64's."""
    assert result.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        error = float((result[name] - value).abs().max())
        assert error <= tolerance * largest, name
