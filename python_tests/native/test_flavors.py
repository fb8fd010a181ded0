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

TIMEOUT_SECONDS = 1800

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.skipif(FLAVOR != "plain", reason="started by the plain build's tests"),
]


@dataclass
class Run:
    """Of all tests in one build; the race build's goes on with broken operations."""

    process: subprocess.Popen[str]
    report: Path

    def check(self, flavor: str) -> None:
        output, _ = self.process.communicate(timeout=TIMEOUT_SECONDS)
        if self.process.returncode != 0:
            pytest.fail(f"the tests fail in the {flavor} build:\n{output[-6000:]}", pytrace=False)

    def operations(self) -> list[dict[str, Any]]:
        """Those that the tests reach, and whether breaking one was noticed."""
        if not self.report.exists():
            pytest.fail("the race build's tests have failed", pytrace=False)
        operations: list[dict[str, Any]] = json.loads(self.report.read_text())
        return operations


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    report = tmp_path_factory.mktemp("broken") / "operations.json"
    breaking = ["-p", "python_tests.native.broken_operations", "--break-report", str(report)]
    run = Run(start_pytest("race", ["-x", *breaking, *FOLDERS]), report)
    yield run
    run.process.kill()
    run.process.communicate()


def test_sanitize_build(tmp_path: Path) -> None:
    Run(start_pytest("sanitize", ["-x", *FOLDERS]), tmp_path).check("sanitize")


def test_race_build(race: Run) -> None:
    race.check("race")


# ---- Operations of kernels, broken one at a time


def test_every_operation_is_reached(race: Run) -> None:
    race.check("race")
    missed = unreached(race.operations())
    assert not missed, f"no test runs these barriers, warp operations and atomics: {missed}"


def test_broken_operations_are_noticed(race: Run) -> None:
    race.check("race")
    check_noticed(race.operations())
