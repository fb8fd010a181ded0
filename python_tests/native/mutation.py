"""Copies of kernels with one thing broken in their source, built for the race build."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from python_tests.native.builds import Recipe, run_all


@dataclass(frozen=True)
class Mutation:
    """A broken copy of a family's kernels.

    Attributes:
        name: what is broken.
        snippet: what to replace. It occurs once in the family's sources or, if not there, once in
            the sources that all families share. A space stands for any white space.
        replacement: what by.
        tests: pytest's -k for the tests that concern it, where not all of the family's have to run
            until one fails.
        kernels: a pattern for the family's .cu files that are meant and compiled.
        all_dtypes: what breaks is not in the kernels of float32; else these are compiled alone, in
            a third of the time, and tests of others are skipped.
    """

    name: str
    snippet: str
    replacement: str
    tests: str = ""
    kernels: str = "*.cu"
    all_dtypes: bool = False


@dataclass(frozen=True)
class Place:
    """Where a mutation's snippet stands.

    Attributes:
        path: the file.
        span: the first character and the one past the last.
        units: the files to compile once it is changed.
    """

    path: Path
    span: tuple[int, int]
    units: list[Path]


def locate(mutation: Mutation, family: str, csrc: Path) -> Place:
    """Finds what a mutation replaces, among the sources under csrc.

    Raises:
        LookupError: it is not there, or more than once.
    """
    pattern = r"\s+".join(map(re.escape, mutation.snippet.split()))
    units = sorted((csrc / family / "cuda").glob(mutation.kernels))
    own = units + sorted((csrc / family / "cuda").glob("*.h"))
    shared = sorted([*csrc.glob("common/device/*"), *csrc.glob("math/*")])
    for sources in (own, shared):
        found = [
            (path, match.span())
            for path in sources
            for match in re.finditer(pattern, path.read_text())
        ]
        if len(found) > 1:
            break
        if found:
            path, span = found[0]
            return Place(path, span, [path] if path.suffix == ".cu" else units)
    raise LookupError(
        f"{family}, {mutation.name}: the snippet occurs {len(found)} times, not once:\n"
        f"{mutation.snippet}"
    )


def _apply(mutation: Mutation, family: str, csrc: Path) -> list[Path]:
    """Changes the sources under csrc; returns those to compile."""
    place = locate(mutation, family, csrc)
    text = place.path.read_text()
    first, end = place.span
    place.path.write_text(text[:first] + mutation.replacement + text[end:])
    return place.units


def has_all_dtypes(mutation: Mutation | None) -> bool:
    """Whether a copy has the kernels of every type of logits: that of a mutation that needs it."""
    return mutation is not None and mutation.all_dtypes


def _keep_float32(csrc: Path) -> None:
    """Leaves out the kernels of all other types of logits."""
    path = csrc / "common/device/work.h"
    others = r"case Dtype::(?!f32)\w+:\s+return call\(\w+\(\)\);"
    text, count = re.subn(others, "", path.read_text())
    if count != 3:
        raise LookupError(f"{path.name}: with_dtype has {count} other types, not 3")
    path.write_text(text)


def build(mutation: Mutation | None, family: str, directory: Path) -> None:
    """Compiles a family's copy, changed or not, and links the race module into ``directory``.

    Raises:
        LookupError: the kernels have changed, so that the mutation has to be written anew.
        RuntimeError: the copy does not compile.
    """
    recipe = Recipe.load("race")
    csrc = directory / "csrc"
    shutil.copytree(recipe.csrc, csrc, ignore=shutil.ignore_patterns("*.cpp", ".*"))
    if mutation is None:
        units = sorted((csrc / family / "cuda").glob("*.cu"))
    else:
        units = _apply(mutation, family, csrc)
    if not has_all_dtypes(mutation):
        _keep_float32(csrc)
    objects = {unit.relative_to(csrc): directory / f"{unit.stem}.o" for unit in units}
    commands = [
        recipe.compile_command(csrc, unit, "-c", "-o", str(broken))
        for unit, broken in objects.items()
    ]
    try:
        run_all([*commands, recipe.link_command(objects, directory)])
    except RuntimeError as error:
        what = mutation.name if mutation else "unchanged"
        raise RuntimeError(f"{family}, {what}: {error}") from None
