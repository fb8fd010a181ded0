"""A pytest plugin of a mutant's tests: the most telling first, none without end.

It writes down which test runs, since what a mutant breaks may end the process.
"""

from __future__ import annotations

import json
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from python_tests.native.harness import FLAVOR

LIMIT_SECONDS = 60  # of a test; a hundred times what most take
LIMIT_BYTES = 16 << 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--telling", type=Path, help="JSON: how many mutants each test has noticed")
    parser.addoption("--running", type=Path, help="where to write the name of the test that runs")


def pytest_configure(config: pytest.Config) -> None:
    if FLAVOR != "sanitize":  # which maps terabytes
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    noticed = Counter(json.loads(config.getoption("--telling").read_text()))
    items.sort(key=lambda item: -noticed[item.nodeid])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.getoption("--running").write_text(item.nodeid)
    signal.alarm(LIMIT_SECONDS)  # ends the process
    result = yield
    signal.alarm(0)
    return result
