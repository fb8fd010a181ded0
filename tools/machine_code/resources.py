"""What every kernel of a library uses of a multiprocessor, for each target that it has code for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .disassembly import program

# What a launch gets without an opt-in, static and dynamic together: csrc/common/device/limits.h.
SHARED_OF_LAUNCH = 48 << 10


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor of a target holds."""

    warps: int
    blocks: int
    shared_kib: int
    reserved_shared: int = 1024  # of every block, in bytes
    counts_reserved: bool = False  # as part of a kernel's static memory
    registers: int = 65536


# From the compute capability tables of the CUDA programming guide.
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64, reserved_shared=0),
    "sm_80": Multiprocessor(64, 32, 164),
    "sm_86": Multiprocessor(48, 16, 100),
    "sm_89": Multiprocessor(48, 24, 100),
    "sm_90": Multiprocessor(64, 32, 228, counts_reserved=True),
    "sm_100": Multiprocessor(64, 32, 228, counts_reserved=True),
    "sm_120": Multiprocessor(48, 24, 100, counts_reserved=True),
}

_TARGET = re.compile(r"^arch = (sm_\w+)", re.MULTILINE)
_FUNCTION = re.compile(r"^ Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.M)
_BOUNDS = re.compile(r"__launch_bounds__\(\s*(?:\w+::)*(\w+)(?:[^()]|\([^()]*\))*\)\s*(\w+)\s*\(")
_CONSTANT = re.compile(r"constexpr int (\w+) = (\d+);")


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled for one target: bytes of local memory and of static shared memory."""

    name: str
    target: str
    registers: int
    local: int
    shared: int

    @property
    def stem(self) -> str:
        """The name without template arguments."""
        return self.name.partition("<")[0]

    def warps(self, threads: int, dynamic: float = 0) -> int:
        """The warps of blocks of ``threads`` that are resident on a multiprocessor.

        Args:
            threads: Of a block.
            dynamic: Its dynamic shared memory in bytes.

        Raises:
            KeyError: the target's limits are not known here.
        """
        limits = MULTIPROCESSORS[self.target]
        warps = -(-threads // 32)
        # A warp gets its registers in units of 256.
        registers_of_warp = -(-self.registers * 32 // 256) * 256
        by_registers = limits.registers // registers_of_warp // warps
        shared = self.shared + dynamic + limits.reserved_shared
        by_shared = int(limits.shared_kib * 1024 // shared) if shared else limits.blocks
        return min(limits.blocks, limits.warps // warps, by_registers, by_shared) * warps

    def occupancy(self, threads: int) -> float:
        """The share of the target's warps that can be resident, without dynamic shared memory."""
        return self.warps(threads) / MULTIPROCESSORS[self.target].warps


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Readable names: without namespaces and parameters, mangled where there is no ``c++filt``."""
    unique = sorted(set(names))
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not unique:
        return {name: name for name in unique}
    answer = subprocess.run([tool, *unique], capture_output=True, text=True, check=True)
    return {
        name: shorten(line) for name, line in zip(unique, answer.stdout.splitlines(), strict=True)
    }


def shorten(signature: str) -> str:
    """``void ns::(anonymous namespace)::kernel<ns::T, 4>(int)`` as ``kernel<T, 4>``."""
    signature = signature.replace("(anonymous namespace)::", "").removeprefix("void ")
    signature = re.sub(r"\((?:bool|int)\)(\d+)", r"\1", signature)  # cu++filt's template arguments
    depth = 0
    for end, character in enumerate(signature):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            signature = signature[:end]
            break
    return re.sub(r"\b\w+::", "", signature)


def kernels_of(binary: Path) -> list[Kernel]:
    """The kernels of an object file or library, by name and target."""
    command = [program("cuobjdump"), "-res-usage", str(binary)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse(answer.stdout)


def parse(text: str) -> list[Kernel]:
    """The kernels in what ``cuobjdump -res-usage`` prints."""
    targets = [(match.start(), match[1]) for match in _TARGET.finditer(text)]
    matches = list(_FUNCTION.finditer(text))
    names = demangle(match[1] for match in matches)
    kernels = []
    for match in matches:
        target = next((t for start, t in reversed(targets) if start < match.start()), "")
        limits = MULTIPROCESSORS.get(target)
        shared = int(match[4])
        if limits and limits.counts_reserved and shared >= limits.reserved_shared:
            shared -= limits.reserved_shared
        local = int(match[3]) + int(match[5])
        kernels.append(Kernel(names[match[1]], target, int(match[2]), local, shared))
    return sorted(kernels, key=lambda k: (k.name, int(re.sub(r"\D", "", k.target) or 0)))


def block_sizes(sources: Iterable[Path]) -> dict[str, int]:
    """Threads a block by kernel stem, from ``__launch_bounds__``.

    A bound ``Policy::kName`` is looked up in the source and in the headers beside it, as
    ``constexpr int kName = <number>``.
    """
    sizes = {}
    for source in sources:
        text = source.read_text(encoding="utf-8")
        headers = [h.read_text(encoding="utf-8") for h in sorted(source.parent.glob("*.h"))]
        found = _CONSTANT.findall("".join([*headers, text]))  # a source's own prevail
        constants = {name: int(value) for name, value in found}
        for bound, stem in _BOUNDS.findall(text):
            threads = int(bound) if bound.isdigit() else constants.get(bound)
            if threads is not None:
                sizes[stem] = threads
    return sizes


def table(kernels: Sequence[Kernel], threads: Mapping[str, int]) -> str:
    """One row a kernel and target: a Markdown table, its columns aligned."""
    header = ["kernel", "target", "threads", "registers", "local", "shared", "occupancy"]
    rows = [header]
    for kernel in kernels:
        size = threads.get(kernel.stem)
        known = size is not None and kernel.target in MULTIPROCESSORS
        rows.append(
            [
                kernel.name,
                kernel.target,
                str(size or "-"),
                str(kernel.registers),
                str(kernel.local),
                str(kernel.shared),
                f"{kernel.occupancy(size):.0%}" if known and size is not None else "-",
            ]
        )
    return aligned(rows, texts=2)


def aligned(rows: Sequence[Sequence[str]], texts: int) -> str:
    """A Markdown table with its columns aligned, the first ``texts`` as text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if i < texts else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])])
