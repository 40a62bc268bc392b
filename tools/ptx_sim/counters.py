"""Counts what a launch does: instructions by opcode, and global memory requests with their bytes and sectors.

An instruction counts once per warp that issues it, predicated off or not, as 32 thread-instructions. A request is one
warp's execution of one memory instruction by at least one lane; its sectors are the distinct aligned 32-byte blocks
that it touches.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from .access import Access
from .types import Array

SECTOR = 32


@dataclass
class Traffic:
    """The sum of the requests of one kind."""

    requests: int = 0
    sectors: int = 0
    bytes: int = 0  # requested by lanes; a byte counts once per lane that requests it
    lanes: int = 0

    def __iadd__(self, other: "Traffic") -> "Traffic":
        self.requests += other.requests
        self.sectors += other.sectors
        self.bytes += other.bytes
        self.lanes += other.lanes
        return self

    @property
    def sectors_per_request(self) -> float:
        return self.sectors / self.requests

    @property
    def bytes_per_lane(self) -> float:
        return self.bytes / self.lanes


class Counters:
    def __init__(self, ctas: int) -> None:
        self.by_cta = np.zeros(ctas, np.int64)  # instructions that the warps of each CTA issued
        # Warps that issued the straight run of instructions (first, last).
        self.runs: Counter[tuple[int, int]] = Counter()
        # Traffic by PTX line, tensor and "load", "store" or "atomic".
        self.traffic: defaultdict[tuple[int, str, str], Traffic] = defaultdict(Traffic)

    def issue(self, first: int, last: int, ctas: Array) -> None:
        """Count a straight run of instructions, issued by one warp of each of the given CTAs."""
        self.runs[first, last] += ctas.size
        np.add.at(self.by_cta, ctas, last - first + 1)

    def request(self, line: int, tensor: str, access: Access) -> None:
        warps = 1 + int(np.count_nonzero(np.diff(access.warp)))
        sectors = np.unique(access.warp << 44 | (access.address // np.uint64(SECTOR)).astype(np.int64))
        lanes = access.address.size
        self.traffic[line, tensor, access.what] += Traffic(warps, sectors.size, lanes * access.width, lanes)

    def per_instruction(self, length: int) -> Array:
        """Return the number of warps that issued each of the program's `length` instructions: int64 [length]."""
        change = np.zeros(length + 1, np.int64)
        for (first, last), warps in self.runs.items():
            change[first] += warps
            change[last + 1] -= warps
        return np.cumsum(change)[:length]
