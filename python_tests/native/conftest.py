"""A process runs the tests in one build of the kernels: SEGUNC_NATIVE_FLAVOR, else plain."""

from __future__ import annotations

from types import ModuleType

import pytest

from python_tests.native import harness


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """The test module of this process's build."""
    try:
        return harness.load_module(harness.FLAVOR)
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
