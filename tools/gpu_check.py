"""Everything that needs a GPU, in one command: `make gpu-check`.

Installs a wheel (or the source tree) into a temporary folder and works on a copy of the tests and
benchmarks, so that what is checked is what would be shipped. Runs the CUDA tests, compute-sanitizer
over small calls, and the benchmarks, which also compare with packages whose wheels lie in
dist/peers. Needs no network. Writes `gpu-check.json`.

Exit status: 0 all steps passed, 1 one failed, 3 there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .predictions import compare, read_table
from .steps import REPOSITORY, Redactor, Step, cuda_tests, find_wheel, run_step, stage

EXIT_FAILED, EXIT_NO_GPU = 1, 3

_PEERS = REPOSITORY / "dist" / "peers"
_SANITIZER_EXIT = 99
# The most telling first, since time may end: whether results are right, family by family, how long
# the showcase takes, then what only compute-sanitizer sees. A step gets at most its share of the
# time limit, so that one that hangs leaves time for the others; what it leaves is for later ones.
_INSTALL_SHARE, _IMPORT_SHARE = 0.3, 0.15
_FAMILIES = (
    *("cross_entropy", "dice", "expected_cross_entropy", "label_uncertainty", "overwriting"),
    *("statistics", "blocks", "components", "counts"),
    "benchmarks",
)
_TESTS_SHARE = 0.12
_BENCHMARKS_SHARE = 0.35
_SANITIZER_SHARES = {"memcheck": 0.15, "racecheck": 0.15, "initcheck": 0.1, "synccheck": 0.1}
_MIN_BENCHMARK_SECONDS = 20.0
# Time that the benchmarks need for the case in progress and their report.
_BENCHMARK_END_SECONDS = 25.0


@dataclass
class Report:
    """All steps, where they ran, the rows that the benchmarks measured, and what was predicted."""

    environment: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    benchmarks: list[dict[str, object]] = field(default_factory=list)
    predictions: list[dict[str, object]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no step failed; one that is skipped says why."""
        return all(step.status in ("passed", "skipped") for step in self.steps)


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


