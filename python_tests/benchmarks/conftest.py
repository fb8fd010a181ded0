"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import pytest

from benchmarks import cross_entropy, linear, statistics


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes seconds a case and is exercised by the benchmarks themselves."""
    for module in (cross_entropy, linear, statistics):
        monkeypatch.setattr(module, "compiled", lambda function, mode=None: function)
