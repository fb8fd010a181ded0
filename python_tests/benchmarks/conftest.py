"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import pytest

from benchmarks.families import (
    cross_entropy,
    dice,
    label_uncertainty,
    linear_cross_entropy,
    statistics,
    variations,
)


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes seconds a case and is exercised by the benchmarks themselves."""
    for module in (
        *(cross_entropy, dice, label_uncertainty),
        *(linear_cross_entropy, statistics, variations),
    ):
        monkeypatch.setattr(module, "compiled", lambda function, mode=None: function)
