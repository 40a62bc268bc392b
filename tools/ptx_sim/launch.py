"""Launch a compiled kernel on CPU tensors and report what it did."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .counters import Counters, Traffic
from .global_memory import GlobalMemory, element_bytes
from .lanes import Grid
from .machine import Code, run_grid
from .parser import Program, parse
from .types import DTYPES, Array

# Triton 3.4 adds one pointer to scratch memory, later versions two. They are null here: any use is a stray access.
_SCRATCH_POINTERS = (1, 2)


@dataclass(frozen=True)
class Kernel:
    """PTX and what is needed to launch it."""

    ptx: str
    name: str
    argument_names: tuple[str, ...]  # arguments of the Triton function without its constexprs
    shared_bytes: int
    sm: int

    def with_ptx(self, ptx: str) -> "Kernel":
        return replace(self, ptx=ptx)


def launch(
    kernel: Kernel,
    grid: Sequence[int],
    *arguments: Any,
    uninitialised: Collection[str] | Mapping[str, Array] = (),
    by: str = "cta",
    seed: int = 0,
    max_blocks: int = 200_000,
) -> "Report":
    """Run a kernel on CPU tensors. They are changed in place, and only if the launch ends without a Fault.

    Args:
        kernel: the compiled kernel (see compile.py).
        grid: number of CTAs along up to three axes.
        arguments: the arguments of the Triton function, without its constexprs.
        uninitialised: names of tensor arguments that the kernel may not read before it writes them; or a mapping from
            their names to bool [bytes of the storage], true for bytes that have been written.
        by: the threads that run in lockstep, "cta" (fast) or "warp".
        seed: seed of the order of CTAs, of warps and of atomic operations.
        max_blocks: how many basic blocks a group of threads may execute before it counts as endless.

    Returns:
        A Report of the instructions and memory traffic.

    Raises:
        Fault: the kernel does something that no correct kernel does (errors.py).
        TypeError, OverflowError: the arguments do not fit the kernel.
        ValueError: an unknown value of `by`.
    """
    if by not in ("cta", "warp"):
        raise ValueError(f"by must be 'cta' or 'warp', not {by!r}")
    names = kernel.argument_names
    if len(arguments) != len(names):
        raise TypeError(f"{kernel.name} takes {len(names)} arguments {names}, got {len(arguments)}")
    if unknown := set(uninitialised) - set(names):
        raise TypeError(f"uninitialised: {kernel.name} has no arguments {sorted(unknown)}")
    program = parse(kernel.ptx)
    scratch_pointers = len(program.parameters) - len(names)
    if scratch_pointers not in _SCRATCH_POINTERS:
        raise TypeError(f"the PTX has {len(program.parameters)} parameters for the arguments {names}")
    width, height, depth = (*grid, *(1,) * (3 - len(grid)))
    counters = Counters(width * height * depth)
    memory = GlobalMemory(counters)
    packed = []
    for name, type_, value in zip(names, program.parameters, arguments, strict=False):
        if isinstance(value, torch.Tensor):
            known = uninitialised[name] if isinstance(uninitialised, dict) and name in uninitialised else None
            value = memory.add(name, value, name not in uninitialised if known is None else known)
        packed.append(_pack(name, type_, value))
    constants = {name: torch.tensor(list(values), dtype=torch.uint8) for name, values in program.constants.items()}
    program.symbols = {name: memory.add(name, tensor, True) for name, tensor in constants.items()}
    running = Grid(
        program=program,
        shape=(width, height, depth),
        arguments=packed + [bytes(8)] * scratch_pointers,
        memory=memory,
        counters=counters,
        shared_bytes=kernel.shared_bytes,
        random=np.random.default_rng(seed),
    )
    run_grid(Code(program), running, by == "warp", max_blocks)
    memory.write_back()
    return Report(program, counters, memory, dict(zip(names, arguments, strict=True)))


def _pack(name: str, type_: str, value: Any) -> bytes:
    """Return the bytes of a parameter."""
    dtype = np.dtype(DTYPES[type_])
    if np.issubdtype(dtype, np.floating):
        return np.array([value], dtype).tobytes()
    if not isinstance(value, int):
        raise TypeError(f"argument {name} must be a .{type_}, got {value!r}")
    bits = 8 * dtype.itemsize
    if not -(2 ** (bits - 1)) <= value < 2**bits:
        raise OverflowError(f"argument {name} = {value} does not fit a .{type_}")
    return (value % 2**bits).to_bytes(dtype.itemsize, "little")


class Report:
    """What a launch did. Counts cover the whole grid."""

    def __init__(self, program: Program, counters: Counters, memory: GlobalMemory, arguments: dict[str, Any]) -> None:
        self._program = program
        self._counters = counters
        self._memory = memory
        self._arguments = arguments

    @cached_property
    def warp_instructions(self) -> Counter[str]:
        """Number of instructions issued by warps, by opcode with its qualifiers."""
        counts: Counter[str] = Counter()
        issued = self._counters.per_instruction(len(self._program.instructions))
        for instruction, number in zip(self._program.instructions, issued, strict=True):
            counts[instruction.opcode] += int(number)
        return counts

    @property
    def thread_instructions(self) -> int:
        """Number of instructions issued by warps, times 32: inactive lanes count as well."""
        return 32 * self.warp_instructions.total()

    @property
    def instructions_per_thread(self) -> Array:
        """Number of instructions that a thread of each CTA issued, on average over its warps: float64 [CTAs]."""
        return self._counters.by_cta * 32 / self._program.threads

    def traffic(self, name: str | None = None, kind: str | None = None, width: int | None = None) -> Traffic:
        """Return the global memory traffic, optionally of one tensor, one kind and one width.

        Args:
            name: the tensor argument.
            kind: "load", "store" or "atomic".
            width: bytes per lane.
        """
        total = Traffic()
        allocation = None if name is None else self._memory.allocation_of(self._arguments[name]).bytes.name
        for (_, tensor, what), traffic in self._counters.traffic.items():
            if allocation in (None, tensor) and kind in (None, what) and width in (None, traffic.bytes_per_lane):
                total += traffic
        return total

    def initialised(self, name: str) -> Array:
        """Return for each byte of a tensor's storage whether it has been written: bool [bytes]."""
        allocation = self._memory.allocation_of(self._arguments[name])
        return allocation.bytes.initialised[: allocation.size].copy()

    def reads(self, name: str) -> Array:
        """Return how often each byte of a tensor was read, atomics included: int64 [*shape, itemsize]."""
        return self._count(name, "reads")

    def writes(self, name: str) -> Array:
        """Return how often each byte of a tensor was written, atomics excluded: int64 [*shape, itemsize]."""
        return self._count(name, "writes")

    def _count(self, name: str, table: str) -> Array:
        tensor = self._arguments[name]
        allocation = self._memory.allocation_of(tensor)
        return element_bytes(np.cumsum(getattr(allocation, table)), tensor).copy()
