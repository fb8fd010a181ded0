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
THOROUGH_TIMEOUT_SECONDS = 900
CSRC = HERE.parents[1] / "csrc"

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
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """One per build, side by side."""
    report = tmp_path_factory.mktemp("broken") / "operations.json"
    started = {flavor: start(flavor, report, "core") for flavor in INSTRUMENTED}
    yield started
    for run in started.values():
        run.process.kill()
        run.process.communicate()


@pytest.mark.parametrize("flavor", INSTRUMENTED)
def test_instrumented_build(runs: dict[str, Run], flavor: str) -> None:
    runs[flavor].check(flavor, TIMEOUT_SECONDS)


# ---- Operations of kernels, broken one at a time: broken_operations.py

# Calls in the sources of kernels.
OPERATION = re.compile(
    r"\b(barrier|barrier_count|warp_sync|ballot|match_any|shuffle(_up|_down|_xor)?|atomic_\w+"
    r"|(load|store)_relaxed|store_host_flag)\(.*?;",
    re.DOTALL,
)


def operations_in_sources() -> Iterator[tuple[str, range]]:
    """File and lines of every call of one."""
    vocabulary = {"device.h", "gpu.h", "host.h"}
    shared = [p for p in CSRC.glob("common/device/*.h") if p.name not in vocabulary]
    for path in (*shared, *CSRC.glob("*/cuda/*.h"), *CSRC.glob("*/cuda/*.cu")):
        text = re.sub(r"//.*", "", path.read_text())
        for call in OPERATION.finditer(text):
            first = text.count("\n", 0, call.start()) + 1
            yield str(path.relative_to(CSRC)), range(first, first + call[0].count("\n") + 1)


def harmless(family: str) -> dict[str, str]:
    """The operations whose fault a family's tests cannot notice, by name, and why."""
    if not (HERE / family / "mutations.py").exists():
        return {}
    module = importlib.import_module(f"python_tests.native.{family}.mutations")
    names: dict[str, str] = module.HARMLESS
    return names


def check_operations(operations: list[dict[str, Any]]) -> None:
    assert any(operation["noticed"] for operation in operations), "no operation was broken"
    for family in {operation["family"] for operation in operations}:
        noticed = {o["name"]: o["noticed"] for o in operations if o["family"] == family}
        known = harmless(family)
        missed = [name for name in noticed if noticed[name] is False and name not in known]
        assert not missed, f"{family}'s tests do not notice that these break: {missed}"
        stale = [name for name in known if noticed.get(name, True)]
        assert not stale, f"called harmless by {family}, but noticed or gone: {stale}"


def test_every_operation_is_reached(runs: dict[str, Run]) -> None:
    runs["race"].check("race", TIMEOUT_SECONDS)
    reached = {(o["file"], o["line"]) for o in runs["race"].operations()}
    missed = [
        f"{file}:{lines[0]}"
        for file, lines in operations_in_sources()
        if not any((file, line) in reached for line in lines)
    ]
    assert not missed, f"no test runs these barriers, warp operations and atomics: {missed}"


def test_broken_operations_are_noticed(runs: dict[str, Run]) -> None:
    """A few of every family."""
    runs["race"].check("race", TIMEOUT_SECONDS)
    check_operations(runs["race"].operations())


@pytest.mark.thorough
def test_all_broken_operations_are_noticed(tmp_path: Path) -> None:
    run = start("race", tmp_path / "operations.json", "all")
    run.check("race", THOROUGH_TIMEOUT_SECONDS)
    check_operations(run.operations())
