"""The same tests in the instrumented builds, each in a process of its own."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from python_tests.native.flavors import FOLDERS, HERE, start_pytest
from python_tests.native.harness import FLAVOR

INSTRUMENTED = ("race", "sanitize")
TIMEOUT_SECONDS = 400

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

    def attempts(self) -> list[dict[str, Any]]:
        """Of broken_operations.py."""
        attempts: list[dict[str, Any]] = json.loads(self.report.read_text())
        return attempts


def start(flavor: str, report: Path, which: str) -> Run:
    breaking = ["-p", "python_tests.native.broken_operations"]
    breaking += ["--break-operations", which, "--break-report", str(report)]
    arguments = ["-x", *(breaking if flavor == "race" else []), *FOLDERS]
    return Run(start_pytest(flavor, arguments), report)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """One per build, side by side."""
    report = tmp_path_factory.mktemp("broken") / "core.json"
    started = {flavor: start(flavor, report, "core") for flavor in INSTRUMENTED}
    yield started
    for run in started.values():
        run.process.kill()
        run.process.communicate()


@pytest.mark.parametrize("flavor", INSTRUMENTED)
def test_instrumented_build(runs: dict[str, Run], flavor: str) -> None:
    runs[flavor].check(flavor, TIMEOUT_SECONDS)


def harmless() -> dict[str, str]:
    """The operations whose fault nobody can notice, and why, of all families."""
    names: dict[str, str] = {}
    for path in HERE.glob("*/mutations.py"):
        module = importlib.import_module(f"python_tests.native.{path.parent.name}.mutations")
        names |= module.HARMLESS
    return names
