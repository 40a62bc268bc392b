"""Launches a compiled kernel on CPU tensors and reports what it did."""

from collections import Counter
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import torch

from .counters import Counters, Traffic
from .global_memory import GlobalMemory, element_bytes
from .machine import Code, run_grid
from .parser import parse
from .types import DTYPES

_SCRATCH_POINTERS = (1, 2)  # Triton 3.4 adds one, later versions two; null here, so that any use is a stray access


def launch(kernel, grid, *arguments, uninitialised=(), by="cta", seed=0, max_blocks=200_000):
    """Runs `kernel` (see compile.py) on the arguments that its Triton function takes, constexprs left out.

    Tensors are CPU tensors and are changed in place, once the launch has ended without a Fault. `uninitialised` names
    arguments that the kernel may not read before it writes them, or maps them to bool arrays of their storage's bytes,
    true where something has been written. `by` is "cta" (fast) or "warp". The seed decides the
    order of CTAs, of warps and of atomic operations. `max_blocks` bounds the blocks that one group of threads may
    run.
    """
    if by not in ("cta", "warp"):
        raise ValueError(f"by must be 'cta' or 'warp', not {by!r}")
    names = kernel.argument_names
    if len(arguments) != len(names):
        raise TypeError(f"{kernel.name} takes {len(names)} arguments {names}, and got {len(arguments)}")
    if unknown := set(uninitialised) - set(names):
        raise TypeError(f"no arguments {sorted(unknown)}")
    program = parse(kernel.ptx)
    scratch_pointers = len(program.parameters) - len(names)
    if scratch_pointers not in _SCRATCH_POINTERS:
        raise TypeError(f"the PTX has {len(program.parameters)} parameters for the arguments {names}")
    counters = Counters()
    memory = GlobalMemory(counters)
    packed = []
    for name, type_, value in zip(names, program.parameters, arguments, strict=False):
        if isinstance(value, torch.Tensor):
            known = uninitialised[name] if isinstance(uninitialised, dict) and name in uninitialised else None
            value = memory.add(name, value, name not in uninitialised if known is None else known)
        packed.append(_pack(name, type_, value))
    constants = {name: torch.tensor(list(values), dtype=torch.uint8) for name, values in program.constants.items()}
    program.symbols = {name: memory.add(name, tensor, True) for name, tensor in constants.items()}
    running = SimpleNamespace(
        program=program,
        grid=tuple(grid) + (1,) * (3 - len(grid)),
        arguments=packed + [bytes(8)] * scratch_pointers,
        memory=memory,
        counters=counters,
        shared_bytes=kernel.shared_bytes,
        random=np.random.default_rng(seed),
    )
    run_grid(Code(program), running, by == "warp", max_blocks)
    memory.write_back()
    return Report(program, counters, memory, dict(zip(names, arguments, strict=True)))


def _pack(name, type_, value):
    """The bytes of a parameter."""
    dtype = np.dtype(DTYPES[type_])
    if np.issubdtype(dtype, np.floating):
        return np.array([value], dtype).tobytes()
    if not isinstance(value, int):
        raise TypeError(f"argument {name} is a .{type_}, not {value!r}")
    bits = 8 * dtype.itemsize
    if not -(2 ** (bits - 1)) <= value < 2**bits:
        raise OverflowError(f"argument {name} = {value} does not fit a .{type_}")
    return (value % 2**bits).to_bytes(dtype.itemsize, "little")


class Report:
    """What a launch did. Counts are of the whole grid."""

    def __init__(self, program, counters, memory, arguments):
        self._program = program
        self._counters = counters
        self._memory = memory
        self._arguments = arguments

    @cached_property
    def warp_instructions(self):
        """Instructions issued, by opcode with its qualifiers: a Counter."""
        counts = Counter()
        issued = self._counters.per_instruction(len(self._program.instructions))
        for instruction, number in zip(self._program.instructions, issued, strict=True):
            counts[instruction.opcode] += int(number)
        return counts

    @property
    def thread_instructions(self):
        """Instructions issued, times the 32 lanes of a warp: what the issue slots pay, active or not."""
        return 32 * self.warp_instructions.total()

    def traffic(self, name=None, kind=None, width=None):
        """Global memory requests, of one tensor, one kind ("load", "store", "atomic"), one width in bytes, or all."""
        total = Traffic()
        allocation = None if name is None else self._memory.allocation_of(self._arguments[name]).bytes.name
        for (_, tensor, what), traffic in self._counters.traffic.items():
            if allocation in (None, tensor) and kind in (None, what) and width in (None, traffic.bytes_per_lane):
                total += traffic
        return total

    def initialised(self, name):
        """bool [bytes of the tensor's storage]: whether something has written each."""
        allocation = self._memory.allocation_of(self._arguments[name])
        return allocation.bytes.initialised[: allocation.size].copy()

    def reads(self, name):
        """How often each byte of a tensor was read (atomics included): int64 [*shape, itemsize]."""
        return self._count(name, "reads")

    def writes(self, name):
        """How often each byte of a tensor was written, atomics left out: int64 [*shape, itemsize]."""
        return self._count(name, "writes")

    def _count(self, name, table):
        tensor = self._arguments[name]
        allocation = self._memory.allocation_of(tensor)
        return element_bytes(np.cumsum(getattr(allocation, table)), tensor).copy()
