"""A kernel's main loop as the machine runs it: what an iteration issues, moves and waits for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .control_flow import Graph, Loop, NoWayError, Visit, costliest_way
from .disassembly import Function, Instruction, Place
from .markers import Hot, Markers, Value, evaluate

_PIPES = {
    "FMA": "FFMA FADD FMUL FSWZADD IMAD HADD2 HFMA2 HMUL2 FFMA32I FADD32I FMUL32I",
    "ALU": "ISETP FSETP LOP3 SHF IADD3 PRMT FMNMX SEL FSEL PLOP3 LEA VIADD IABS IMNMX VIMNMX P2R "
    "R2P FSET BMSK SGXT PSETP VOTE FCHK F2FP SHL SHR LOP I2FP F2IP HMNMX2 HSETP2 MOV CS2R VABSDIFF",
    "XU": "MUFU F2F F2I I2F FRND I2I POPC FLO BREV",
    "LSU": "LD LDG LDS LDL LDSM ST STG STS STL ATOM ATOMG ATOMS RED SHFL MATCH",
    "FP64": "DADD DMUL DFMA DSETP DMNMX",
}
# What is in none (branches, barriers, uniform instructions) takes an issue slot alone.
PIPE_OF = {opcode: pipe for pipe, opcodes in _PIPES.items() for opcode in opcodes.split()}

# What divisions and roots call for numbers that their instructions in line do not take.
_SLOW_PATH = re.compile(r"__internal_\d+_\$__cuda_\w*(?:slowpath|mediumpath|f64_full)")

_GLOBAL = ("LDG", "STG", "LD", "ST")
_GLOBAL_LOADS = ("LDG", "LD")
_SHARED = ("LDS", "STS")
_WIDTH = re.compile(r"\.(?:[US]?(8|16)|(64|128|256))(?:\.|$)")
_REGISTER = re.compile(r"\bR(\d+)\b")


def access_bytes(instruction: Instruction) -> int:
    """The bytes that a thread loads or stores."""
    match = _WIDTH.search(instruction.opcode)
    return int(match[1] or match[2]) // 8 if match else 4


def is_global(instruction: Instruction) -> bool:
    """Whether it loads from or stores to global memory, or to what the compiler does not know."""
    return instruction.base in _GLOBAL


@dataclass(frozen=True)
class HotPath:
    """One iteration of a main loop, along its most expensive way that is not rare.

    Attributes:
        elements: What a thread computes in an iteration.
        counts: Instructions of a thread by pipe, ``issue`` for all of them.
        in_flight: The most bytes of loads that a thread has issued and not yet waited for.
        instructions: Those of the way, each once.
    """

    elements: float
    counts: Mapping[str, float]
    in_flight: int
    instructions: Sequence[Instruction]

    def per_element(self, pipe: str) -> float:
        """Instructions an element."""
        return self.counts.get(pipe, 0.0) / self.elements


def hot_path(function: Function, markers: Markers, hot: Hot, names: Mapping[str, Value]) -> HotPath:
    """The main loop of a function.

    Args:
        function: A kernel.
        markers: Of the sources that it was compiled from.
        hot: Its main loop.
        names: What expressions may contain.

    Raises:
        NoWayError: the loop is not there, or has no way that is not rare.
        MarkerError: an expression has no value.
    """
    graph = Graph(function)
    elements = evaluate(hot.elements, names)
    lines = _Lines(graph, markers, {**names, "elements": elements})
    way = costliest_way(graph, _main_loop(graph, hot), lines.is_rare, lines.trips)
    counts: defaultdict[str, float] = defaultdict(float)
    for visit in way:
        for instruction in graph.blocks[visit.block].instructions:
            counts["issue"] += visit.times
            if pipe := PIPE_OF.get(instruction.base):
                counts[pipe] += visit.times
    passed = [i for visit in way if visit.times for i in graph.blocks[visit.block].instructions]
    return HotPath(elements, counts, bytes_in_flight(passed), passed)


class _Lines:
    """What the markers of a function's lines mean for its blocks and loops."""

    def __init__(self, graph: Graph, markers: Markers, names: Mapping[str, Value]) -> None:
        self.graph = graph
        self.markers = markers
        self.names = names
        self.starts = {loop.header: self._start(loop) for loop in graph.loops}

    def is_rare(self, block: int) -> bool:
        # Where branches meet again, lines are those of either side.
        if block not in self.graph.sides:
            return False
        instructions = self.graph.blocks[block].instructions
        if any(map(_is_slow_path, instructions)):
            return True
        marked = sum(self.markers.find("rare", i) is not None for i in instructions)
        return 2 * marked >= len(instructions) or self._is_remainder(block)

    def _is_remainder(self, block: int) -> bool:
        """Whether it is of a loop that was unrolled: the body once more, behind the loop."""
        instructions = self.graph.blocks[block].instructions
        bodies = Counter(start for i in instructions for start in self.markers.loops_of(i))
        for start, times in bodies.items():
            loops = [loop for loop in self.graph.loops if self.starts[loop.header] == start]
            if loops and 2 * times >= len(instructions) and self.graph.is_behind(block, loops):
                return True
        return False

    def trips(self, loop: Loop, way: list[Visit]) -> float:
        start = self.starts[loop.header]
        if start is None:
            return 1.0
        moved = {"accessed": 0.0, "shared": 0.0}
        for visit in way:
            for instruction in self.graph.blocks[visit.block].instructions:
                if is_global(instruction):
                    moved["accessed"] += access_bytes(instruction) * visit.times
                elif instruction.base in _SHARED:
                    moved["shared"] += access_bytes(instruction) * visit.times
        return evaluate(self.markers.lines["trips"][start], {**self.names, **moved})

    def _start(self, loop: Loop) -> Place | None:
        """The ``for`` of a loop if it says how often it runs: the innermost one that is marked."""
        for branch in _branches_back(self.graph, loop):
            for place in branch.places:
                if place in self.markers.bodies:
                    return place
        return None


