"""The wheel for 64-bit Arm, made and tried on another machine: `make wheel-aarch64`.

Debian's cross compiler makes its CPU library; there is no CUDA library in it. It goes to
dist/release and is checked as `make release` checks. Then user-mode emulation runs it in
build/aarch64: Debian's Python for arm64, unpacked there and not installed, the oldest torch, the
smoke test and the tests of some functions. It needs no root, but the packages of `PACKAGES`.

An environment that is there is used again. What it downloads is 0.3 GB.

Exit status: 0 the wheel may be published, or `--if-possible` and this machine cannot make it; 1 it
may not.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import compatibility
from .release import CPU_LIBRARY, RELEASE, ReleaseError, check_wheel, only, tag_wheel, version_of
from .steps import REPOSITORY, run

PACKAGES = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
    "apt-get": "apt",
    "dpkg": "dpkg",
}
"""The programs that are needed, and which packages of Debian have them."""

_FOLDER = REPOSITORY / "build" / "aarch64"
_DEBIAN_PACKAGES = ("python3", "libstdc++6")
# The oldest that is supported. PyPI's wheel of it for this processor needs no CUDA.
_TORCH = "torch==2.10.*"
# What `_TESTS` import, a part of the extra `test`.
_REQUIREMENTS = (
    *("connected-components-3d", "expecttest", "numpy", "pytest", "pytest-xdist", "scikit-image"),
    *("scipy", "setuptools"),
)
_TESTS = (
    "python_tests/components/test_functional.py",
    "python_tests/cross_entropy/test_functional.py",
    "python_tests/statistics/test_functional.py",
)
_MARKS = "not cuda and not slow and not thorough"
# Emulated, what addresses more than 2^31 elements takes many minutes.
_SELECTED = "not beyond_32_bits and not 2_to_the_31"


def missing_packages(which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """The packages of Debian whose programs are not found."""
    return [package for program, package in PACKAGES.items() if which(program) is None]


def apt_get(folder: Path) -> list[str]:
    """The command of an apt-get for arm64 whose state is in this folder: nothing is installed."""
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Debug::NoLocking": "true",
        "Dir::Cache": folder / "cache",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
    }
    settings = [f"--option={name}={value}" for name, value in options.items()]
    return ["apt-get", "--quiet=2", *settings]


def emulator(folder: Path, interpreter: Path) -> str:
    """A script that runs this interpreter on the libraries of a folder."""
    return f'#!/bin/sh\nexec qemu-aarch64 -L "{folder}" "{interpreter}" "$@"\n'


def build() -> Path:
    """The tagged wheel, made anew in dist/release.

    Raises:
        ReleaseError: setuptools or auditwheel left several, or none.
    """
    folder = _FOLDER / "wheel"
    # setuptools would also pack what it has left there from sources that are no more.
    for stale in (folder, *(REPOSITORY / "build").glob("lib.linux-aarch64-*")):
        shutil.rmtree(stale, ignore_errors=True)
    run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", folder, "."),
        ],
        _PYTHON_HOST_PLATFORM="linux-aarch64",
        CMAKE_TOOLCHAIN_FILE=str(REPOSITORY / "cmake" / "aarch64.cmake"),
        SEGUNC_OPS_CPU_ISAS="all",
        SEGUNC_OPS_CUDA="0",
    )
    tag_wheel(only(folder, "*.whl"))
    return only(RELEASE, "*_aarch64.whl")


def install_python() -> Path:
    """The emulated interpreter of a virtual environment, made unless it is there."""
    python, root, venv = (_FOLDER / name for name in ("python", "debian", "venv"))
    if python.exists():
        return python
    apt = _FOLDER / "apt"
    for stale in (apt, root, venv):
        shutil.rmtree(stale, ignore_errors=True)
    archives = apt / "cache" / "archives"
    for folder in (archives / "partial", apt / "state" / "lists" / "partial", root):
        folder.mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    run([*apt_get(apt), "update"])
    install = ("install", "--yes", "--download-only", "--no-install-recommends")
    run([*apt_get(apt), *install, *_DEBIAN_PACKAGES])
    for package in sorted(archives.glob("*.deb")):
        run(["dpkg", "--extract", package, root])
    if not (root / "lib").exists():  # of Debian 13 and later, which makes it when it is installed
        (root / "lib").symlink_to("usr/lib")
    system = root / "usr" / "bin" / "python3"
    run(["qemu-aarch64", "-L", root, system, "-m", "venv", "--without-pip", venv])
    python.write_text(emulator(root, venv / "bin" / "python"))
    python.chmod(0o755)
    return python


def _pip(python: Path, *arguments: str | Path) -> None:
    """Lets the pip of this interpreter install for another."""
    pinned = _FOLDER / "constraints.txt"
    every = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    pinned.write_text(compatibility.constraints(every, []), encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "-c", pinned)
    run([*pip, *arguments])


def try_wheel(wheel: Path) -> None:
    """Runs the smoke test and tests of functions, away from the sources."""
    python, tests = install_python(), _FOLDER / "tests"
    _pip(python, _TORCH, *_REQUIREMENTS)
    _pip(python, "--no-deps", "--force-reinstall", wheel)
    compatibility.stage(tests)
    run([python, REPOSITORY / "cmake" / "smoke_test.py"], tests)
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    selected = ("-m", _MARKS, "-k", _SELECTED)
    # Workers are emulated, too: sys.executable would not run here by itself.
    workers = ("--dist=loadfile", f"--tx={os.cpu_count()}*popen//python={python}")
    run([*pytest, *selected, *workers, *_TESTS], tests, OMP_NUM_THREADS="1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the wheel for 64-bit Arm and tries it under emulation."""
    parser = argparse.ArgumentParser(prog="python -m tools.aarch64", description=main.__doc__)
    parser.add_argument(
        "--if-possible", action="store_true", help="a machine that cannot make it is no failure"
    )
    options = parser.parse_args(arguments)
    why_not = None
    if platform.machine() == "aarch64":
        why_not = "this machine is one, and `make release` makes its wheel"
    elif missing := missing_packages():
        why_not = f"it needs Debian's packages {', '.join(missing)}"
    if why_not:
        print(f"aarch64: no wheel is made: {why_not}", file=sys.stderr)
        return 0 if options.if_possible else 1
    try:
        version = version_of()
        print("aarch64: the wheel, without CUDA ...", flush=True)
        wheel = build()
        check_wheel(wheel, version, [CPU_LIBRARY])
        print("aarch64: the wheel under emulation ...", flush=True)
        try_wheel(wheel)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        print(f"aarch64: {error}", file=sys.stderr)
        return 1
    print(f"{wheel.relative_to(REPOSITORY)}: {wheel.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
