"""The options of the measurements, which `python -m benchmarks` sets."""

from __future__ import annotations

import pytest

from .case import SUITES


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("segunc_ops benchmarks")
    group.addoption("--suite", choices=SUITES, default="default", help="how many cases to run")
    group.addoption("--device", default="cpu", help="cpu or cuda")
    group.addoption("--budget", type=float, default=3.0, help="seconds of timed rounds per case")
