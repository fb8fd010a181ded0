"""A pytest plugin of the native tests: do they notice when one operation of a kernel is broken?

Tests are watched for the barriers, warp operations, atomics and relaxed accesses of the kernels
that they run. When all have passed, one operation after the other is broken (host_execution.h says
how), and the tests that reach it run again until one fails: by turns the quickest of them and the
one that runs it most often. Operations are found where they run, so a new kernel's are broken
without anyone listing them.

An attempt is a process, forked from this one: what it breaks may crash it, and nothing has to be
imported or collected again.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import multiprocessing
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from python_tests.native import harness

TIMEOUT_SECONDS = 300  # of an attempt
NOTICED, UNNOTICED = 10, 0  # exit statuses of an attempt
CSRC = Path(__file__).resolve().parents[2] / "csrc"


@dataclass(frozen=True)
class Operation:
    """One call in the kernels' sources, as one family's tests reach it.

    Attributes:
        family: the tests' folder.
        name: file, function, kind and number among those of the function, in the order of lines.
    """

    family: str
    name: str
    kind: str
    file: str  # relative to csrc
    function: str
    line: int


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--break-report", type=Path, help="break operations after the tests; JSON")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--break-report"):
        config.pluginmanager.register(Breaker(config), "breaker")


class Breaker:
    def __init__(self, config: pytest.Config) -> None:
        self._host = harness.load_module(harness.FLAVOR)
        self._report: Path = config.getoption("--break-report")
        # By family and place: the tests that reach it, how often and how long each takes.
        self._reached: dict[tuple[str, str, str, str, int], dict[pytest.Item, tuple[int, float]]]
        self._reached = defaultdict(dict)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if not (item.path.parent / "mutations.py").exists():  # tests of no kernels
            yield
            return
        self._host.record_operations()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        for kind, file, function, line, runs in self._host.recorded_operations():
            # The compiler's path may be relative to a folder that we do not know.
            parts = Path(os.path.normpath(file)).parts
            if CSRC.name in parts:
                in_csrc = Path(*parts[parts.index(CSRC.name) + 1 :])
                template = function.split("<")[0]
                place = (item.path.parent.name, kind, str(in_csrc), template, line)
                before, _ = self._reached[place].get(item, (0, 0.0))
                self._reached[place][item] = before + runs, seconds

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[object]:
        result = yield
        if session.testsfailed == 0:
            self._break_operations()
        return result

    def _operations(self) -> dict[Operation, list[pytest.Item]]:
        """What was reached, with the tests that did, in the order of an attempt."""
        number: Counter[tuple[str, ...]] = Counter()
        operations = {}
        for place in sorted(self._reached):
            family, kind, file, function, line = place
            number[place[:-1]] += 1
            name = f"{file}: {function}, {kind} {number[place[:-1]]}"
            operation = Operation(family, name, kind, file, function, line)
            operations[operation] = by_turns(self._reached[place])
        return operations

    def _break_operations(self) -> None:
        operations = self._operations()
        rows = {
            operation: {**asdict(operation), "tests": len(tests)}
            for operation, tests in operations.items()
        }
        if not operations:
            raise RuntimeError("the tests run no operation of a kernel")
        control = list(dict.fromkeys(tests[0] for tests in operations.values()))
        waiting: list[Operation | None] = [None, *operations]
        running: dict[BaseProcess, tuple[Operation | None, float]] = {}
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                operation = waiting.pop(0)
                tests = control if operation is None else operations[operation]
                running[_start(self._host, operation, tests)] = operation, time.perf_counter()
            wait([process.sentinel for process in running], timeout=1)
            for process, (operation, start) in list(running.items()):
                seconds = time.perf_counter() - start
                if process.is_alive() and seconds < TIMEOUT_SECONDS:
                    continue
                process.kill()
                process.join()
                del running[process]
                if seconds >= TIMEOUT_SECONDS:
                    raise RuntimeError(f"no end within {TIMEOUT_SECONDS} s: {operation}")
                noticed = _noticed(process.exitcode)
                if operation is not None:
                    rows[operation] |= {"noticed": noticed, "seconds": round(seconds, 1)}
                elif noticed:
                    raise RuntimeError("a test fails when it runs again, with nothing broken")
        self._report.write_text(json.dumps(list(rows.values()), indent=1))


def by_turns(tests: dict[pytest.Item, tuple[int, float]]) -> list[pytest.Item]:
    """tests: how often each runs an operation, and how long it takes."""
    quickest = sorted(tests, key=lambda test: tests[test][1])
    busiest = sorted(tests, key=lambda test: -tests[test][0])
    return list(dict.fromkeys(chain.from_iterable(zip(quickest, busiest, strict=True))))


def _noticed(status: int | None) -> bool:
    """By an attempt's exit status, which is negative after a crash."""
    if status not in (NOTICED, UNNOTICED) and (status is None or status > 0):
        raise RuntimeError(f"an attempt ended with status {status}")
    return status != UNNOTICED


def _start(host: object, operation: Operation | None, tests: list[pytest.Item]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(
        target=_attempt, args=(host, operation, tests)
    )
    process.start()
    return process


def _attempt(host: object, operation: Operation | None, tests: list[pytest.Item]) -> None:
    faulthandler.disable()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    if operation is not None:
        host.inject_fault(operation.kind, operation.file, operation.line)
    for test in tests:
        if any(report.failed for report in runtestprotocol(test, log=False, nextitem=None)):
            os._exit(NOTICED)
    os._exit(UNNOTICED)


# ---- What the report has to say

# Calls in the sources of kernels.
_CALL = re.compile(
    r"\b(barrier|barrier_count|warp_sync|ballot|match_any|shuffle(_up|_down|_xor)?|atomic_\w+"
    r"|(load|store)_relaxed|store_host_flag)\(.*?;",
    re.DOTALL,
)


def _calls() -> Iterator[tuple[str, range]]:
    """File and lines of each."""
    vocabulary = {"device.h", "gpu.h", "host.h"}
    shared = [p for p in CSRC.glob("common/device/*") if p.name not in vocabulary]
    for path in (*shared, *CSRC.glob("*/cuda/*")):
        text = re.sub(r"//.*", "", path.read_text())
        for call in _CALL.finditer(text):
            first = text.count("\n", 0, call.start()) + 1
            yield str(path.relative_to(CSRC)), range(first, first + call[0].count("\n") + 1)


def unreached(operations: list[dict[str, Any]]) -> list[str]:
    """Operations in the kernels' sources that no test runs."""
    reached = {(operation["file"], operation["line"]) for operation in operations}
    return [
        f"{file}:{lines[0]}"
        for file, lines in _calls()
        if not any((file, line) in reached for line in lines)
    ]


def _harmless(family: str) -> dict[str, str]:
    """The operations whose fault a family's tests cannot notice, by name, and why."""
    module = importlib.import_module(f"python_tests.native.{family}.mutations")
    names: dict[str, str] = module.HARMLESS
    return names


def check_noticed(operations: list[dict[str, Any]]) -> None:
    """Fails unless what broke was noticed, but for what its family calls harmless."""
    assert operations, "no operation was broken"
    for family in {operation["family"] for operation in operations}:
        noticed = {o["name"]: o["noticed"] for o in operations if o["family"] == family}
        known = _harmless(family)
        missed = [name for name in noticed if not noticed[name] and name not in known]
        assert not missed, f"{family}'s tests do not notice that these break: {missed}"
        stale = [name for name in known if noticed.get(name, True)]
        assert not stale, f"called harmless by {family}, but noticed or gone: {stale}"
