"""What tools share: commands, steps with a time limit, what the check on a GPU runs on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

_STAGED = ("benchmarks", "tools", "python_tests", "csrc", "cmake", "examples", "CMakeLists.txt")
_TAIL_CHARACTERS = 6000


def run(command: Sequence[str | Path], cwd: Path = REPOSITORY, **environment: str) -> None:
    """Runs a command with these variables beside the process's own.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    subprocess.run(
        [str(part) for part in command], cwd=cwd, check=True, env={**os.environ, **environment}
    )


@dataclass
class Step:
    """What came of one step; `status` is passed, failed, timeout or skipped."""

    name: str
    status: str
    seconds: float = 0.0
    returncode: int | None = None
    output_tail: str = ""


class Redactor:
    """Replaces the folders of this machine by names, since reports are published."""

    def __init__(self, names: Mapping[Path, str]) -> None:
        # Longest first: a folder may lie within another.
        ordered = sorted(names.items(), key=lambda item: -len(str(item[0])))
        self._names = [(str(folder), name) for folder, name in ordered]

    def __call__(self, text: str) -> str:
        for folder, name in self._names:
            text = text.replace(folder, name)
        return text


def run_step(
    name: str,
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    limit: float,
    redact: Callable[[str], str] = str,
) -> Step:
    """Runs a command to its end or its limit in seconds, and keeps the tail of its output."""
    print(f"{name} ...", flush=True)
    begin = time.monotonic()
    # Its own session: a command over its limit is ended with all that it started.
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(limit, 1.0))
        status = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = "timeout"
    seconds = round(time.monotonic() - begin, 1)
    tail = redact(output)[-_TAIL_CHARACTERS:]
    print(f"{name}: {status} in {seconds} s", flush=True)
    if status != "passed":
        print(tail, flush=True)
    return Step(name, status, seconds, process.returncode, tail)


def find_wheel(asked: Path | None) -> Path:
    """The wheel to install: the one asked for, else the newest in dist/, else the source tree.

    Raises:
        FileNotFoundError: the one asked for does not exist.
    """
    if asked is not None:
        if not asked.exists():
            raise FileNotFoundError(f"--wheel: expected a wheel or a source tree, got {asked}")
        return asked.resolve()
    wheels = sorted(
        (REPOSITORY / "dist").glob("segunc_ops-*.whl"), key=lambda path: path.stat().st_mtime
    )
    return wheels[-1] if wheels else REPOSITORY


def stage(folder: Path) -> None:
    """Copies what is run, but not the package: imports must find the installed one."""
    ignore = shutil.ignore_patterns("__pycache__", "results", "build*")
    for name in _STAGED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        elif source.exists():
            shutil.copy(source, folder / name)
    shutil.copy(REPOSITORY / "pyproject.toml", folder / "pyproject.toml")


def cuda_tests(folder: Path) -> list[str]:
    """The test files that need a GPU, relative to the folder that holds python_tests."""
    files = sorted(folder.glob("python_tests/**/test_cuda.py"))
    return [str(path.relative_to(folder)) for path in files]
