"""Blocks and loops of a function, and the most expensive way through a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .disassembly import Function, Instruction

_ENDS = ("BRA", "EXIT", "RET", "BRX", "JMP")


@dataclass
class Block:
    """Instructions that run one after another."""

    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A natural loop: every way into it leads through its header."""

    header: int
    blocks: set[int]
    latches: set[int]  # branch back to the header
    children: list[Loop] = field(default_factory=list)


class NoWayError(ValueError):
    """A loop is not there, or what may be counted of it has no way through it."""


class Graph:
    """The control flow of a function. Block 0 is the entry."""

    def __init__(self, function: Function) -> None:
        self.blocks = _blocks_of(function)

    @cached_property
    def order(self) -> list[int]:
        """The blocks that can be reached, each before its successors but for loops."""
        seen: set[int] = set()
        order: list[int] = []
        stack: list[tuple[int, int]] = [(0, 0)] if self.blocks else []
        while stack:
            block, position = stack.pop()
            seen.add(block)
            successors = self.blocks[block].successors
            while position < len(successors) and successors[position] in seen:
                position += 1
            if position == len(successors):
                order.append(block)
            else:
                stack += [(block, position + 1), (successors[position], 0)]
        return order[::-1]

    @cached_property
    def position(self) -> dict[int, int]:
        """Of each block in the order."""
        return {block: i for i, block in enumerate(self.order)}

    @cached_property
    def predecessors(self) -> dict[int, list[int]]:
        """Of each block that can be reached, those that lead to it."""
        predecessors: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for successor in self.blocks[block].successors:
                predecessors[successor].append(block)
        return predecessors

    @cached_property
    def sides(self) -> set[int]:
        """The blocks that one branch leads to and that its other side avoids."""
        sides = set()
        for block, predecessors in self.predecessors.items():
            before = [other for other in predecessors if not self._is_back(other, block)]
            if len(before) == 1 and len(self._onward(before[0])) > 1:
                sides.add(block)
        return sides

    @cached_property
    def loops(self) -> list[Loop]:
        """All loops, an inner one before those around it; children are direct ones alone."""
        dominators = self._dominators()
        found: dict[int, Loop] = {}
        for block in self.order:
            for header in self.blocks[block].successors:
                if header not in dominators[block]:
                    continue
                loop = found.setdefault(header, Loop(header, {header}, set()))
                loop.latches.add(block)
                pending = [block]
                while pending:
                    inside = pending.pop()
                    if inside not in loop.blocks:
                        loop.blocks.add(inside)
                        pending += self.predecessors[inside]
        loops = sorted(found.values(), key=lambda loop: len(loop.blocks))
        for i, loop in enumerate(loops):
            around = next((o for o in loops[i + 1 :] if loop.header in o.blocks), None)
            if around is not None:
                around.children.append(loop)
        return loops

    def _dominators(self) -> dict[int, set[int]]:
        everything = set(self.order)
        dominators = dict.fromkeys(self.order, everything)
        if self.order:
            dominators[0] = {0}
        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                common = set.intersection(*(dominators[p] for p in self.predecessors[block]))
                common = common | {block}
                if common != dominators[block]:
                    dominators[block] = common
                    changed = True
        return dominators

    def is_behind(self, block: int, loops: Sequence[Loop]) -> bool:
        """Whether a block is in none of some loops, and leads to none but around a further loop."""
        headers = {loop.header for loop in loops}
        seen, pending = {block}, [block]
        while pending:
            at = pending.pop()
            if at in headers:
                return False
            onward = self._onward(at)
            pending += [other for other in onward if other not in seen]
            seen.update(onward)
        first = min(self.position[header] for header in headers)
        return self.position[block] > first and not any(block in loop.blocks for loop in loops)

    def _onward(self, block: int) -> list[int]:
        return [other for other in self.blocks[block].successors if not self._is_back(block, other)]

    def _is_back(self, block: int, successor: int) -> bool:
        return self.position[successor] <= self.position[block]

    def outermost_loops(self) -> list[Loop]:
        """The loops that are in no other."""
        inner = {id(child) for loop in self.loops for child in loop.children}
        return [loop for loop in self.loops if id(loop) not in inner]


