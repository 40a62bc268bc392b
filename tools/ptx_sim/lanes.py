"""The threads that execute together: their registers, their places in the grid, and the batch of CTAs they are of."""

from dataclasses import dataclass, field, replace

import numpy as np

from .errors import Misaligned, Uninitialised
from .shared_memory import LocalMemory, SharedMemory
from .tracked import CTA_SHIFT, INTERVAL_SHIFT
from .types import DTYPES

WARP = 32


@dataclass
class Access:
    """One memory instruction of one group: what its active lanes ask for. Arrays are [n], n the active lanes."""

    what: str  # "load", "store", "atomic" or "copy"
    active: np.ndarray  # indices of lanes
    address: np.ndarray  # uint64
    width: int  # bytes for each lane
    warp: np.ndarray  # unique over the grid, nondecreasing
    cta_slot: np.ndarray
    key: np.ndarray  # see tracked.py
    acquired: np.ndarray  # bool
    strong: bool = False  # a load that is ordered with atomics, as they are with each other

    def only(self, positions):
        """The access of some of the lanes."""
        if positions.size == self.address.size:
            return self
        names = ("active", "address", "warp", "cta_slot", "key", "acquired")
        return replace(self, **{name: getattr(self, name)[positions] for name in names})


class Registers(dict):
    """Register arrays by name. What a predicated-off instruction leaves undefined is all ones: as a float, NaN."""

    def __init__(self, program, count):
        super().__init__()
        self.program = program
        self.count = count

    def __missing__(self, name):
        if name not in self.program.maybe_undefined:
            raise Uninitialised(f"register {name} is read and nothing has written it")
        return self.undefined(name)

    def undefined(self, name):
        return ~np.zeros(self.count, DTYPES[self.program.register_type(name)])


class Batch:
    """What the threads of CTAs `first` to `first + count - 1` share while they run together."""

    def __init__(self, launch, first, count):
        self.launch = launch
        self.first = first
        self.threads = launch.program.threads
        self.shared = SharedMemory(launch.shared_bytes, count)
        self.interval = np.zeros(count, np.int64)  # barriers passed, by slot
        self.acquired = np.zeros(count, np.bool_)  # whether a CTA has executed an acquiring atomic


@dataclass
class Copy:
    """A cp.async on its way. Arrays are [n], n the lanes that issued it."""

    access: Access  # of shared memory
    values: np.ndarray  # uint8 [n, width]
    group: np.ndarray  # the number of the lane's commit_group that took it in


@dataclass(eq=False)
class Lanes:
    """A group of threads, a multiple of a warp, that runs in lock step. Arrays are [count]."""

    batch: Batch
    thread: np.ndarray  # uint32, in the CTA
    cta_slot: np.ndarray  # int64, in the batch
    copies: list = field(default_factory=list)

    def __post_init__(self):
        batch = self.batch
        launch = batch.launch
        self.count = self.thread.size
        self.carry = np.zeros(self.count, np.int64)
        self.registers = Registers(launch.program, self.count)
        self.memory = launch.memory
        self.local = LocalMemory(launch.program.local_bytes, self.count)
        self.groups_committed = np.zeros(self.count, np.int64)
        cta = batch.first + self.cta_slot
        width, height, depth = launch.grid
        warps = batch.threads // WARP
        warp_of_cta = self.thread.astype(np.int64) // WARP
        self.cta = cta
        self.warp = cta * warps + warp_of_cta
        self._place = cta << CTA_SHIFT | warp_of_cta
        x, y, z = cta % width, cta // width % height, cta // (width * height)
        specials = {"%tid.x": self.thread, "%laneid": self.thread % WARP, "%ntid.x": batch.threads}
        specials |= {"%ctaid.x": x, "%ctaid.y": y, "%ctaid.z": z}
        specials |= {"%nctaid.x": width, "%nctaid.y": height, "%nctaid.z": depth}
        self._specials = {
            name: np.broadcast_to(np.asarray(value, np.uint32), self.count).copy() for name, value in specials.items()
        }

    def special(self, name):
        return self._specials[name]

    def access(self, what, address, width, mask):
        """Gathers what the active lanes ask for; every access must be aligned to its own width."""
        active = np.arange(self.count) if mask is None else np.flatnonzero(mask)
        address = address[active]
        crooked = address % np.uint64(width) != 0
        if crooked.any():
            bad = crooked.argmax()
            raise Misaligned(f"{what} of {width} bytes at address {address[bad]:#x}", active[bad])
        slot = self.cta_slot[active]
        key = self._place[active] | self.batch.interval[slot] << INTERVAL_SHIFT
        return Access(what, active, address, width, self.warp[active], slot, key, self.batch.acquired[slot])

    def spread(self, access, values):
        """Values of the active lanes, with zeros for the others."""
        if access.active.size == self.count:
            return values
        spread = np.zeros((self.count, *values.shape[1:]), values.dtype)
        spread[access.active] = values
        return spread

    def acquire(self, mask):
        self.batch.acquired[self.cta_slot if mask is None else self.cta_slot[mask]] = True

    def describe(self, lane):
        return f"in CTA {self.cta[lane]}, thread {self.thread[lane]}"