class _Run:
    """The steps of one check; what came of them is written after each."""

    def __init__(self, report: Report, scratch: Path, output: Path, limit: float) -> None:
        self.report = report
        self.output = output
        self.limit = limit
        self.begin = time.monotonic()
        self.target, self.stage = scratch / "installed", scratch / "stage"
        self.results = scratch / "results"
        self.stage.mkdir()
        stage(self.stage)
        self.redact = Redactor(
            {
                self.target: "<installed>",
                self.stage: "<stage>",
                REPOSITORY: "<repository>",
                Path(sys.prefix): "<python>",
                Path.home(): "<home>",
                output: "<output>",
            }
        )
        self.env = {
            # For a source tree: an error without nvcc, and code for this GPU alone.
            "SEGUNC_OPS_CUDA": "1",
            "SEGUNC_OPS_CUDA_TARGETS": "".join(map(str, report.environment["capability"])),
            **os.environ,
            # cmake and ninja of an environment that is not activated.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
            "PYTHONPATH": str(self.target),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def remaining(self) -> float:
        """Seconds of the time limit."""
        return self.limit - (time.monotonic() - self.begin)

    def write(self) -> Path:
        """Writes what is known until now."""
        summary = {
            "passed": self.report.passed and bool(self.report.steps),
            "seconds": round(time.monotonic() - self.begin, 1),
            **asdict(self.report),
        }
        path = self.output / "gpu-check.json"
        path.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @property
    def pip(self) -> list[str]:
        """The command that installs what follows it, apart from the environment."""
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(self.target)]
        return pip

    def skip(self, name: str, why: str) -> None:
        """Says why a step is not run."""
        self.report.steps.append(Step(name, "skipped", output_tail=why))

    def step(self, name: str, command: Sequence[str], share: float, **extra: str) -> bool:
        """Runs a step for at most its share of the time limit; whether it passed."""
        if self.remaining <= 0:
            self.skip(name, "the time limit has passed")
            return False
        limit = min(share * self.limit, self.remaining)
        env = {**self.env, **extra}
        done = run_step(name, command, cwd=self.stage, env=env, limit=limit, redact=self.redact)
        self.report.steps.append(done)
        self.write()
        return done.status == "passed"

    def install(self, source: Path) -> bool:
        """Installs the package apart from the environment; whether the native kernels load."""
        identify = [sys.executable, "-c", _IDENTIFY, str(self.target)]
        return self.step("install", [*self.pip, str(source)], _INSTALL_SHARE) and self.step(
            "import", identify, _IMPORT_SHARE
        )

    def install_peers(self, folder: Path) -> None:
        """Installs the wheels of a folder, beside which the benchmarks set ours."""
        if wheels := sorted(map(str, folder.glob("*.whl"))):
            self.step("install peers", [*self.pip, *wheels], _INSTALL_SHARE)
        else:
            self.skip("install peers", f"no wheels in {folder.relative_to(REPOSITORY)}")

    def test(self) -> None:
        """The CUDA tests, a step for each family."""
        files = {Path(name).parent.name: name for name in cuda_tests(self.stage)}
        for family in sorted(files, key=_FAMILIES.index):
            name = f"tests of {family}"
            if not importlib.util.find_spec("pytest"):
                self.skip(name, "pytest is not installed")
                continue
            command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
            self.step(name, [*command, files[family]], _TESTS_SHARE)

    def benchmark(self, suite: str) -> None:
        """The benchmarks, as many as there is time for."""
        from benchmarks.implementations import MAX_AUTOTUNE

        seconds = min(self.remaining, _BENCHMARKS_SHARE * self.limit) - _BENCHMARK_END_SECONDS
        if seconds < _MIN_BENCHMARK_SECONDS:
            self.skip("benchmarks", f"only {self.remaining:.0f} s of the time limit were left")
            return
        command = [sys.executable, "-m", "benchmarks.measure", f"--suite={suite}", "--device=cuda"]
        # Autotuning takes minutes; what it comes to is for `make bench`.
        command += [f"--leave-out={MAX_AUTOTUNE}"]
        command += [f"--time-limit={seconds}", f"--output={self.results}"]
        self.step("benchmarks", command, _BENCHMARKS_SHARE)
        for path in sorted(self.results.glob("*")):
            if path.suffix == ".json":
                self.report.benchmarks = json.loads(path.read_text(encoding="utf-8"))
            shutil.copy(path, self.output / path.name)
        device = self.report.environment["device"]
        for each in compare(self.report.benchmarks, read_table(), device):
            self.report.predictions.append({**asdict(each), "agrees": each.agrees})
            print(
                f"{each.case}: {each.measured:.0%} of a copy, {each.predicted:.0%} predicted "
                f"({each.bound}){'' if each.agrees else ': find out why'}"
            )

    def sanitize(self) -> None:
        """Small calls of every kernel under each tool of compute-sanitizer."""
        binary = _sanitizer()
        for tool, share in _SANITIZER_SHARES.items():
            if binary is None:
                self.skip(tool, "compute-sanitizer was not found")
                continue
            # Each tensor its own allocation: an access past its end is then outside of all memory.
            command = _sanitizer_command(binary, tool)
            self.step(tool, command, share, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


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
    default = os.environ.get("OUT") or str(REPOSITORY / "benchmarks" / "results")
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
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        run = _Run(report, Path(scratch), output, options.time_limit)
        try:
            if run.install(source):
                run.test()
                run.install_peers(_PEERS)
                run.benchmark(options.suite)
                run.sanitize()
        finally:
            path = run.write()
    for step in report.steps:
        reason = f" ({step.output_tail})" if step.status == "skipped" else ""
        print(f"{step.name:12} {step.status:8} {step.seconds:7.1f} s{reason}")
    print(path)
    return 0 if report.passed else EXIT_FAILED


if __name__ == "__main__":
    raise SystemExit(main())
