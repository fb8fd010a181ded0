"""What the sources say of their kernels, for the report.

A marker is a comment of its own line and stands for the next line of code, or stands behind code;
semicolons part several:

    // report: hot C * V             begins a kernel's main loop, before its ``for``, or before the
                                     body of a kernel without one; what a thread computes in one
                                     iteration, in elements
    // report: end                   ends what began last
    // report: rare                  a branch that is not counted: an option or an error
    // report: rare NAME             the same, unless a row is of that option
    // report: begin rare NAME       the same of all lines up to the end, with a name or without
    // report: trips S               before an inner loop: how often it runs in an iteration of the
                                     main one, else once
    // report: vector sizeof(T) * V  the least bytes of each global access that the line makes
    // report: generic               accesses whose memory the compiler cannot know, left so
    // report: dynamic kernel<* 49152 - 256
                                     the most dynamic shared memory, in bytes, that the launches of
                                     kernels of this pattern admit; beside the check
    // report: budget kernel<float, 20, *> 40
                                     the most instructions an element of kernels of this pattern;
                                     beside their policy

Expressions know a kernel's template parameters by name, those of templates among its arguments
too, what a row of the table sets (``C`` classes, ``S`` samples), ``elements``, which is what hot
says, and in trips ``accessed`` and ``shared``: the bytes that an iteration of the compiled loop
loads from and stores to global and shared memory, which tell how far it was unrolled.
"""

from __future__ import annotations

import ast
import fnmatch
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from .disassembly import Instruction, Place

Value = float | str

SIZES = {
    "double": 8,
    "float": 4,
    "bfloat16": 2,
    "float16": 2,
    "bool": 1,
    "unsigned char": 1,
    "unsigned short": 2,
    "short": 2,
    "int": 4,
    "unsigned int": 4,
    "long": 8,
    "unsigned long": 8,
    "unsigned long long": 8,
}

_MARKER = re.compile(r"//\s*report:\s*(.*?)\s*$")
_TEMPLATE = re.compile(
    r"template\s*<([^{};]*?)>\s*__global__\s+void\s+"
    r"(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\("
)
_STRUCT = re.compile(r"template\s*<([^{};]*?)>\s*struct\s+(?:alignas\([^{};]*\)\s*)?(\w+)\s*[:{]")
_PARAMETER = re.compile(r"(?:class|typename|\w+)\s+(\w+)\s*(?:,|$)")
_LIMIT = re.compile(r"([\w*?]+(?:<.*?[>*])?)\s+([^<>]+)")
_LINE_MARKERS = ("generic", "rare", "trips", "vector")


class MarkerError(ValueError):
    """A marker that cannot be read, or an expression without a value."""


@dataclass
class Hot:
    """The main loop of a kernel, lines `first` to `last` of a file."""

    file: str
    first: int  # the line of the loop's ``for``
    last: int
    elements: str
    is_loop: bool

    def holds(self, place: Place) -> bool:
        """Whether a line is one of the loop's."""
        return place.file == self.file and self.first <= place.line <= self.last


class Limit(NamedTuple):
    """The most that kernels of a pattern may take."""

    pattern: str
    most: float


@dataclass
class Markers:
    """The markers of all sources."""

    hot: list[Hot] = field(default_factory=list)
    lines: dict[str, dict[Place, str]] = field(
        default_factory=lambda: {m: {} for m in _LINE_MARKERS}
    )
    bodies: dict[Place, int] = field(default_factory=dict)  # last lines of loops with trips
    budgets: list[Limit] = field(default_factory=list)  # in instructions an element
    dynamic: list[Limit] = field(default_factory=list)  # in bytes
    parameters: dict[str, list[str]] = field(default_factory=dict)  # of kernels and structs

    def find(self, kind: str, instruction: Instruction) -> str | None:
        """The marker of a kind at the innermost of an instruction's lines that has one."""
        lines = self.lines[kind]
        return next((lines[place] for place in instruction.places if place in lines), None)

    def without_rare(self, names: Collection[str] | None = None) -> Markers:
        """All but what is rare and has one of these names, or any."""
        rare = self.lines["rare"].items()
        others = {p: name for p, name in rare if names is not None and name not in names}
        return replace(self, lines={**self.lines, "rare": others})

    def loops_of(self, instruction: Instruction) -> set[Place]:
        """The loops with trips that an instruction comes from, by the lines of their ``for``."""
        return {
            start
            for start, last in self.bodies.items()
            for place in instruction.places
            if place.file == start.file and start.line <= place.line <= last
        }

    def hot_of(self, instructions: Iterable[Instruction]) -> Hot | None:
        """The main loop that a function's instructions come from."""
        places = {i.places[-1] for i in instructions if i.places}
        return next((hot for hot in self.hot if any(map(hot.holds, places))), None)

    def budget_of(self, kernel: str) -> float | None:
        """The smallest budget whose pattern matches."""
        return min(_matching(self.budgets, kernel), default=None)

    def dynamic_of(self, kernel: str) -> float:
        """The most dynamic shared memory that a kernel's launches admit."""
        return max(_matching(self.dynamic, kernel), default=0.0)

    def arguments_of(self, kernel: str) -> dict[str, Value]:
        """The template arguments of ``kernel<float, Pixels<2>>`` by their names in the source.

        Those of arguments that are templates themselves are among them, unless a name is taken.
        """
        stem, _, rest = kernel.partition("<")
        parameters = self.parameters.get(stem.rpartition("::")[2], [])
        values = split_arguments(rest.removesuffix(">")) if rest else []
        names: dict[str, Value] = {}
        for name, value in zip(parameters, values, strict=False):
            names[name] = float(value) if re.fullmatch(r"-?\d+", value) else value
        inner = (self.arguments_of(value) for value in values if "<" in value)
        return {**{name: value for each in inner for name, value in each.items()}, **names}


