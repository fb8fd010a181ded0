"""Tries what the package promises, "every torch >= 2.10": `make compatibility`.

For each version of torch in turn: a virtual environment in build/compatibility with that torch
from PyPI (its CUDA build), the wheel and what its tests need; then the tests, from a copy of them
without the package, so that they import the installed wheel. One row of
docs/compatibility.json comes of it, which python_tests/support.py prints into docs/support.md.

`--trainers` runs the adapters' tests and the examples so, each in its own trainer, beside the torch
that constraints.txt pins.

It goes on where it was stopped: an environment that is complete is used again, and a version beside
which this wheel has passed these tests is not tried again. `make clean` removes everything.

Exit status: 0 all tests passed beside every version, 1 some did not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

NEWEST = "newest"
VERSIONS = ("2.10", "2.11", "2.13", NEWEST)
COST = "3 GB to download (2 GB fewer if pip has seen a torch of that CUDA version), 7 GB of disk"

_REPOSITORY = Path(__file__).resolve().parent.parent
_FOLDER = _REPOSITORY / "build" / "compatibility"
_RESULTS = _REPOSITORY / "docs" / "compatibility.json"
_PAGE = _REPOSITORY / "docs" / "support.md"
# Not copied: the package itself, and the tests of the kernels' host run, which build their own, and
# of what changes the sources.
_NOT_STAGED = ("segunc_ops/", "python_tests/native/", "python_tests/tools/test_mutants.py")
_MARKS = "not cuda and not thorough"

_DESCRIBE = """
import json, platform, torch, segunc_ops
info = segunc_ops.build_info()
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
    "cpu_library": info["cpu"], "cuda_library": info["cuda"], "package": segunc_ops.__file__,
}))
"""
_REQUIRED = "import importlib.metadata as m; print('\\n'.join(m.requires('torch')))"


@dataclass(frozen=True)
class Environment:
    """What the wheel is installed beside, and which of its tests run there."""

    name: str
    torch: str
    """What pip is asked for."""
    is_pinned: bool = False
    """To the versions of constraints.txt, torch and what it requires included."""
    extras: str = "experiments,test"
    tests: tuple[str, ...] = ()
    """Files and folders; none: all."""


def beside(version: str) -> Environment:
    """The environment of a version of torch."""
    torch = "torch" if version == NEWEST else f"torch=={version}.*"
    return Environment(f"torch-{version}", torch)


TRAINERS = Environment(
    name="trainers",
    torch="torch",
    is_pinned=True,
    extras="experiments,test,trainers",
    tests=("python_tests/integrations", "python_tests/test_examples.py"),
)


@dataclass
class Row:
    """What came of the tests beside one version of torch."""

    torch: str
    cuda: str | None
    python: str
    cpu_library: str
    cuda_library: str
    passed: int
    skipped: int
    failed: list[str] = field(default_factory=list)


def constraints(pinned: str, required_by_torch: Iterable[str]) -> str:
    """The lines of constraints.txt but for torch and what torch itself requires.

    Which versions of those go with it, the torch that is tried says: `required_by_torch` is its
    metadata, such as ``sympy>=1.13.3``.
    """

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    names = [re.match(r"[\w.-]+", line.strip()) for line in ("torch", *required_by_torch)]
    own = {normal(match[0]) for match in names if match}
    return "".join(
        f"{line}\n" for line in pinned.splitlines() if normal(line.split("==")[0]) not in own
    )


def outcome(report: str) -> tuple[int, int, list[str]]:
    """How many passed and were skipped, and the names of those that failed, of a JUnit report."""
    passed = skipped = 0
    failed = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, sorted(set(failed))


def fingerprint(wheel: Path, tests: Path) -> str:
    """Of what the wheel and the tests contain, whenever they were built or copied."""
    with zipfile.ZipFile(wheel) as archive:
        parts = [f"{entry.filename} {entry.CRC}" for entry in archive.infolist()]
    for path in sorted(tests.rglob("*")):
        if path.is_file():
            parts.append(f"{path.relative_to(tests)} {zlib.crc32(path.read_bytes())}")
    return f"{zlib.crc32(os.linesep.join(parts).encode()):08x}"


def _output(command: Sequence[str | Path], cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return result.stdout


def stage(folder: Path) -> None:
    """Copies the files of the repository that tests need, but not the package."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in _output(listed, _REPOSITORY).split("\0"):
        source = _REPOSITORY / name
        if name and not name.startswith(_NOT_STAGED) and source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)


