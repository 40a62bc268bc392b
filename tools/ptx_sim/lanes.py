"""The threads that execute together: their registers, their place in the grid, and the batch of CTAs they belong to."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .access import Access, Copy
from .counters import Counters
from .errors import Misaligned, Uninitialised
from .global_memory import GlobalMemory
from .parser import Program
from .shared_memory import LocalMemory, SharedMemory
from .tracked import CTA_SHIFT, INTERVAL_SHIFT
from .types import DTYPES, Array, Mask, bits_type

WARP = 32


class Registers(dict[str, Array]):
    """Register arrays by name. Values left undefined by a predicated-off instruction are all ones: as floats, NaN."""

    def __init__(self, program: Program, count: int) -> None:
        super().__init__()
        self.program = program
        self.count = count

    def __missing__(self, name: str) -> Array:
        if name not in self.program.maybe_undefined:
            raise Uninitialised(f"register {name} is read before anything has written it")
        return self.undefined(name)

    def undefined(self, name: str) -> Array:
        return ~np.zeros(self.count, DTYPES[bits_type(self.program.register_type(name))])


@dataclass
class Grid:
    """What all threads of a launch share."""

    program: Program
    shape: tuple[int, int, int]
    arguments: list[bytes]  # one per parameter of the PTX
    memory: GlobalMemory
    counters: Counters
    shared_bytes: int
    random: np.random.Generator


class Batch:
    """What the threads of CTAs `first` to `first + count - 1` share while they run together."""

    def __init__(self, grid: Grid, first: int, count: int) -> None:
        self.grid = grid
        self.first = first
        self.threads = grid.program.threads
        self.shared = SharedMemory(grid.shared_bytes, count)
        self.interval = np.zeros(count, np.int64)  # number of barriers that each CTA has passed
        self.acquired = np.zeros(count, np.bool_)  # whether a CTA has executed an acquiring atomic


@dataclass(eq=False)
class Lanes:
    """A group of threads, a multiple of a warp, that runs in lockstep. Arrays are [count]."""

    batch: Batch
    thread: Array  # uint32, index in the CTA
    cta_index: Array  # int64, index of the CTA in the batch
    copies: list[Copy] = field(default_factory=list)

    def __post_init__(self) -> None:
        batch = self.batch
        grid = batch.grid
        self.count = self.thread.size
        self.carry: Array = np.zeros(self.count, np.int64)
        self.registers = Registers(grid.program, self.count)
        self.memory = grid.memory
        self.local = LocalMemory(grid.program.local_bytes, self.count)
        self.groups_committed: Array = np.zeros(self.count, np.int64)
        cta = batch.first + self.cta_index
        width, height, depth = grid.shape
        warps = batch.threads // WARP
        warp_in_cta = self.thread.astype(np.int64) // WARP
        self.cta = cta
        self.warp = cta * warps + warp_in_cta
        self._key = cta << CTA_SHIFT | warp_in_cta
        x, y, z = cta % width, cta // width % height, cta // (width * height)
        specials = {"%tid.x": self.thread, "%laneid": self.thread % WARP, "%ntid.x": batch.threads}
        specials |= {"%ctaid.x": x, "%ctaid.y": y, "%ctaid.z": z}
        specials |= {"%nctaid.x": width, "%nctaid.y": height, "%nctaid.z": depth}
        self._specials = {
            name: np.broadcast_to(np.asarray(value, np.uint32), self.count).copy() for name, value in specials.items()
        }

    def special(self, name: str) -> Array:
        return self._specials[name]

    def access(self, what: str, address: Array, width: int, mask: Mask) -> Access:
        """Collect what the active lanes ask for. Every access must be aligned to its own width."""
        active = np.arange(self.count) if mask is None else np.flatnonzero(mask)
        address = address[active]
        misaligned = address % np.uint64(width) != 0
        if misaligned.any():
            bad = misaligned.argmax()
            raise Misaligned(f"{what} of {width} bytes at address {address[bad]:#x}", int(active[bad]))
        index = self.cta_index[active]
        key = self._key[active] | self.batch.interval[index] << INTERVAL_SHIFT
        return Access(what, active, address, width, self.warp[active], index, key, self.batch.acquired[index])

    def spread(self, access: Access, values: Array) -> Array:
        """Expand values of the active lanes to all lanes, with zeros for the others."""
        if access.active.size == self.count:
            return values
        spread = np.zeros((self.count, *values.shape[1:]), values.dtype)
        spread[access.active] = values
        return spread

    def acquire(self, mask: Mask) -> None:
        self.batch.acquired[self.cta_index if mask is None else self.cta_index[mask]] = True

    def describe(self, lane: int) -> str:
        return f"in CTA {self.cta[lane]}, thread {self.thread[lane]}"


Read = Callable[[Lanes], Array]  # an operand's values, one per lane
Write = Callable[[Lanes, Array, Mask], None]
Step = Callable[[Lanes, Mask], None]  # executes one instruction
