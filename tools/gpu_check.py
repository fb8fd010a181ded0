"""Everything that needs a GPU, in one command: `make gpu-check`.

Installs a wheel (or the source tree) into a temporary folder and works on a copy of the tests and
benchmarks, so that what is checked is what would be shipped. Runs the CUDA tests, compute-sanitizer
over small calls, and the benchmarks. Needs no network. Writes `gpu-check.json`.

Exit status: 0 all steps passed, 1 one failed, 3 there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

EXIT_FAILED, EXIT_NO_GPU = 1, 3

_REPOSITORY = Path(__file__).resolve().parent.parent
_STAGED = ("benchmarks", "tools", "python_tests", "csrc", "cmake", "examples", "CMakeLists.txt")
_SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
_SANITIZER_EXIT = 99
_TAIL_CHARACTERS = 6000
# Shares of the time limit: a step that hangs must leave time for the others.
_INSTALL_SHARE, _TESTS_SHARE, _SANITIZER_SHARE = 0.5, 0.35, 0.125
_MIN_BENCHMARK_SECONDS = 20.0
# Time that the benchmarks need for the case in progress and their report.
_BENCHMARK_END_SECONDS = 25.0


@dataclass
class Step:
    """What came of one step; `status` is passed, failed, timeout or skipped."""

    name: str
    status: str
    seconds: float = 0.0
    returncode: int | None = None
    output_tail: str = ""


@dataclass
class Report:
    """All steps, where they ran, and the rows that the benchmarks measured."""

    environment: dict[str, object]
    steps: list[Step] = field(default_factory=list)
    benchmarks: list[dict[str, object]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no step failed; one that is skipped says why."""
        return all(step.status in ("passed", "skipped") for step in self.steps)


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
    print(f"gpu-check: {name} ...", flush=True)
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
    print(f"gpu-check: {name}: {status} in {seconds} s", flush=True)
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
        (_REPOSITORY / "dist").glob("segunc_ops-*.whl"), key=lambda path: path.stat().st_mtime
    )
    return wheels[-1] if wheels else _REPOSITORY


def _stage(folder: Path) -> None:
    """Copies what is run, but not the package: imports must find the installed one."""
    ignore = shutil.ignore_patterns("__pycache__", "results", "build*")
    for name in _STAGED:
        source = _REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        elif source.exists():
            shutil.copy(source, folder / name)
    shutil.copy(_REPOSITORY / "pyproject.toml", folder / "pyproject.toml")


def _sanitizer() -> str | None:
    from torch.utils.cpp_extension import CUDA_HOME

    folders = [os.environ.get("PATH", "")]
    folders += [str(Path(CUDA_HOME) / "bin")] if CUDA_HOME else []
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def _sanitizer_command(binary: str, tool: str) -> list[str]:
    command = [binary, f"--tool={tool}", f"--error-exitcode={_SANITIZER_EXIT}"]
    if tool != "initcheck":
        # Only our kernels; initcheck must see torch's too, or what they wrote looks unwritten.
        command.append("--kernel-regex=kns=segunc")
    return [*command, sys.executable, "-m", "tools.sanitizer_cases"]


_IDENTIFY = """
import json, pathlib, sys, torch, segunc_ops
info = segunc_ops.build_info()
inside = pathlib.Path(segunc_ops.__file__).is_relative_to(sys.argv[1])
print(json.dumps(info))
if not inside:
    sys.exit(f"expected the installed package, imported {segunc_ops.__file__}")
if info["cpu"] != "native" or info["cuda"] != "native":
    sys.exit("expected native kernels on cpu and cuda")
"""


