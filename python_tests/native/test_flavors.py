"""The same tests in the instrumented builds, each in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from python_tests.native.flavors import start_pytest
from python_tests.native.harness import FLAVOR

INSTRUMENTED = ("race", "sanitize")
TESTS = (
    "test_host_execution.py",
    "test_cuda_kernels.py",
    "test_component_kernels.py",
    "test_interpolated_kernels.py",
    "test_upsampling_kernels.py",
)
TIMEOUT_SECONDS = 400

pytestmark = pytest.mark.skipif(FLAVOR != "plain", reason="started by the plain build's tests")


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One per build, side by side."""
    started = {flavor: start_pytest(flavor, ["-x", *TESTS]) for flavor in INSTRUMENTED}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("flavor", INSTRUMENTED)
def test_instrumented_build(processes: dict[str, subprocess.Popen[str]], flavor: str) -> None:
    process = processes[flavor]
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    if process.returncode != 0:
        pytest.fail(f"the tests fail in the {flavor} build:\n{output[-6000:]}", pytrace=False)
