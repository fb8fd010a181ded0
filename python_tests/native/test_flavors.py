"""The same tests in the instrumented builds, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from python_tests.native.broken_operations import check_noticed, unreached
from python_tests.native.flavors import FOLDERS, start_pytest
from python_tests.native.harness import FLAVOR

TIMEOUT_SECONDS = 1200
THOROUGH_TIMEOUT_SECONDS = 1800

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FLAVOR != "plain", reason="started by the plain build's tests"),
]


@dataclass
class Run:
    """Of all tests in one build; the race build's goes on with broken operations."""

    process: subprocess.Popen[str]
    report: Path

    def check(self, flavor: str, timeout: int) -> None:
        output, _ = self.process.communicate(timeout=timeout)
        if self.process.returncode != 0:
            pytest.fail(f"the tests fail in the {flavor} build:\n{output[-6000:]}", pytrace=False)

    def operations(self) -> list[dict[str, Any]]:
        """Those that the tests reach, and whether breaking one was noticed: that is None for those
        not broken."""
        if not self.report.exists():
            pytest.fail("the race build's tests have failed", pytrace=False)
        operations: list[dict[str, Any]] = json.loads(self.report.read_text())
        return operations


def start(flavor: str, report: Path, which: str) -> Run:
    breaking = ["-p", "python_tests.native.broken_operations"]
    breaking += ["--break-operations", which, "--break-report", str(report)]
    return Run(
        start_pytest(flavor, ["-x", *(breaking if flavor == "race" else []), *FOLDERS]), report
    )


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = start("race", tmp_path_factory.mktemp("broken") / "operations.json", "core")
    yield run
    run.process.kill()
    run.process.communicate()


def test_race_build(race: Run) -> None:
    race.check("race", TIMEOUT_SECONDS)


@pytest.mark.thorough
def test_sanitize_build(tmp_path: Path) -> None:
    start("sanitize", tmp_path / "operations.json", "core").check("sanitize", TIMEOUT_SECONDS)


# ---- Operations of kernels, broken one at a time


def test_every_operation_is_reached(race: Run) -> None:
    race.check("race", TIMEOUT_SECONDS)
    missed = unreached(race.operations())
    assert not missed, f"no test runs these barriers, warp operations and atomics: {missed}"


def test_broken_operations_are_noticed(race: Run) -> None:
    """A few of every family."""
    race.check("race", TIMEOUT_SECONDS)
    check_noticed(race.operations())


@pytest.mark.thorough
def test_all_broken_operations_are_noticed(tmp_path: Path) -> None:
    run = start("race", tmp_path / "operations.json", "all")
    run.check("race", THOROUGH_TIMEOUT_SECONDS)
    check_noticed(run.operations())