@dataclass(frozen=True)
class Visit:
    """A block on a way, and how often it runs there."""

    block: int
    times: float


def costliest_way(
    graph: Graph,
    loop: Loop | None,
    is_rare: Callable[[int], bool],
    trips: Callable[[Loop, list[Visit]], float],
) -> list[Visit]:
    """The way through one iteration of a loop, or through the function, that issues most.

    A choice between two sides that leads over the more expensive one needs no knowledge of block
    numbers, which change with every build; what should not be counted is called rare.

    Args:
        graph: The function's.
        loop: Nothing: the whole function, from its entry to an exit.
        is_rare: Whether a block is not to be entered.
        trips: How often an inner loop runs, given the way through one of its iterations.

    Raises:
        NoWayError: every way leads over rare blocks.
    """
    children = loop.children if loop else graph.outermost_loops()
    child_of = {block: child for child in children for block in child.blocks}
    inside = loop.blocks if loop else set(graph.order)
    entry = loop.header if loop else 0

    def node_of(block: int) -> int:
        return child_of[block].header if block in child_of else block

    def successors(node: int) -> Iterable[int]:
        blocks = child_of[node].blocks if node in child_of else {node}
        for block in blocks:
            for successor in graph.blocks[block].successors:
                if successor in inside and successor not in blocks and successor != entry:
                    yield successor

    def ends(node: int) -> bool:
        blocks = child_of[node].blocks if node in child_of else {node}
        if loop:
            return not blocks.isdisjoint(loop.latches)
        return any(_leaves(graph.blocks[block]) for block in blocks)

    ways: dict[int, tuple[float, list[Visit]] | None] = {}  # from a node to the end

    def inner_way(child: Loop) -> list[Visit] | None:
        try:
            way = costliest_way(graph, child, is_rare, trips)
        except NoWayError:
            return None
        times = trips(child, way)
        return [Visit(visit.block, visit.times * times) for visit in way]

    nodes = {node_of(block) for block in inside}
    for node in sorted(nodes, key=graph.position.__getitem__, reverse=True):
        if is_rare(node) and node != entry:
            ways[node] = None
            continue
        own = inner_way(child_of[node]) if node in child_of else [Visit(node, 1.0)]
        rest: tuple[float, list[Visit]] | None = (0.0, []) if ends(node) else None
        for successor in successors(node):
            way = ways.get(successor)
            if way is not None and (rest is None or way[0] > rest[0]):
                rest = way
        if own is None or rest is None:
            ways[node] = None
            continue
        cost = sum(len(graph.blocks[visit.block].instructions) * visit.times for visit in own)
        ways[node] = (cost + rest[0], own + rest[1])
    found = ways.get(node_of(entry))
    if found is None:
        raise NoWayError("every way through the loop leads over lines that are marked as rare")
    return found[1]


def _leaves(block: Block) -> bool:
    last = block.instructions[-1]
    return last.base in ("EXIT", "RET")


def _blocks_of(function: Function) -> list[Block]:
    instructions = function.instructions
    starts = {0, *function.labels.values()}
    for i, instruction in enumerate(instructions):
        if instruction.base in _ENDS:
            starts.add(i + 1)
    ordered = sorted(start for start in starts if start < len(instructions))
    number = {start: i for i, start in enumerate(ordered)}
    blocks = []
    for i, start in enumerate(ordered):
        end = ordered[i + 1] if i + 1 < len(ordered) else len(instructions)
        block = Block(instructions[start:end])
        last = block.instructions[-1]
        goes_on = last.base not in _ENDS or last.is_conditional
        if goes_on and i + 1 < len(ordered):
            block.successors.append(i + 1)
        if last.base == "BRA" and last.target is not None and not last.diverges:
            at = function.labels.get(last.target)
            if at in number and number[at] not in block.successors:
                block.successors.append(number[at])
        blocks.append(block)
    return blocks
