"""What a launch did, counted: instructions by opcode, global memory requests with their bytes and sectors.

An instruction counts once for each warp that issues it, predicated off or not: 32 thread-instructions each. A request
is one warp's execution of one memory instruction by at least one lane; its sectors are the distinct aligned 32-byte
blocks it touches.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

SECTOR = 32


@dataclass
class Traffic:
    """Requests of one kind, added up."""

    requests: int = 0
    sectors: int = 0
    bytes: int = 0  # those asked for by lanes, a byte counted once for every lane that asks
    lanes: int = 0

    def __iadd__(self, other):
        self.requests += other.requests
        self.sectors += other.sectors
        self.bytes += other.bytes
        self.lanes += other.lanes
        return self

    @property
    def sectors_per_request(self):
        return self.sectors / self.requests

    @property
    def bytes_per_lane(self):
        return self.bytes / self.lanes


class Counters:
    def __init__(self):
        self.runs = Counter()  # (first, last) of a straight run of instructions -> warps
        self.traffic = defaultdict(Traffic)  # (index of the instruction, tensor, "load" | "store" | "atomic")

    def request(self, pc, tensor, access):
        warps = 1 + int(np.count_nonzero(np.diff(access.warp)))
        sectors = np.unique(access.warp << 44 | (access.address // np.uint64(SECTOR)).astype(np.int64))
        lanes = access.address.size
        self.traffic[pc, tensor, access.what] += Traffic(warps, sectors.size, lanes * access.width, lanes)

    def per_instruction(self, length):
        """Warp instructions issued at each of the program's `length` places."""
        change = np.zeros(length + 1, np.int64)
        for (first, last), warps in self.runs.items():
            change[first] += warps
            change[last + 1] -= warps
        return np.cumsum(change)[:length]