def install(environment: Environment, wheel: Path, python: str) -> Path:
    """The interpreter of an environment with its torch, the wheel and what its tests need."""
    folder = _FOLDER / environment.name
    interpreter, complete = folder / "bin" / "python", folder / ".has-torch"
    pinned = (_REPOSITORY / "constraints.txt").read_text()
    pip: list[str | Path] = [
        interpreter,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    limits: list[str | Path] = ["-c", folder / "constraints.txt"]
    if not complete.exists():
        print(f"compatibility: {environment.name}: installing, {COST} ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _output([python, "-m", "venv", folder], _FOLDER)
        (folder / "constraints.txt").write_text(pinned if environment.is_pinned else "")
        _output([*pip, *limits, environment.torch], _FOLDER)
        complete.touch()
    if not environment.is_pinned:
        required = _output([interpreter, "-c", _REQUIRED], _FOLDER).splitlines()
        (folder / "constraints.txt").write_text(constraints(pinned, required))
    _output([*pip, *limits, f"{wheel}[{environment.extras}]"], _FOLDER)
    # Of the same version, but perhaps built since.
    _output([*pip, "--no-deps", "--force-reinstall", wheel], _FOLDER)
    return interpreter


def check(interpreter: Path, tests: Path, chosen: Sequence[str] = ()) -> Row:
    """Runs the tests there, or those chosen, and says what came of them.

    Raises:
        RuntimeError: the tests would not test the installed wheel, or they did not run.
    """
    found = json.loads(_output([interpreter, "-c", _DESCRIBE], tests))
    package = Path(found.pop("package"))
    if not package.is_relative_to(interpreter.parent.parent):
        raise RuntimeError(f"expected the installed wheel, imported {package}")
    report = tests.parent / "report.xml"
    report.unlink(missing_ok=True)
    command = [interpreter, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", _MARKS]
    # A wheel without CUDA code says so when it is imported, before pytest's filters are there.
    command += ["-W", "ignore:segunc_ops:RuntimeWarning"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # pip's scripts, such as `segunc`, are found as in an activated environment.
    environment["PATH"] = os.pathsep.join((str(interpreter.parent), os.environ.get("PATH", "")))
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", *chosen]
    subprocess.run([str(part) for part in command], cwd=tests, env=environment)
    if not report.exists():
        raise RuntimeError("the tests did not run")
    passed, skipped, failed = outcome(report.read_text())
    return Row(**found, passed=passed, skipped=skipped, failed=failed)


def _built_wheel() -> Path:
    wheels = sorted((_REPOSITORY / "dist").glob("segunc_ops-*.whl"))
    if len(wheels) != 1:
        raise FileNotFoundError(f"expected one wheel in dist/, found {len(wheels)}: `make wheel`")
    return wheels[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tests against the wheel beside several versions of torch."""
    parser = argparse.ArgumentParser(prog="python -m tools.compatibility", description=main.__doc__)
    parser.add_argument("--wheel", type=Path, help="default: the one in dist/")
    parser.add_argument("--torch", nargs="*", default=VERSIONS, help="default: %(default)s")
    parser.add_argument(
        "--trainers", action="store_true", help="also the adapters' tests, in their trainers"
    )
    parser.add_argument("--python", default=sys.executable, help="default: this one")
    parser.add_argument(
        "--remove", action="store_true", help="delete each environment after its tests"
    )
    options = parser.parse_args(arguments)

    wheel = (options.wheel or _built_wheel()).resolve()
    tests, results = _FOLDER / "tests", _FOLDER / "results"
    results.mkdir(parents=True, exist_ok=True)
    stage(tests)
    contents = fingerprint(wheel, tests)
    environments = [beside(version) for version in options.torch]
    if options.trainers:
        environments.append(TRAINERS)
    rows = []
    for environment in environments:
        kept = results / f"{environment.name}.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        if known.get("fingerprint") == contents and not known["row"]["failed"]:
            row = Row(**known["row"])
        else:
            interpreter = install(environment, wheel, options.python)
            begin = time.monotonic()
            row = check(interpreter, tests, environment.tests)
            seconds = time.monotonic() - begin
            print(f"compatibility: {environment.name}: tested in {seconds:.0f} s", flush=True)
            kept.write_text(json.dumps({"fingerprint": contents, "row": asdict(row)}))
        if options.remove:
            shutil.rmtree(_FOLDER / environment.name, ignore_errors=True)
        rows.append(row)

    if versions := rows[: len(options.torch)]:
        _RESULTS.write_text(json.dumps([asdict(row) for row in versions], indent=1) + "\n")
        page = [sys.executable, "-m", "python_tests.support"]
        _PAGE.write_text(_output(page, _REPOSITORY))
    for environment, row in zip(environments, rows, strict=True):
        print(
            f"{environment.name}: torch {row.torch}, Python {row.python}, CPU library "
            f"{row.cpu_library}, CUDA library {row.cuda_library}: {row.passed} passed, "
            f"{row.skipped} skipped, {len(row.failed)} failed"
        )
        for name in row.failed:
            print(f"  {name}")
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
