"""Where mutants are compiled and tested."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from python_tests.native.builds import Recipe
from python_tests.native.flavors import HERE, start_pytest

from .sources import Mutant, Source

# The folders of tests, those first that compile soonest: a mutant of what several share is tested
# by one after the other, until one notices.
ROOMS = (
    *("formulas", "reduction", "scale", "label_uncertainty", "statistics", "dice"),
    *("cross_entropy", "expected_cross_entropy", "components", "counts", "blocks"),
)
# In turn: the sanitizers take longest to compile.
FLAVORS = ("race", "plain", "sanitize")
# pytest's -k where not all tests of a room run a unit.
_TESTS = {
    "cross_entropy/cuda/stored.cu": "not interpolated_kernels",
    "cross_entropy/cuda/interpolated.cu": "interpolated_kernels",
}
# What of csrc/common/device is for compilers and tests alone, or never runs on a host.
_NO_KERNELS = ("backend.h", "gpu.h", "host.h", "loss_backend.h")
# Bounds are what UndefinedBehaviorSanitizer adds to AddressSanitizer; all its checks together take
# twice as long to compile.
_SANITIZERS = ("-fsanitize=address,undefined", "-fsanitize=address,bounds")
_FORMULAS = HERE / "formulas" / "binding.cpp"
_LIMIT_SECONDS = 900
_TESTS_FAILED = 1  # pytest's exit status, and a sanitizer's


@dataclass(frozen=True)
class Outcome:
    """What came of a mutant.

    Attributes:
        status: noticed, survived, equivalent (it compiles to the same code) or invalid (it does
            not compile).
        flavor: the build that noticed.
        test: the one that noticed.
        how: it failed, the process ended, or there was no end to it.
    """

    status: str
    flavor: str = ""
    test: str = ""
    how: str = ""
    seconds: float = 0.0


class DoesNotCompileError(Exception):
    """A mutant is none."""


def kernel_files(csrc: Path) -> list[Path]:
    """The sources of kernels, relative to csrc."""
    found = [*csrc.glob("*/cuda/*"), *csrc.glob("common/device/*"), *csrc.glob("math/*.h")]
    return sorted(path.relative_to(csrc) for path in found if path.name not in _NO_KERNELS)


def all_mutants(csrc: Path) -> list[Mutant]:
    return [
        mutant
        for file in kernel_files(csrc)
        for mutant in Source(str(file), (csrc / file).read_text()).mutants()
    ]


class Workshop:
    """A copy of csrc, changed and changed back."""

    def __init__(self, directory: Path, rooms: Iterable[str] = ROOMS) -> None:
        self._directory = directory
        self._rooms = [room for room in ROOMS if room in set(rooms)]
        self._recipes = {flavor: Recipe.load(flavor) for flavor in FLAVORS}
        self._csrc = directory / "csrc"
        shutil.copytree(self._recipes["race"].csrc, self._csrc, dirs_exist_ok=True)
        self._noticed: Counter[str] = Counter()
        self._original = cache(self._preprocessed)
        self._dependencies = cache(self._included)

    def files(self) -> set[str]:
        """The sources of the rooms, relative to csrc."""
        units = [unit for room in self._rooms for unit in self._units(room)]
        return set().union(*(self._dependencies(unit) for unit in units))

    def attempt(self, mutant: Mutant) -> Outcome:
        start = time.monotonic()
        units = {
            room: [unit for unit in self._units(room) if mutant.file in self._dependencies(unit)]
            for room in self._rooms
        }
        before = {unit: self._original(unit) for room in units.values() for unit in room}
        with self._changed(mutant):
            for room, found in units.items():
                units[room] = [u for u in found if self._preprocessed(u) != before[u]]
            try:
                outcome = self._test(units)
            except DoesNotCompileError:
                outcome = Outcome("invalid")
        if outcome.test:
            self._noticed[outcome.test] += 1
        return replace(outcome, seconds=round(time.monotonic() - start, 1))

    def control(self, room: str) -> Outcome:
        """What comes of a room with nothing changed: it has to survive."""
        objects = {unit: self._compiled(unit, "race") for unit in self._units(room)}
        return self._tested(room, "race", objects)

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[None]:
        path = self._csrc / mutant.file
        text = path.read_text()
        path.write_text(mutant.apply(text))
        try:
            yield
        finally:
            path.write_text(text)

    def _units(self, room: str) -> list[Path]:
        """What is compiled, relative to csrc if it is a kernel."""
        if room == "formulas":
            return [_FORMULAS]
        if room == "reduction":
            return [Path("common/device/reduction.cu")]
        found = (self._csrc / room / "cuda").glob("*.cu")
        return sorted(path.relative_to(self._csrc) for path in found)

    def _test(self, units: dict[str, list[Path]]) -> Outcome:
        """units: of each room, what the preprocessor makes something else of."""
        same = True
        for room, flavor in self._steps():
            objects = {unit: self._compiled(unit, flavor) for unit in units[room]}
            if flavor == "race":
                objects = {u: o for u, o in objects.items() if not self._is_original(u, o)}
                units[room] = list(objects)
            if objects:
                same = False
                outcome = self._tested(room, flavor, objects)
                if outcome.status == "noticed":
                    return outcome
        return Outcome("equivalent" if same else "survived")

    def _steps(self) -> Iterator[tuple[str, str]]:
        """Rooms and builds in turn. Formulas are tested in the plain build alone."""
        if "formulas" in self._rooms:
            yield "formulas", "plain"
        for flavor in FLAVORS:
            for room in self._rooms:
                if room != "formulas":
                    yield room, flavor

    def _tested(self, room: str, flavor: str, objects: dict[Path, Path]) -> Outcome:
        """Links a room's objects and runs its tests until one notices."""
        recipe = self._recipes[flavor]
        if room == "formulas":
            _run(self._formulas_link(recipe, objects[_FORMULAS]))
        else:
            _run(recipe.link_command(objects, self._directory))
        telling, running = self._directory / "telling.json", self._directory / "running"
        telling.write_text(json.dumps(self._noticed))
        selected = {_TESTS.get(str(unit), "") for unit in objects}
        arguments = ["-x", "-p", "tools.mutants.plugin", "--telling", str(telling)]
        arguments += ["--running", str(running), "-p", "no:xdist", "-p", "no:benchmark"]
        arguments += ["-k", selected.pop() if len(selected) == 1 else "", str(HERE / room)]
        process = start_pytest(flavor, arguments, self._directory)
        try:
            output, _ = process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        status = process.returncode
        if status == 0:
            return Outcome("survived")
        if status > _TESTS_FAILED:
            raise RuntimeError(f"pytest ends with status {status}:\n{output[-4000:]}")
        how = {_TESTS_FAILED: "failed", -signal.SIGALRM: "no end", -signal.SIGKILL: "no end"}
        return Outcome("noticed", flavor, running.read_text(), how.get(status, "crashed"))

    # ---- Compilers

    def _compiled(self, unit: Path, flavor: str) -> Path:
        target = self._directory / f"{flavor}-{unit.parent.parent.name}-{unit.stem}.o"
        command = self._command(unit, flavor, "-c", "-o", str(target))
        if subprocess.run(command, capture_output=True).returncode != 0:
            raise DoesNotCompileError
        return target

    def _command(self, unit: Path, flavor: str, *more: str) -> list[str]:
        recipe = self._recipes[flavor]
        if unit == _FORMULAS:
            more = ("-O0", *_pybind_includes(), *more)
        command = recipe.compile_command(self._csrc, unit, *more)
        return [_SANITIZERS[1] if word == _SANITIZERS[0] else word for word in command]

    def _formulas_link(self, recipe: Recipe, binding: Path) -> list[str]:
        """The bindings of the build are a single object: here are those of the formulas alone."""
        module = self._directory / "module.o"
        if not module.exists():
            source = HERE / "module.cpp"
            more = ("-O0", *_pybind_includes(), "-c", "-o", str(module))
            _run(recipe.compile_command(self._csrc, source, *more))
        target = self._directory / f"segunc_host_{recipe.flavor}.so"
        return [recipe.compiler, "-shared", "-o", str(target), str(module), str(binding)]

    def _preprocessed(self, unit: Path) -> str:
        command = self._command(unit, "race", "-E", "-P")
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def _included(self, unit: Path) -> frozenset[str]:
        """The files of csrc in a unit."""
        command = self._command(unit, "race", "-MM")
        rule = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths = [Path(word).resolve() for word in re.sub(r"\\\n", " ", rule).split()[1:]]
        csrc = self._csrc.resolve()
        return frozenset(str(p.relative_to(csrc)) for p in paths if p.is_relative_to(csrc))

    def _is_original(self, unit: Path, compiled: Path) -> bool:
        """Whether an object is that of the unchanged source, debug information aside."""
        code = []
        for number, path in enumerate((self._recipes["race"].original(unit), compiled)):
            stripped = self._directory / f"stripped-{number}.o"
            _run(["objcopy", "--strip-debug", str(path), str(stripped)])
            code.append(stripped.read_bytes())
        return code[0] == code[1]


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)


@cache
def _pybind_includes() -> tuple[str, ...]:
    import pybind11

    return (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}")
