"""Instructions of compiled kernels, from ``cuobjdump`` and ``nvdisasm``.

PyPI has both programs, as nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """A line of a source file."""

    file: str
    line: int


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        guard: The predicate under which it runs, such as ``!P0``, or nothing.
        opcode: With its modifiers, such as ``LDG.E.128``.
        operands: As they are printed.
        places: Where it comes from: the line itself, then the calls that were inlined around it, up
            to the one in the kernel. Nothing without line information.
    """

    guard: str
    opcode: str
    operands: str
    places: tuple[Place, ...] = ()

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> str | None:
        """The label that a branch goes to."""
        match = _TARGET.search(self.operands)
        return match[1] if match else None

    @property
    def is_conditional(self) -> bool:
        """Of a branch or exit: whether some threads may go on after it."""
        before_target = self.operands.partition("`")[0]
        guarded = self.guard not in ("", "PT")
        return guarded or re.search(r"\bU?P\d", before_target) is not None or self.diverges

    @property
    def diverges(self) -> bool:
        """Whether it branches to what a warp does only when its threads have parted."""
        return self.opcode.startswith("BRA.DIV")


@dataclass
class Function:
    """A kernel, or a function that one calls."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # indices of instructions


_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L_\w+):$")
_PLACE = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@(\S+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


def parse(lines: Iterable[str]) -> Iterator[Function]:
    """The functions in what ``nvdisasm -c -gi`` prints."""
    function: Function | None = None
    places: tuple[Place, ...] = ()
    pending: list[Place] = []  # the lines of one annotation follow each other
    for line in lines:
        if match := _PLACE.match(line):
            pending.append(Place(os.path.normpath(match[1]), int(match[2])))
            continue
        if pending:
            places, pending = tuple(pending), []
        if match := _FUNCTION.match(line):
            if function is not None:
                yield function
            function, places = Function(match[1]), ()
        elif function is None:
            continue
        elif match := _INSTRUCTION.match(line):
            instruction = Instruction(match[1] or "", match[2], match[3], places)
            function.instructions.append(instruction)
        elif match := _LABEL.match(line):
            function.labels[match[1]] = len(function.instructions)
    if function is not None:
        yield function


def disassemble(binary: Path, target: str) -> Iterator[Function]:
    """The functions that an object file or library has for a target such as ``sm_90``.

    Raises:
        FileNotFoundError: a program is not installed, or the binary has no code for the target.
        ValueError: two of its sources have the same name.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [program("cuobjdump"), "-xelf", f"{target}.cubin", str(binary.resolve())]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        cubins = sorted(Path(folder).glob("*.cubin"))
        if not cubins:
            raise FileNotFoundError(f"{binary.name} has no code for {target}")
        # They are named after their sources, and one replaces another of its name.
        command = [program("cuobjdump"), "-lelf", str(binary.resolve())]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        names = [
            line.split()[-1] for line in listed.splitlines() if line.endswith(f"{target}.cubin")
        ]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{binary.name}: expected sources of different names, several are called "
                f"{', '.join(name.partition('.')[0] for name in twice)}"
            )
        for cubin in cubins:
            command = [program("nvdisasm"), "-c", "-gi", str(cubin)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                yield from parse(process.stdout)
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command)


def program(name: str) -> str:
    """The path of one of NVIDIA's programs: the pinned one, or that on PATH.

    Raises:
        FileNotFoundError: it is not installed.
    """
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return str(file.locate())
    if found := shutil.which(name):
        return found
    raise FileNotFoundError(f"{name}: install nvidia-cuda-{name}, of the extra machine-code")