def _matching(limits: Iterable[Limit], kernel: str) -> list[float]:
    return [limit.most for limit in limits if fnmatch.fnmatchcase(kernel, limit.pattern)]


def split_arguments(text: str) -> list[str]:
    """Template arguments, of which one may have arguments itself."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "<(") - (character in ">)")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def read_markers(sources: Iterable[Path]) -> Markers:
    """The markers of source files.

    Raises:
        MarkerError: one is unknown, or something begins without an end.
    """
    markers = Markers()
    for source in sources:
        _read_source(source, markers)
    return markers


def _read_source(source: Path, markers: Markers) -> None:
    text = source.read_text(encoding="utf-8")
    for parameters, name in (*_TEMPLATE.findall(text), *_STRUCT.findall(text)):
        markers.parameters[name] = _PARAMETER.findall(" ".join(parameters.split()))
    lines = text.splitlines()
    file = str(source.resolve())
    begun: list[Hot | tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        match = _MARKER.search(line)
        if match is None:
            continue
        behind_code = line[: match.start()].strip() != ""
        place = Place(file, number if behind_code else _next_code(lines, number))
        for marker in match[1].split(";"):
            try:
                _take(marker.strip(), place, number, lines, begun, markers)
            except MarkerError as error:
                raise MarkerError(f"{source.name}:{number}: {error}") from None
    if begun:
        raise MarkerError(f"{source.name}: what a marker began has no end")


def _take(
    marker: str,
    place: Place,
    number: int,
    lines: list[str],
    begun: list[Hot | tuple[int, str]],
    markers: Markers,
) -> None:
    """Adds a marker of line `number`, which stands for `place`; `begun` is what has no end yet."""
    kind, _, rest = marker.partition(" ")
    if kind == "hot":
        is_loop = lines[place.line - 1].lstrip().startswith(("for ", "while "))
        hot = Hot(place.file, place.line, place.line, rest, is_loop)
        begun.append(hot)
        markers.hot.append(hot)
    elif kind == "begin" and rest.split()[:1] == ["rare"]:
        begun.append((number, rest.removeprefix("rare").strip()))
    elif kind == "end":
        if not begun:
            raise MarkerError("nothing has begun that this would end")
        beginning = begun.pop()
        if isinstance(beginning, Hot):
            beginning.last = number
        else:
            first, name = beginning
            for inside in range(first, number):
                markers.lines["rare"][Place(place.file, inside)] = name
    elif kind in ("budget", "dynamic"):
        limit = _LIMIT.fullmatch(rest)
        if limit is None:
            raise MarkerError(f"expected a pattern and a number, got '{rest}'")
        limits = markers.budgets if kind == "budget" else markers.dynamic
        limits.append(Limit(limit[1], evaluate(limit[2], {})))
    elif kind in _LINE_MARKERS:
        markers.lines[kind][place] = rest
        if kind == "trips":
            markers.bodies[place] = _last_line_of_loop(lines, place.line)
    else:
        raise MarkerError(f"unknown marker '{marker}'")


def _last_line_of_loop(lines: list[str], number: int) -> int:
    """Where the loop ends whose ``for`` is in this line: at a brace or at its only statement's."""
    parentheses = braces = 0
    for i in range(number - 1, len(lines)):
        for character in lines[i].partition("//")[0]:
            parentheses += (character == "(") - (character == ")")
            braces += (character == "{") - (character == "}")
            if character in ";}" and parentheses == braces == 0:
                return i + 1
    raise MarkerError("trips is not before a loop")


def _next_code(lines: list[str], number: int) -> int:
    """The number of the first line after this one that is neither a comment nor a pragma."""
    for i in range(number, len(lines)):
        if lines[i].strip() and not lines[i].lstrip().startswith(("//", "#")):
            return i + 1
    return number


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "log2": math.log2}


def evaluate(expression: str, names: Mapping[str, Value]) -> float:
    """The value of a marker's expression.

    Raises:
        MarkerError: it has a name without a value, or is none of sums, products, ``min``, ``max``,
            ``log2`` and ``sizeof``.
    """

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name):
            found = names.get(node.id)
            if not isinstance(found, str) and found is not None:
                return found
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id in _FUNCTIONS:
                return _FUNCTIONS[node.func.id](*map(value, node.args))
            if node.func.id == "sizeof" and len(node.args) == 1:
                return float(size(node.args[0]))
        raise MarkerError(f"'{ast.unparse(node)}' in '{expression}' has no value")

    def size(node: ast.expr) -> int:
        name = ast.unparse(node)
        found = SIZES.get(str(names.get(name, name)))
        if found is None:
            raise MarkerError(f"'{name}' in '{expression}' is no type whose size is known")
        return found

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise MarkerError(f"'{expression}' is no expression with a value") from error
