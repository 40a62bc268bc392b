"""Runs a program: which threads execute which block of instructions, and when barriers let them go on.

A group of threads runs in lock step. Where its lanes part at a branch, the lanes at the lowest place in the program
go first, which brings them together again at the end of structured code. In CTA mode a group is all the threads of as
many CTAs as fit, which is fast; in warp mode every warp is a group, and warps run one after another, in random order,
from barrier to barrier. Both see the same races; what a racing warp reads differs. A CTA that spins until another CTA
stores something is not helped by any fairness here, and ends as Endless.
"""

from typing import NamedTuple

import numpy as np

from . import async_copy, convert, floating, integer, matrix, memory_ops, warp  # noqa: F401 - the opcodes
from .errors import DivergentBarrier, Endless, Fault, UnknownOpcode
from .lanes import WARP, Batch, Lanes
from .operands import compile_instruction

_RUNNING, _EXITED = -1, -2
_LANES_AT_ONCE = 4096


class Block(NamedTuple):
    first: int
    straight: list  # of (step, instruction)
    end: int  # index of the branch, barrier or exit that ends it, or of the instruction it falls through to


def _control(instruction, program):
    """ "branch", "exit" or "barrier" for an instruction that ends a block."""
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
    """A program compiled to steps and cut into blocks."""

    def __init__(self, program):
        self.program = program
        self.control = [_control(instruction, program) for instruction in program.instructions]
        self.steps = [
            None if control else compile_instruction(instruction, program)
            for instruction, control in zip(program.instructions, self.control, strict=True)
        ]
        self.starts = {0, *program.labels.values()}
        self.starts |= {place + 1 for place, control in enumerate(self.control) if control}
        self.blocks = {first: self._block(first) for first in self.starts}

    def _block(self, first):
        place, straight = first, []
        while place < len(self.steps) and not self.control[place] and (place == first or place not in self.starts):
            straight.append((self.steps[place], self.program.instructions[place]))
            place += 1
        return Block(first, straight, place)


class Group:
    """Lanes that run in lock step, and where each of them is."""

    def __init__(self, code, lanes, counters, max_blocks):
        self.code = code
        self.lanes = lanes
        self.counters = counters
        self.blocks_left = max_blocks
        self.entries = {0: np.ones(lanes.count, np.bool_)}  # place -> the lanes about to run from there
        self.state = np.full(lanes.count, _RUNNING)  # or the place of the barrier that a lane waits at

    def run(self):
        """Until every lane waits at a barrier or has exited."""
        while self.entries:
            place = min(self.entries)
            mask = self.entries.pop(place)
            self.blocks_left -= 1
            if self.blocks_left < 0:
                raise Endless(f"still running after many blocks, {self.lanes.describe(mask.argmax())}")
            self._run_block(self.code.blocks[place], mask)

    def _run_block(self, block, mask):
        everywhere = bool(mask.all())
        base = None if everywhere else mask
        lanes = self.lanes
        try:
            for step, instruction in block.straight:
                executing = base
                if instruction.guard is not None:
                    executing = self._guarded(instruction, mask)
                    if executing.all():
                        executing = None
                    elif not executing.any():
                        continue
                step(lanes, executing)
        except Fault as fault:
            where = lanes.describe(mask.argmax() if fault.lane is None else fault.lane)
            raise fault.locate(instruction, where) from None
        last = block.end
        if last >= len(self.code.steps):
            self.state[mask] = _EXITED
            last -= 1
        elif self.code.control[last]:
            self._end_block(last, mask)
        else:
            self._go(last, mask)
            last -= 1
        if last >= block.first:
            warps = lanes.count // WARP if everywhere else int(mask.reshape(-1, WARP).any(1).sum())
            self.counters.runs[block.first, last] += warps

    def _guarded(self, instruction, mask):
        chosen = self.lanes.registers[instruction.guard]
        return (~chosen if instruction.guard_is_negated else chosen) & mask

    def _end_block(self, place, mask):
        instruction = self.code.program.instructions[place]
        chosen = mask if instruction.guard is None else self._guarded(instruction, mask)
        control = self.code.control[place]
        if control == "branch":
            self._go(self.code.program.labels[instruction.operands[0]], chosen)
        else:
            self.state[chosen] = place if control == "barrier" else _EXITED
        if chosen is not mask:
            self._go(place + 1, mask & ~chosen)

    def _go(self, place, mask):
        if mask.any():
            self.entries[place] = self.entries[place] | mask if place in self.entries else mask

    def resume(self, released):
        """Lets the lanes of the released CTAs go on behind their barriers."""
        leaving = released[self.lanes.cta_slot] & (self.state >= 0)
        for place in np.unique(self.state[leaving]):
            self._go(int(place) + 1, leaving & (self.state == place))
        self.state[leaving] = _RUNNING


def run_batch(code, launch, first, count, by_warp, max_blocks):
    """Runs CTAs first to first + count - 1 to their end."""
    batch = Batch(launch, first, count)
    thread = np.tile(np.arange(batch.threads, dtype=np.uint32), count)
    slot = np.repeat(np.arange(count), batch.threads)
    pieces = thread.size // WARP if by_warp else 1
    groups = [
        Group(code, Lanes(batch, some_threads, some_slots), launch.counters, max_blocks)
        for some_threads, some_slots in zip(np.split(thread, pieces), np.split(slot, pieces), strict=True)
    ]
    while True:
        for index in launch.random.permutation(len(groups)):
            groups[index].run()
        state = np.concatenate([group.state for group in groups]).reshape(count, batch.threads)
        _check_barriers(code, batch, state)
        released = state[:, 0] >= 0
        if not released.any():
            return
        batch.interval += released
        for group in groups:
            group.resume(released)


def _check_barriers(code, batch, state):
    """All threads of a CTA must wait at one barrier, or all have exited. `state` is [ctas, threads]."""
    split = (state != state[:, :1]).any(1)
    if not split.any():
        return
    slot = split.argmax()
    places, threads = np.unique(state[slot], return_counts=True)
    stories = [
        f"{number} threads " + ("have exited" if place == _EXITED else f"wait at {_describe(code, place)}")
        for place, number in zip(places, threads, strict=True)
    ]
    raise DivergentBarrier(f"in CTA {batch.first + slot}, " + " and ".join(stories))


def _describe(code, place):
    instruction = code.program.instructions[place]
    return f"`{instruction.text}` (PTX line {instruction.line}, {instruction.source})"


def run_grid(code, launch, by_warp, max_blocks):
    width, height, depth = launch.grid
    ctas = width * height * depth
    at_once = 1 if by_warp else max(1, _LANES_AT_ONCE // code.program.threads)
    with np.errstate(all="ignore"):
        for start in launch.random.permutation(np.arange(0, ctas, at_once)):
            run_batch(code, launch, int(start), min(at_once, ctas - int(start)), by_warp, max_blocks)
