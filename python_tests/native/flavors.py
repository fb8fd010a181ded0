"""Starts pytest in another build of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The tests that every build runs, a folder each.
FOLDERS = sorted(str(path.parent) for path in HERE.glob("*/binding.cpp"))


def _library(name: str) -> str:
    """The path of one of the compiler's runtime libraries."""
    answer = subprocess.run(
        [os.environ.get("CXX", "c++"), f"-print-file-name={name}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip()


def environment(flavor: str) -> dict[str, str]:
    """The variables under which Python can load a build's module."""
    variables = {**os.environ, "SEGUNC_NATIVE_FLAVOR": flavor}
    if flavor == "sanitize":
        # A sanitizer has to be loaded before what it watches. Python leaks on purpose.
        variables["LD_PRELOAD"] = f"{_library('libasan.so')} {_library('libubsan.so')}"
        variables["ASAN_OPTIONS"] = "detect_leaks=0"
        variables["UBSAN_OPTIONS"] = "print_stacktrace=1"
        variables["PYTHONMALLOC"] = "malloc"
    return variables


def start_pytest(
    flavor: str, arguments: Sequence[str], directory: Path | None = None
) -> subprocess.Popen[str]:
    """Runs tests of this folder in a process of their own: a broken kernel may end it.

    Output is not captured by pytest, which would keep a sanitizer's last words to itself.

    Args:
        flavor: the build.
        arguments: pytest's.
        directory: where the build's module lies, if not where this process finds it.
    """
    variables = environment(flavor)
    if directory is not None:
        variables["SEGUNC_NATIVE_DIR"] = str(directory)
    # Nothing here needs torch or Hypothesis, whose imports would take most of a short run's time.
    lean = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", f"--confcutdir={HERE}"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-s", *lean, *arguments],
        cwd=HERE.parents[1],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
