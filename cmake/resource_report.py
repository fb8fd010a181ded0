"""Tabulates what CUDA kernels use, from the output of ``ptxas -v`` in build logs.

    python cmake/resource_report.py build.log --sources csrc/*/cuda/*.cu

One row a kernel and target: registers, bytes of local memory (its stack) and of spills to it,
static shared memory, and the theoretical occupancy: the share of a multiprocessor's warps that can
be resident with these registers and this shared memory. Dynamic shared memory is chosen at run time
and not part of it. The block size is read from ``__launch_bounds__`` in the sources; without it
there is no occupancy. A bound ``Policy::kName`` is looked up there, and in the headers beside a
source, as ``constexpr int kName = <number>``.

Exit status: 0, or 1 if a kernel spills or has a stack, or 2 if the logs contain no kernel.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor of a target holds."""

    warps: int
    blocks: int
    shared_kib: int
    reserved_shared: int = 1024  # of every block, in bytes
    registers: int = 65536


# From the compute capability tables of the CUDA programming guide.
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64, reserved_shared=0),
    "sm_80": Multiprocessor(64, 32, 164),
    "sm_86": Multiprocessor(48, 16, 100),
    "sm_89": Multiprocessor(48, 24, 100),
    "sm_90": Multiprocessor(64, 32, 228),
    "sm_100": Multiprocessor(64, 32, 228),
    "sm_120": Multiprocessor(48, 24, 100),
}

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<target>sm_\w+)'"
    r"(?:(?!Compiling entry function).)*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spill_stores>\d+) bytes spill stores, "
    r"(?P<spill_loads>\d+) bytes spill loads"
    r"(?:(?!Compiling entry function).)*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
SHARED = re.compile(r"(\d+) bytes smem")
BOUNDS = re.compile(r"__launch_bounds__\(\s*(?:\w+::)*(\w+)[^()]*\)\s*(\w+)\s*\(")
CONSTANT = re.compile(r"constexpr int (\w+) = (\d+);")


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled for one target."""

    name: str
    target: str
    registers: int
    stack: int
    spilled: int
    shared: int

    @property
    def stem(self) -> str:
        """The name without template arguments."""
        return self.name.partition("<")[0]

    def occupancy(self, threads: int) -> float:
        """The share of the target's warps that can be resident in blocks of ``threads``.

        Raises:
            KeyError: the target's limits are not known here.
        """
        limits = MULTIPROCESSORS[self.target]
        warps = -(-threads // 32)
        # A warp gets its registers in units of 256.
        registers_of_warp = -(-self.registers * 32 // 256) * 256
        by_registers = limits.registers // registers_of_warp // warps
        shared = self.shared + limits.reserved_shared
        by_shared = limits.shared_kib * 1024 // shared if shared else limits.blocks
        blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
        return blocks * warps / limits.warps


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
    depth = 0
    for end, character in enumerate(signature):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            signature = signature[:end]
            break
    return re.sub(r"\b\w+::", "", signature)


def parse_log(text: str) -> list[Kernel]:
    """The kernels of a build log, each pair of kernel and target once."""
    matches = list(KERNEL.finditer(text))
    names = demangle(match["name"] for match in matches)
    kernels = {}
    for match in matches:
        shared = SHARED.search(match["rest"])
        kernel = Kernel(
            name=names[match["name"]],
            target=match["target"],
            registers=int(match["registers"]),
            stack=int(match["stack"]),
            spilled=int(match["spill_stores"]) + int(match["spill_loads"]),
            shared=int(shared[1]) if shared else 0,
        )
        kernels[kernel.name, kernel.target] = kernel
    return sorted(kernels.values(), key=lambda k: (k.name, int(k.target[3:].rstrip("af"))))


def block_sizes(sources: Iterable[Path]) -> dict[str, int]:
    """Threads a block by kernel stem."""
    sizes = {}
    for source in sources:
        text = source.read_text()
        headers = [header.read_text() for header in sorted(source.parent.glob("*.h"))]
        found = CONSTANT.findall("".join([*headers, text]))  # a source's own prevail
        constants = {name: int(value) for name, value in found}
        for bound, stem in BOUNDS.findall(text):
            threads = int(bound) if bound.isdigit() else constants.get(bound)
            if threads is not None:
                sizes[stem] = threads
    return sizes


def table(kernels: Sequence[Kernel], threads: dict[str, int]) -> str:
    """A Markdown table, its columns aligned."""
    header = ["kernel", "target", "threads", "registers", "stack", "spilled", "shared", "occupancy"]
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
                str(kernel.stack),
                str(kernel.spilled),
                str(kernel.shared),
                f"{kernel.occupancy(size):.0%}" if known and size is not None else "-",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows[1:])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="What CUDA kernels use, from ptxas -v.")
    parser.add_argument("logs", nargs="+", type=Path, help="build logs that contain its output")
    parser.add_argument("--sources", nargs="*", type=Path, default=[], help="for the block sizes")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    kernels = parse_log("\n".join(log.read_text(errors="replace") for log in options.logs))
    if not kernels:
        print("no kernels: was the build made with -Xptxas -v?", file=sys.stderr)
        return 2
    text = table(kernels, block_sizes(options.sources))
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    spilling = [kernel for kernel in kernels if kernel.spilled or kernel.stack]
    for kernel in spilling:
        print(
            f"{kernel.name} on {kernel.target}: {kernel.spilled} bytes of spills, "
            f"a stack of {kernel.stack}",
            file=sys.stderr,
        )
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
