"""A kernel's main loop as the machine runs it: what an iteration issues, moves and waits for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .control_flow import Graph, Loop, Visit, costliest_way
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
        hot: Where the source has it.
        elements: What a thread computes in an iteration.
        counts: Instructions of a thread by pipe, ``issue`` for all of them.
        global_bytes: What a thread loads and stores.
        in_flight: The most bytes of loads that a thread has issued and not yet waited for.
        instructions: Those of the way, each once.
    """

    hot: Hot
    elements: float
    counts: Mapping[str, float]
    global_bytes: float
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
        NoWayError: the loop has no way that is not rare.
        MarkerError: an expression has no value.
    """
    graph = Graph(function)
    elements = evaluate(hot.elements, names)
    known = {**names, "elements": elements}

    starts = {loop.header: _start(graph, loop, markers) for loop in graph.loops}

    def is_rare(block: int) -> bool:
        # Where branches meet again, lines are those of either side.
        if block not in graph.sides:
            return False
        instructions = graph.blocks[block].instructions
        if any(map(_is_slow_path, instructions)):
            return True
        marked = sum(markers.find("rare", i) is not None for i in instructions)
        return 2 * marked >= len(instructions) or is_remainder(block, instructions)

    def is_remainder(block: int, instructions: Sequence[Instruction]) -> bool:
        # Of a loop that the compiler unrolled: its body once more, behind the loop.
        bodies = Counter(start for i in instructions for start in markers.loops_of(i))
        for start, times in bodies.items():
            loops = [loop for loop in graph.loops if starts[loop.header] == start]
            if loops and 2 * times >= len(instructions) and graph.is_behind(block, loops):
                return True
        return False

    def trips(loop: Loop, way: list[Visit]) -> float:
        start = starts[loop.header]
        if start is None:
            return 1.0
        moved = {"accessed": 0.0, "shared": 0.0}
        for visit in way:
            for instruction in graph.blocks[visit.block].instructions:
                if is_global(instruction):
                    moved["accessed"] += access_bytes(instruction) * visit.times
                elif instruction.base in _SHARED:
                    moved["shared"] += access_bytes(instruction) * visit.times
        return evaluate(markers.lines["trips"][start], {**known, **moved})

    way = costliest_way(graph, _main_loop(graph, hot), is_rare, trips)
    counts: defaultdict[str, float] = defaultdict(float)
    global_bytes = 0.0
    for visit in way:
        for instruction in graph.blocks[visit.block].instructions:
            counts["issue"] += visit.times
            if pipe := PIPE_OF.get(instruction.base):
                counts[pipe] += visit.times
            if is_global(instruction):
                global_bytes += access_bytes(instruction) * visit.times
    passed = [i for visit in way if visit.times for i in graph.blocks[visit.block].instructions]
    return HotPath(hot, elements, counts, global_bytes, bytes_in_flight(passed), passed)


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
    start = Place(hot.file, hot.first)
    loops = [loop for loop in graph.loops if start in _branches_back(graph, loop)]
    return max(loops, key=lambda loop: len(loop.blocks), default=None)


def _branches_back(graph: Graph, loop: Loop) -> set[Place]:
    """The lines that the branches back to a loop's header come from."""
    latches = [graph.blocks[latch].instructions[-1] for latch in loop.latches]
    return {place for branch in latches for place in branch.places}


def _start(graph: Graph, loop: Loop, markers: Markers) -> Place | None:
    """The ``for`` of a loop if it says how often it runs: the innermost one that is marked."""
    for latch in loop.latches:
        for place in graph.blocks[latch].instructions[-1].places:
            if place in markers.bodies:
                return place
    return None
