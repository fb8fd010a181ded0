"""A process runs the tests in one build of the kernels: SEGUNC_NATIVE_FLAVOR, else plain."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from python_tests.native import harness


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fewer-dtypes", action="store_true", help="the build lacks kernels of some")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What has no kernel is not tested in a build that lacks some."""
    try:
        yield
    except RuntimeError as error:
        if item.config.getoption("--fewer-dtypes", False) and "of this dtype" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """The test module of this process's build."""
    try:
        return harness.load_module(harness.FLAVOR)
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