def _run_steps(
    report: Report, source: Path, scratch: Path, output: Path, suite: str, limit: float
) -> None:
    import torch

    from benchmarks.implementations import MAX_AUTOTUNE

    begin = time.monotonic()
    target, stage = scratch / "installed", scratch / "stage"
    stage.mkdir()
    _stage(stage)
    redact = Redactor(
        {
            target: "<installed>",
            stage: "<stage>",
            _REPOSITORY: "<repository>",
            Path(sys.prefix): "<python>",
            Path.home(): "<home>",
            output: "<output>",
        }
    )
    capability = "".join(map(str, torch.cuda.get_device_capability()))
    env = {
        # For a source tree: an error without nvcc, and code for this GPU alone.
        "SEGUNC_OPS_CUDA": "1",
        "SEGUNC_OPS_CUDA_TARGETS": capability,
        **os.environ,
        # cmake and ninja of an environment that is not activated.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONPATH": str(target),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def step(name: str, command: Sequence[str], share: float, **extra: str) -> Step:
        remaining = limit - (time.monotonic() - begin)
        done = run_step(
            name,
            command,
            cwd=stage,
            env={**env, **extra},
            limit=min(share * limit, remaining),
            redact=redact,
        )
        report.steps.append(done)
        return done

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    if step("install", [*pip, str(source)], _INSTALL_SHARE).status != "passed":
        return
    identify = step("import", [sys.executable, "-c", _IDENTIFY, str(target)], _INSTALL_SHARE)
    if identify.status != "passed":
        return

    if importlib.util.find_spec("pytest"):
        tests = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
        # The other files may need what is not installed here.
        files = sorted(stage.glob("python_tests/**/test_cuda.py"))
        tests += ["--continue-on-collection-errors", *(str(p.relative_to(stage)) for p in files)]
        step("tests", tests, _TESTS_SHARE)
    else:
        report.steps.append(Step("tests", "skipped", output_tail="pytest is not installed"))

    binary = _sanitizer()
    for tool in _SANITIZERS:
        if binary is None:
            why = "compute-sanitizer was not found"
            report.steps.append(Step(tool, "skipped", output_tail=why))
            continue
        # Each tensor its own allocation: an access past its end is then outside of all memory.
        command = _sanitizer_command(binary, tool)
        step(tool, command, _SANITIZER_SHARE, PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    remaining = limit - (time.monotonic() - begin)
    if remaining < _MIN_BENCHMARK_SECONDS + _BENCHMARK_END_SECONDS:
        why = f"only {remaining:.0f} s of the time limit were left"
        report.steps.append(Step("benchmarks", "skipped", output_tail=why))
        return
    results = scratch / "results"
    command = [sys.executable, "-m", "benchmarks.measure", f"--suite={suite}", "--device=cuda"]
    # Autotuning takes minutes; what it comes to is for `make bench`.
    command += [f"--leave-out={MAX_AUTOTUNE}"]
    command += [f"--time-limit={remaining - _BENCHMARK_END_SECONDS}", f"--output={results}"]
    step("benchmarks", command, 1.0)
    for path in sorted(results.glob("*")):
        if path.suffix == ".json":
            report.benchmarks = json.loads(path.read_text(encoding="utf-8"))
        shutil.copy(path, output / path.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the package on a GPU: install, CUDA tests, compute-sanitizer, benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=main.__doc__)
    parser.add_argument("--wheel", type=Path, help="default: the newest in dist/, else the source")
    parser.add_argument("--suite", choices=("quick", "default", "full"), default="quick")
    parser.add_argument("--time-limit", type=float, default=460.0, help="seconds for everything")
    parser.add_argument("--output", type=Path, help="default: $OUT, else benchmarks/results")
    options = parser.parse_args(arguments)

    try:
        import torch
    except ImportError:
        print("gpu-check: torch is not installed", file=sys.stderr)
        return EXIT_FAILED
    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "no GPU is seen"
        print(f"gpu-check: nothing to check here, {why}", file=sys.stderr)
        return EXIT_NO_GPU
    try:
        source = find_wheel(options.wheel)
    except FileNotFoundError as error:
        parser.error(str(error))
    default = os.environ.get("OUT") or str(_REPOSITORY / "benchmarks" / "results")
    output = (options.output or Path(default)).resolve()
    output.mkdir(parents=True, exist_ok=True)

    report = Report(
        {
            "device": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": sys.version.split()[0],
            "installed": source.name if source.suffix == ".whl" else "source tree",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
    )
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
            _run_steps(report, source, Path(scratch), output, options.suite, options.time_limit)
    finally:
        # Whatever happens, what was learnt until then is kept.
        summary = {
            "passed": report.passed and bool(report.steps),
            "seconds": round(time.monotonic() - begin, 1),
            **asdict(report),
        }
        path = output / "gpu-check.json"
        path.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for step in report.steps:
        reason = f" ({step.output_tail})" if step.status == "skipped" else ""
        print(f"{step.name:12} {step.status:8} {step.seconds:7.1f} s{reason}")
    print(path)
    return 0 if report.passed else EXIT_FAILED


if __name__ == "__main__":
    raise SystemExit(main())
