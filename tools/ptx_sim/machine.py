"""The scheduler: which threads execute which block of instructions, and when barriers release them.

A group of threads runs in lockstep. If its lanes diverge at a branch, the lanes at the lowest index in the program run
first, so that they reconverge at the end of structured code. In CTA mode a group holds all threads of as many CTAs as
fit, which is fast. In warp mode every warp is a group, and warps run one after another, in random order, from barrier
to barrier. Both modes detect the same races; what a racing warp reads differs. Scheduling is not fair: a CTA that spins
until another CTA stores something ends as Endless.
"""

from typing import NamedTuple

import numpy as np

from . import async_copy, convert, floating, integer, matrix, memory_ops, warp  # noqa: F401, register the opcodes
from .errors import DivergentBarrier, Endless, Fault, UnknownOpcode
from .lanes import WARP, Batch, Grid, Lanes, Step
from .operands import compile_instruction
from .parser import Instruction, Program
from .types import Array, Mask

_RUNNING, _EXITED = -1, -2
_LANES_AT_ONCE = 4096


class Block(NamedTuple):
    first: int
    straight: list[tuple[Step, Instruction]]
    end: int  # index of the branch, barrier or exit that ends it, or of the instruction it falls through to


def _control(instruction: Instruction, program: Program) -> str | None:
    """Return "branch", "exit" or "barrier" for an instruction that ends a block, else None."""
    family, qualifiers = instruction.family, instruction.qualifiers
    if family == "bra":
        if instruction.operands[0] not in program.labels:
            raise UnknownOpcode("branch to an unknown label").locate(instruction, "before the launch")
        return "branch"
    if family in ("ret", "exit"):
        return "exit"
    if family in ("bar", "barrier") and qualifiers[:1] != ["warp"]:
        whole = instruction.operands in (("0",), ("0", str(program.threads)))
        if not whole or qualifiers not in (["sync"], ["cta", "sync"], ["sync", "aligned"], ["cta", "sync", "aligned"]):
            raise UnknownOpcode(f"unknown barrier: {instruction.opcode}").locate(instruction, "before the launch")
        return "barrier"
    return None


