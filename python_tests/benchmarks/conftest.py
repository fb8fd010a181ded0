"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import pytest

from benchmarks.families import cross_entropy, linear_cross_entropy, statistics


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes seconds a case and is exercised by the benchmarks themselves."""
    for module in (cross_entropy, linear_cross_entropy, statistics):
        monkeypatch.setattr(module, "compiled", lambda function, mode=None: function)