def bytes_in_flight(iteration: Iterable[Instruction]) -> int:
    """The most bytes of global loads that wait at once while an iteration runs again and again.

    A load is waited for where its register is named next; loads before it have then arrived, too.
    """
    instructions = list(iteration)
    waiting: list[tuple[set[int], int]] = []  # registers and bytes of loads, in the order of issue
    most = 0
    for instruction in [*instructions, *instructions]:
        named = {int(number) for number in _REGISTER.findall(instruction.operands)}
        for i in reversed(range(len(waiting))):
            if waiting[i][0] & named:
                del waiting[: i + 1]
                break
        if instruction.base in _GLOBAL_LOADS:
            size = access_bytes(instruction)
            first = _REGISTER.search(instruction.operands)
            if first:
                registers = range(int(first[1]), int(first[1]) + max(size // 4, 1))
                waiting.append((set(registers), size))
                most = max(most, sum(load[1] for load in waiting))
    return most


def _is_slow_path(instruction: Instruction) -> bool:
    return instruction.base == "CALL" and _SLOW_PATH.search(instruction.operands) is not None


def _main_loop(graph: Graph, hot: Hot) -> Loop | None:
    """The loop whose ``for`` is the first line of a region; of several copies the largest."""
    if not hot.is_loop:
        return None
    start = Place(hot.file, hot.first)
    found = [
        loop
        for loop in graph.loops
        if any(start in branch.places for branch in _branches_back(graph, loop))
    ]
    if not found:
        raise NoWayError(f"no loop branches back to line {hot.first}, where it is marked")
    return max(found, key=lambda loop: len(loop.blocks))


def _branches_back(graph: Graph, loop: Loop) -> list[Instruction]:
    return [graph.blocks[latch].instructions[-1] for latch in sorted(loop.latches)]