class Code:
    """A program compiled to steps and divided into basic blocks."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.control = [_control(instruction, program) for instruction in program.instructions]
        self.steps = [
            None if control else compile_instruction(instruction, program)
            for instruction, control in zip(program.instructions, self.control, strict=True)
        ]
        self.starts = {0, *program.labels.values()}
        self.starts |= {index + 1 for index, control in enumerate(self.control) if control}
        self.blocks = {first: self._block(first) for first in self.starts}

    def _block(self, first: int) -> Block:
        index, straight = first, []
        while index < len(self.steps) and (step := self.steps[index]) and (index == first or index not in self.starts):
            straight.append((step, self.program.instructions[index]))
            index += 1
        return Block(first, straight, index)


class Group:
    """Lanes that run in lockstep, and the place in the program that each of them has reached."""

    def __init__(self, code: Code, lanes: Lanes, max_blocks: int) -> None:
        self.code = code
        self.lanes = lanes
        self.counters = lanes.batch.grid.counters
        self.blocks_left = max_blocks
        # The lanes about to run from an instruction, by its index.
        self.entries: dict[int, Array] = {0: np.ones(lanes.count, np.bool_)}
        # _RUNNING, _EXITED, or the index of the barrier at which a lane waits.
        self.state = np.full(lanes.count, _RUNNING)

    def run(self) -> None:
        """Run until every lane waits at a barrier or has exited."""
        while self.entries:
            index = min(self.entries)
            mask = self.entries.pop(index)
            self.blocks_left -= 1
            if self.blocks_left < 0:
                where = self.lanes.describe(int(mask.argmax()))
                raise Endless(f"still running after max_blocks blocks, {where}")
            self._run_block(self.code.blocks[index], mask)

    def _run_block(self, block: Block, mask: Array) -> None:
        everywhere = bool(mask.all())
        base: Mask = None if everywhere else mask
        lanes = self.lanes
        try:
            for step, instruction in block.straight:
                executing = base
                if instruction.guard is not None:
                    executing = guarded = self._guarded(instruction.guard, instruction.guard_is_negated, mask)
                    if guarded.all():
                        executing = None
                    elif not guarded.any():
                        continue
                step(lanes, executing)
        except Fault as fault:
            where = lanes.describe(int(mask.argmax()) if fault.lane is None else fault.lane)
            raise fault.locate(instruction, where) from None
        last = block.end
        if last >= len(self.code.steps):
            self.state[mask] = _EXITED
            last -= 1
        elif self.code.control[last]:
            self._end_block(last, mask)
        else:
            self._enter(last, mask)
            last -= 1
        if last >= block.first:
            warps = lanes.cta[::WARP] if everywhere else lanes.cta[::WARP][mask.reshape(-1, WARP).any(1)]
            self.counters.issue(block.first, last, warps)

    def _guarded(self, guard: str, is_negated: bool, mask: Array) -> Array:
        chosen = self.lanes.registers[guard]
        return (~chosen if is_negated else chosen) & mask

    def _end_block(self, index: int, mask: Array) -> None:
        instruction = self.code.program.instructions[index]
        chosen = mask
        if instruction.guard is not None:
            chosen = self._guarded(instruction.guard, instruction.guard_is_negated, mask)
        control = self.code.control[index]
        if control == "branch":
            self._enter(self.code.program.labels[instruction.operands[0]], chosen)
        else:
            self.state[chosen] = index if control == "barrier" else _EXITED
        if chosen is not mask:
            self._enter(index + 1, mask & ~chosen)

    def _enter(self, index: int, mask: Array) -> None:
        if mask.any():
            self.entries[index] = self.entries[index] | mask if index in self.entries else mask

    def resume(self, released: Array) -> None:
        """Let the lanes of the released CTAs continue behind their barriers. `released` is bool [CTAs of the batch]."""
        leaving = released[self.lanes.cta_index] & (self.state >= 0)
        for index in np.unique(self.state[leaving]):
            self._enter(int(index) + 1, leaving & (self.state == index))
        self.state[leaving] = _RUNNING


def run_batch(code: Code, grid: Grid, first: int, count: int, by_warp: bool, max_blocks: int) -> None:
    """Run CTAs `first` to `first + count - 1` to their end."""
    batch = Batch(grid, first, count)
    thread = np.tile(np.arange(batch.threads, dtype=np.uint32), count)
    cta_index = np.repeat(np.arange(count), batch.threads)
    pieces = thread.size // WARP if by_warp else 1
    groups = [
        Group(code, Lanes(batch, threads, indices), max_blocks)
        for threads, indices in zip(np.split(thread, pieces), np.split(cta_index, pieces), strict=True)
    ]
    while True:
        for index in grid.random.permutation(len(groups)):
            groups[index].run()
        state = np.concatenate([group.state for group in groups]).reshape(count, batch.threads)
        _check_barriers(code, batch, state)
        released = state[:, 0] >= 0
        if not released.any():
            return
        batch.interval += released
        for group in groups:
            group.resume(released)


def _check_barriers(code: Code, batch: Batch, state: Array) -> None:
    """Check that the threads of each CTA (`state` [CTAs, threads]) wait at the same barrier or have all exited."""
    split = (state != state[:, :1]).any(1)
    if not split.any():
        return
    cta_index = split.argmax()
    states, threads = np.unique(state[cta_index], return_counts=True)
    found = [
        f"{number} threads " + ("have exited" if index == _EXITED else f"wait at {_describe(code, index)}")
        for index, number in zip(states, threads, strict=True)
    ]
    raise DivergentBarrier(f"in CTA {batch.first + cta_index}, " + " and ".join(found))


def _describe(code: Code, index: int) -> str:
    instruction = code.program.instructions[index]
    return f"`{instruction.text}` (PTX line {instruction.line}, {instruction.source})"


def run_grid(code: Code, grid: Grid, by_warp: bool, max_blocks: int) -> None:
    """Run all CTAs of a grid, in random order."""
    width, height, depth = grid.shape
    ctas = width * height * depth
    at_once = 1 if by_warp else max(1, _LANES_AT_ONCE // code.program.threads)
    with np.errstate(all="ignore"):
        for start in grid.random.permutation(np.arange(0, ctas, at_once)):
            run_batch(code, grid, int(start), min(at_once, ctas - int(start)), by_warp, max_blocks)
